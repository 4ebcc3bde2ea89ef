"""Exactness: what the method changes in an answer, and what it leaves alone.

Claim: words that are ignored or held, false starts, stopping and resuming change no token of an answer, and listening
adds no forward pass while it runs. A question gets the same answer whether its words come at once, grow while the
decision is incomplete, or are taken back from an answer that was prepared too early. A question that cuts an answer is
answered as in a fresh conversation whose history holds exactly what was heard.

Why: rollback leaves the key-value cache as if the tokens had never been fed, channels do not see each other, and the
random number of a sampled token depends on its position alone.

How: random conversations of several turns, every question and every answer disturbed in a random way. Each turn is
compared, token by token, with a conversation in which the same question comes at once and nothing disturbs it. Half of
the conversations are greedy, half are sampled at temperature 0.8. The decisions are forced: every pass is real, probe
included, and only the decision is replaced, so that every transition occurs whatever the adapter decides.

Passes of other widths round differently, except in exact arithmetic. So the noise is measured first: the largest change
of the gap between the two best logits over the same tokens in other passes. A first difference where the gap is below
the noise (or, sampled, where such noise could change the token) is an exception, counted and published. Any other is a
failure, and the exit status is 1. After a difference, the next turn is compared on the disturbed history.
"""

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import measuring
from conversation import Disturbed, Drawn, Talk, TurnRecord
from noise import could_draw, measure

from duologue import Sampling, SessionConfig, Template, Turn
from duologue.core.backend import Backend, uniform
from duologue.core.prompt import Probe
from duologue.evaluation.quantiles import summary
from duologue.evaluation.results import describe_model
from duologue.types import InputState, Role

MAX_LENGTH = 1536


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token at which a turn and its undisturbed twin differ."""

    conversation: int
    turn: int
    arrival: str
    disturbance: str
    sampled: bool
    index: int
    tokens: tuple[int | None, int | None]  # disturbed, undisturbed; None: the answer had ended
    margins: tuple[float | None, float | None]
    within_noise: bool


@dataclass(slots=True)
class Count:
    """What has been compared so far."""

    conversations: int = 0
    turns: int = 0
    tokens: int = 0
    other_ids: int = 0  # answers whose text the tokenizer splits into other tokens than the model wrote
    added_passes: int = 0  # in all answers; listening must add none
    probe_passes: int = 0  # passes of probes alone, on a backend that declares them
    kinds: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)


class Comparison:
    """Runs conversations on `backend`, and their undisturbed twins on `twin`, which has the same weights."""

    def __init__(self, backend: Backend, twin: Backend, template: Template, probe: Probe, *, noise: float) -> None:
        self._twin = twin
        self._backend = backend
        self._template = template
        self._probe = probe
        self._noise = noise
        self.count = Count()

    def conversation(self, number: int, seed: int, num_turns: int | None = None) -> None:
        """One random conversation and its twin, compared turn by turn."""
        chance = random.Random(f"{seed}/{number}")
        sampling = Sampling(temperature=0.8) if number % 2 else Sampling()
        limit = chance.randint(12, 48)
        calm = SessionConfig(max_length=MAX_LENGTH, max_answer=limit, sampling=sampling, seed=seed + number)
        talk = Talk(self._backend, self._template, self._probe, replace(calm, heard="reported"))
        turns = Disturbed(talk, chance, num_turns or chance.randint(2, 4)).run()
        talk.close()
        self.count.probe_passes += talk.probe_passes
        self.count.conversations += 1
        self._compare(number, turns, calm)

    def _compare(self, number: int, turns: Sequence[TurnRecord], config: SessionConfig) -> None:
        history: list[Turn] = []
        calm = Talk(self._twin, self._template, self._probe, config)
        for index, turn in enumerate(turns):
            drawn, passes = self._undisturbed(calm, turn)
            difference = self._first_difference(turn.drawn, drawn)
            self._account(turn, passes, is_same=difference is None)
            if difference is not None:
                self._explain(number, index, turn, drawn, difference, history, config)
            elif not turn.was_cut:
                history = calm.session.history
                continue
            if not turn.is_canonical:  # the same words, but other ids: nothing after them can be equal
                self.count.other_ids += 1
                break
            # What was not heard never happened: a fresh session, with what was heard as its history.
            history = [*history, Turn(Role.USER, turn.question), Turn(Role.ASSISTANT, turn.heard)]
            calm.close()
            calm = Talk(self._twin, self._template, self._probe, config, history)
        calm.close()

    def _undisturbed(self, calm: Talk, turn: TurnRecord) -> tuple[list[Drawn], int]:
        """The same question at once; of an answer that was cut, as many tokens as had been sampled."""
        calm.hear(turn.question, InputState.PROCESS, utterance="question", final=True)
        answer = calm.session.running
        assert answer is not None, "a question that is processed has an answer"
        calm.run(len(turn.drawn) if turn.was_cut else 10_000)
        return calm.drawn[answer.id], calm.passes[answer.id]

    def _account(self, turn: TurnRecord, passes: int, *, is_same: bool) -> None:
        count = self.count
        count.turns += 1
        count.kinds.update([f"arrival: {turn.arrival}", f"answer: {turn.disturbance}"])
        count.added_passes += turn.passes - len(turn.drawn)
        if is_same and not turn.was_cut:
            count.added_passes += abs(turn.passes - passes)

    def _first_difference(self, ours: Sequence[Drawn], calm: Sequence[Drawn]) -> int | None:
        for i in range(max(len(ours), len(calm))):
            if i >= min(len(ours), len(calm)) or ours[i].token != calm[i].token:
                return i
            self.count.tokens += 1
        return None

    def _explain(
        self,
        number: int,
        index: int,
        turn: TurnRecord,
        calm: Sequence[Drawn],
        at: int,
        history: Sequence[Turn],
        config: SessionConfig,
    ) -> None:
        pair = [drawn[at] if at < len(drawn) else None for drawn in (turn.drawn, calm)]
        margins = [None if drawn is None else drawn.margin for drawn in pair]
        tokens = [None if drawn is None else drawn.token for drawn in pair]
        known = [margin for margin in margins if margin is not None]
        within = False
        if None in tokens or len(known) < 2:
            pass  # one answer ended earlier: no rounding explains that
        elif config.sampling.temperature:
            turns = [*history, Turn(Role.USER, turn.question)]
            ids = [*self._template.render(turns), *self._template.header]
            ids += [drawn.token for drawn in calm[:at]]
            u = uniform(config.seed, len(history), at)
            both = [token for token in tokens if token is not None]
            within = could_draw(self._twin, ids, config.sampling, u, both, self._noise)
        else:
            within = max(known) <= self._noise
        self.count.differences.append(
            Difference(
                number,
                index,
                turn.arrival,
                turn.disturbance,
                bool(config.sampling.temperature),
                at,
                (tokens[0], tokens[1]),
                (margins[0], margins[1]),
                within,
            )
        )


def main() -> int:
    """Run it. The exit status is 1 if an answer changed or a pass was added."""
    args = _arguments()
    measurement = measuring.begin(args)
    model = measuring.load_model(args)
    against = measuring.load_model(args, backend=args.against, weights=args.weights) if args.against else model
    noise = measure(against.backend, model.template, seed=args.seed, conversations=2 if args.against else 6)
    measuring.progress(f"noise: {noise.largest:.3g} over {len(noise.changes)} tokens")
    comparison = Comparison(model.backend, against.backend, model.template, model.probe, noise=noise.largest)
    for number in range(args.conversations):
        comparison.conversation(number, args.seed)
        if number % 10 == 9:
            count = comparison.count
            measuring.progress(f"{number + 1} conversations, {count.tokens} tokens, {len(count.differences)} differ")
    count = comparison.count
    failures = [difference for difference in count.differences if not difference.within_noise]
    result = {
        "model": describe_model(model),
        "against": against.backend.info.name,
        "noise": summary(noise.changes, digits=6),
        "conversations": count.conversations,
        "turns": count.turns,
        "tokens_identical": count.tokens,
        "passes_added_by_listening": count.added_passes,
        "passes_of_probes_alone": count.probe_passes,
        "other_ids": count.other_ids,
        "exceptions": len(count.differences) - len(failures),
        "failures": len(failures),
        "differences": [asdict(difference) for difference in count.differences],
        "kinds": dict(sorted(count.kinds.items())),
    }
    rows = [(name, result[name]) for name in _SHOWN] + [("noise (logits)", f"{noise.largest:.3g}")]
    measuring.finish(args, measurement, result, ("", "count"), [*rows, *result["kinds"].items()])
    return 1 if failures or count.added_passes else 0


_SHOWN = (
    "conversations",
    "turns",
    "tokens_identical",
    "exceptions",
    "failures",
    "passes_added_by_listening",
    "passes_of_probes_alone",
    "other_ids",
)


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--against", choices=["reference"], help="backend of the undisturbed twins (slow)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
