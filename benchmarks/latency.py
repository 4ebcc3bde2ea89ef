"""Decision latency: from words handed in to the decision, while the assistant speaks.

Claim: with llama.cpp and the default model on two cores, a five-word partial is decided on within 40 ms in 95 of 100
cases while an answer is generated after 300 to 500 tokens of conversation. Listening adds no forward pass to an answer,
and a decision in silence costs one pass. With an adapter of kind alora, a decision costs one more pass there.

Why: at the onset of speech the input channel is forked and its opening fed. What is left for the words is one pass of
five words and the probe, which carries the answer's next token as well.

How: the same decisions in two ways. *direct*: words arrive between two passes, which is the cost of the method alone.
*live*: the conversation runs in real time and words arrive at any moment, usually in the middle of a pass that has to
end first; this is what a user waits for. Each utterance begins with its onset, then grows by five words at a time.
Latencies are differences of event times (`Decided.at - Decided.heard_at`); passes are read from the trace. The
decisions are forced (every pass is real, only the decision is replaced), so that all utterances have the same length.
Passes with listening are compared with passes of speech alone in the same answer (`ratio`).
"""

import argparse
import asyncio
import random
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import measuring
import spoken

from duologue import Engine, Session, SessionConfig, Turn
from duologue.core.events import Decided, Event, Heard
from duologue.engine.trace import Pass
from duologue.evaluation.forced_policy import ForcedPolicy, NextDecision
from duologue.evaluation.quantiles import percentile, summary
from duologue.evaluation.results import describe_model
from duologue.types import InputState, Role

TARGET_MS = 40.0
_PARTIALS = 4  # of an utterance, five words each
_HISTORY = (300, 420)  # tokens before the question, so that 300 to 500 are behind most decisions


@dataclass(slots=True)
class Measured:
    """Milliseconds of decisions and of passes."""

    decisions: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)  # passes with the answer's token alone
    listening: list[float] = field(default_factory=list)  # passes with the answer's token, five words and the probe
    ratios: list[float] = field(default_factory=list)  # one per answer: median with listening over median alone
    contexts: list[int] = field(default_factory=list)  # cache entries before a decision
    added_passes: int = 0  # beyond one per token sampled while an answer was generated
    num_decisions: int = 0  # made meanwhile
    most_passes: int = 0  # for one decision


class Rig:
    """A model, and conversations of the length in the claim."""

    def __init__(self, model: Any, seed: int) -> None:
        self.model = model
        self.forced = NextDecision(p=0.9)  # below `Policy.p_sure`: an answer to growing words is prepared, not released
        self.chance = random.Random(seed)

    def session(self, *, reported: bool = False) -> Session:
        """A new conversation with some history."""
        config = SessionConfig(max_length=2048, max_answer=160, heard="reported" if reported else "shown")
        policy = ForcedPolicy(forced=self.forced)
        return Session(self.model.template, self.model.probe, policy=policy, config=config, history=self._history())

    def _history(self) -> list[Turn]:
        turns: list[Turn] = []
        wanted = self.chance.randint(*_HISTORY)
        while len(self.model.template.render(turns)) < wanted:
            said = " ".join(spoken.aside(self.chance) for _ in range(3))
            turns += [Turn(Role.USER, spoken.question(self.chance)), Turn(Role.ASSISTANT, said)]
        return turns

    def words(self) -> Iterator[str]:
        """An utterance that grows by five words at a time."""
        stock = " ".join(spoken.aside(self.chance) for _ in range(20)).split()
        for i in range(1, _PARTIALS + 1):
            yield " ".join(stock[: 5 * i])


class Recorder:
    """A sink that keeps passes and decisions."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.decided: list[Decided] = []

    def __call__(self, record: Pass | Event) -> None:
        if isinstance(record, Pass):
            self.passes.append(record)
        elif isinstance(record, Decided):
            self.decided.append(record)


class Direct:
    """Words arrive between two passes."""

    def __init__(self, rig: Rig, measured: Measured) -> None:
        self._rig = rig
        self._measured = measured
        self._recorder = Recorder()
        self._session = rig.session()
        self._engine = Engine(rig.model.backend, max_tokens_per_pass=None)
        self._talk = self._engine.open(self._session, sink=self._recorder)

    def speaking(self) -> None:
        """One answer, talked over until it ends."""
        self._rig.forced.state = InputState.PROCESS
        self._hear(spoken.question(self._rig.chance), "question", final=True)
        while self._is_generating() or not self._session.running:
            if not self._engine.tick() or self._num_heard():
                break
        first = len(self._recorder.passes)
        number = 0
        while self._is_generating():
            number += 1
            self._ticks(3)
            self._utterance(f"u{number}", needs_answer=True)
        self._engine.close()
        self._account(self._recorder.passes[first:])

    def silent(self) -> None:
        """One utterance while nobody speaks."""
        while self._engine.tick():
            pass
        self._utterance("u", needs_answer=False)
        self._engine.close()

    def _utterance(self, name: str, *, needs_answer: bool) -> None:
        self._hear("", name)
        self._ticks(2)
        for i, text in enumerate(self._rig.words(), 1):
            if needs_answer and not self._is_generating():
                return
            self._rig.forced.state = InputState.INCOMPLETE if i < _PARTIALS else InputState.IGNORE
            passes, decisions = len(self._recorder.passes), len(self._recorder.decided)
            self._hear(text, name)
            while len(self._recorder.decided) == decisions:
                self._engine.tick()
            decided = self._recorder.decided[-1]
            self._measured.decisions.append((decided.at - decided.heard_at) * 1000)
            self._measured.contexts.append(self._recorder.passes[-1].kv_entries)
            made = sum(record.num_passes for record in self._recorder.passes[passes:])
            self._measured.most_passes = max(self._measured.most_passes, made)
            self._ticks(self._rig.chance.randint(1, 2))

    def _account(self, passes: list[Pass]) -> None:
        while passes and not passes[-1].output_tokens:
            passes.pop()  # after the end of the answer
        alone = [p.seconds * 1000 for p in passes if p.num_channels == 1 and p.output_tokens == 1]
        listening = [p.seconds * 1000 for p in passes if p.output_tokens and p.input_tokens]
        self._measured.alone += alone
        self._measured.listening += listening
        self._measured.added_passes += sum(p.num_passes - bool(p.output_tokens) for p in passes)
        self._measured.num_decisions += sum(p.input_tokens > 0 for p in passes)
        if alone and listening:
            self._measured.ratios.append(statistics.median(listening) / statistics.median(alone))

    def _is_generating(self) -> bool:
        answer = self._session.running
        return answer is not None and answer.finished is None

    def _num_heard(self) -> int:
        return self._session.running.num_heard if self._session.running else 0

    def _hear(self, text: str, name: str, *, final: bool = False) -> None:
        self._talk.hear(text, utterance=name, final=final)

    def _ticks(self, count: int) -> None:
        for _ in range(count):
            self._engine.tick()


async def live(rig: Rig, measured: Measured) -> None:
    """One answer in real time, talked over until it ends; words arrive at any moment."""
    chance, recorder = rig.chance, Recorder()
    async with Engine(rig.model.backend) as engine:
        talk = engine.open(rig.session(reported=True), words_per_second=8.0, sink=recorder)
        events = talk.events()
        rig.forced.state = InputState.PROCESS
        talk.hear(spoken.question(chance), utterance="question", final=True)
        await _until(events, Heard)
        number = 0
        while talk.session.running is not None and talk.session.running.finished is None:
            number += 1
            talk.hear("", utterance=f"u{number}")
            for i, text in enumerate(rig.words(), 1):
                await asyncio.sleep(chance.uniform(0.04, 0.08))
                running = talk.session.running
                if running is None or running.finished is not None:
                    return
                rig.forced.state = InputState.INCOMPLETE if i < _PARTIALS else InputState.IGNORE
                talk.hear(text, utterance=f"u{number}")
                decided = await _until(events, Decided)
                measured.decisions.append((decided.at - decided.heard_at) * 1000)
                measured.contexts.append(recorder.passes[-1].kv_entries)


async def _until(events: Any, kind: type[Event]) -> Any:
    async for event in events:
        if isinstance(event, kind):
            return event
    raise RuntimeError(f"the conversation ended without {kind.__name__}")


def _in_steps(rig: Rig, decisions: int, direct: Measured, in_silence: Measured) -> None:
    Direct(rig, Measured()).speaking()  # to warm up
    while len(direct.decisions) < decisions:
        Direct(rig, direct).speaking()
    while len(in_silence.decisions) < decisions // 2:
        Direct(rig, in_silence).silent()


def main() -> int:
    """Run it. The exit status is 1 if an undeclared pass was added; the result says whether the target was met."""
    args = _arguments()
    measurement = measuring.begin(args)
    rig = Rig(measuring.load_model(args), args.seed)
    direct, in_silence, in_real_time = Measured(), Measured(), Measured()
    # Real time first, and the rest in a thread that ends: library threads left in this one would slow down the engine.
    asyncio.run(live(rig, Measured()))  # to warm up
    while len(in_real_time.decisions) < args.decisions:
        asyncio.run(live(rig, in_real_time))
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_in_steps, rig, args.decisions, direct, in_silence).result()
    result = {
        "model": describe_model(rig.model),
        "threads": args.threads or measurement.cores,
        "target_p95_ms": TARGET_MS,
        "decision_ms": {
            "speaking, direct": summary(direct.decisions),
            "speaking, live": summary(in_real_time.decisions),
            "silent, direct": summary(in_silence.decisions),
        },
        "pass_ms": {
            "speech alone": summary(direct.alone),
            "speech and listening": summary(direct.listening),
        },
        "ratio": round(statistics.median(direct.ratios), 3),
        "kv_entries": [min(direct.contexts), max(direct.contexts)],
        "passes_added_while_answering": direct.added_passes,
        "passes_per_decision_in_silence": in_silence.most_passes,
        "meets_target": percentile(in_real_time.decisions, 95) <= TARGET_MS,
    }
    timed = {**result["decision_ms"], **{f"pass: {name}": row for name, row in result["pass_ms"].items()}}
    rows = [(name, row["n"], row["p50"], row["p95"], row["max"]) for name, row in timed.items()]
    measuring.finish(args, measurement, result, ("ms", "n", "p50", "p95", "max"), rows)
    probe_passes = rig.model.backend.info.probe_passes
    too_many = direct.added_passes > probe_passes * direct.num_decisions or in_silence.most_passes > 1 + probe_passes
    return int(too_many)


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--decisions", type=int, default=240, help="decisions of each kind; half as many in silence")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
