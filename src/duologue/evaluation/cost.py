"""What listening while speaking costs: the same words and decisions in every kind of session, on the same weights.

Passes, tokens, seconds and KV are read from the trace. Two things do not depend on the weights and are counted on the
ids alone, so that nobody has to wait for them: an hour of silence, and answers over which ever more is heard.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from duologue.backends.ids import IdBackend
from duologue.baselines.sessions import NAMES, factory
from duologue.core.backend import Backend, Extend, Step, check_batch
from duologue.core.events import Event, Received, Said, Suspended, Withdrawn
from duologue.core.policy import Policy
from duologue.core.prompt import Probe
from duologue.core.session import BaseSession, Phase
from duologue.core.trace import Pass, Sink, Trace
from duologue.engine.replay import Replay
from duologue.evaluation.cost_lessons import Lesson, Teacher, lessons, overheard
from duologue.models.model import Model, Progress
from duologue.text.template import Template
from duologue.types import SLICE_PERIOD_S, Seq, Token

SILENCE_S = 3600.0
NUM_SLICES = (0, 1, 2, 4, 8)
_PASSES_A_PERIOD = 10  # five tokens a second, the pace of speech
_NO_LIMIT = 1 << 24


def measure(
    model: Model, *, conversations: int = 2, exchanges: int = 6, seed: int = 0, progress: Progress
) -> dict[str, Any]:
    """Run every kind of session on `model`; figures by name of the kind, as `duologue bench cost --json` has them."""
    taught = lessons(model.template, conversations=conversations, exchanges=exchanges, seed=seed)
    runner = Runner(model.backend, model.template, model.probe, model.max_length)
    out = {}
    for number, name in enumerate(NAMES):
        progress(f"running {name}", number / len(NAMES))
        out[name] = runner.figures(name, taught)
    return {"sessions": out}


class Runner:
    """Drives sessions through lessons on one backend."""

    def __init__(self, backend: Backend, template: Template, probe: Probe, max_length: int) -> None:
        self._backend = backend
        self._template = template
        self._probe = probe
        self._max_length = max_length
        # One id, as a model has that was trained for it; which one makes no difference to what a pass costs.
        self._idle = template.encode(".")[-1:]

    def figures(self, name: str, taught: Sequence[Lesson]) -> dict[str, Any]:
        """Everything about sessions of kind `name`."""
        meters = [self.run(name, lesson) for lesson in taught]
        is_sliced = name.startswith("tdm")
        return {
            "decider": "forced" if name in ("cdm", "sequential") or is_sliced else "none: end of turn or silence",
            **_totals(meters),
            **_reactions(meters),
            **self._after_silence(name, taught[0]),
            "by_exchange": meters[0].by_exchange,
            "by_slices": [self._heard_over(name, count) for count in NUM_SLICES],
        }

    def run(
        self,
        name: str,
        lesson: Lesson,
        *,
        counted: bool = False,
        silence_s: float = 0.0,
        limit: int | None = None,
        sink: Sink | None = None,
    ) -> "Meter":
        """Teach a session of kind `name` a lesson, `silence_s` seconds of silence behind it.

        `counted`: on ids alone, without weights. `limit` is the longest context, by default the model's. `sink` gets
        all that the meter gets.
        """
        backend = Counted(self._backend) if counted else self._backend
        teacher = Teacher(backend, self._probe, self._template, lesson)
        make = factory(name, judge=lesson.judge, idle=self._idle)

        def taught(*args: Any, **options: Any) -> BaseSession:
            teacher.session = make(*args, **options)
            return teacher.session

        meter = Meter(lesson.ends)

        def record(one: Pass | Event) -> None:
            meter(one)
            if sink is not None:
                sink(one)

        replay = Replay(
            lesson.script,
            teacher,
            self._template,
            self._probe,
            policy=Policy(),  # the verdicts are given: no thresholds
            passes=_PASSES_A_PERIOD,
            max_length=limit or self._max_length,
            sink=record,
            make=taught,
            end=lesson.ends[-1] + silence_s,
        )
        try:
            for _ in replay:
                pass
            meter.end(backend.usage().kv_entries, teacher.num_spoken)
        finally:
            replay.close()
        return meter

    def _after_silence(self, name: str, lesson: Lesson) -> dict[str, Any]:
        before, after = (
            self.run(name, lesson, counted=True, silence_s=silence_s, limit=_NO_LIMIT) for silence_s in (0.0, SILENCE_S)
        )
        per_token = self._backend.info.kv_bytes_per_token
        return {
            "kv_entries_after_hour": after.kv_entries,
            "kv_bytes_after_hour": after.kv_entries * per_token,
            "kv_entries_of_hour": after.kv_entries - before.kv_entries,
            "passes_of_hour": after.trace.num_passes - before.trace.num_passes,
        }

    def _heard_over(self, name: str, num_slices: int) -> dict[str, int]:
        meter = self.run(name, overheard(self._template, num_slices), counted=True, limit=_NO_LIMIT)
        return {
            "slices": num_slices,
            "passes": meter.trace.num_passes,
            "overlap_passes": meter.trace.passes[Phase.OVERLAP],
            "tokens_fed": meter.trace.tokens_fed.total(),
            "spoken_tokens": meter.num_spoken,
            "kv_entries_peak": meter.trace.kv_entries_peak,
        }


@dataclasses.dataclass(slots=True)
class _Reaction:
    """From words to what comes of them."""

    at: float
    passes: int = 0
    seconds: float = 0.0  # of computing
    run_s: float = 0.0  # while passes ran, on the replay's clock
    wait_s: float = 0.0  # while nothing ran, on the same


class Meter:
    """A sink that adds up one conversation, and times how it reacts."""

    def __init__(self, ends: Sequence[float]) -> None:
        self.trace = Trace()
        self.seconds: defaultdict[Phase, float] = defaultdict(float)
        self.by_exchange: list[dict[str, int]] = []
        self.first_words: list[_Reaction] = []
        self.interruptions: list[_Reaction] = []
        self.kv_entries = 0  # at the end
        self.num_spoken = 0  # tokens of answers
        self._ends = ends
        self._asked: _Reaction | None = None
        self._cut: _Reaction | None = None
        self._interruption = ""
        self._last_entries = 0

    def __call__(self, record: Pass | Event) -> None:
        """Take a record."""
        self._close_exchanges(record.at)
        self.trace(record)
        match record:
            case Pass():
                self._last_entries = record.kv_entries
                self.seconds[record.phase] += record.seconds
                for reaction in filter(None, (self._asked, self._cut)):
                    reaction.passes += record.num_passes
                    reaction.seconds += record.seconds
                    reaction.run_s += SLICE_PERIOD_S / _PASSES_A_PERIOD
            case Received(at, utterance, _, final) if utterance.startswith("ask"):
                self._asked, self._cut = (_Reaction(at) if final else None), None
            case Received(at, utterance, _, final) if utterance.startswith("cut"):
                self._interrupted(at, utterance, final=final)
            case Said(at) if self._asked is not None:
                _end(self._asked, at, self.first_words)
                self._asked = None
            case Suspended(at) | Withdrawn(at) if self._cut is not None:
                _end(self._cut, at, self.interruptions)
                self._cut = None
            case _:
                pass

    def end(self, kv_entries: int, num_spoken: int) -> None:
        """It is over, and so much is still held."""
        self._close_exchanges(float("inf"))
        self.kv_entries, self.num_spoken = kv_entries, num_spoken

    def _interrupted(self, at: float, utterance: str, *, final: bool) -> None:
        """Time runs from the last words of an interruption; whoever stops before them is timed from the first."""
        if utterance != self._interruption:
            self._interruption = utterance
            self._cut = _Reaction(at)
        elif final and self._cut is not None:
            self._cut = _Reaction(at)

    def _close_exchanges(self, at: float) -> None:
        while len(self.by_exchange) < len(self._ends) and at > self._ends[len(self.by_exchange)]:
            self.by_exchange.append(
                {
                    "exchanges": len(self.by_exchange) + 1,
                    "passes": self.trace.num_passes,
                    "tokens_fed": self.trace.tokens_fed.total(),
                    "kv_entries": self._last_entries,
                }
            )


def _end(reaction: _Reaction, at: float, into: list[_Reaction]) -> None:
    reaction.wait_s = max(0.0, at - reaction.at - reaction.run_s)
    into.append(reaction)


def _totals(meters: Sequence[Meter]) -> dict[str, Any]:
    """Sums over conversations, and the largest of what is held."""
    passes, tokens = Counter[Phase](), Counter[Phase]()
    for meter in meters:
        passes += meter.trace.passes
        tokens += meter.trace.tokens_fed
    seconds = {phase: sum(meter.seconds[phase] for meter in meters) for phase in Phase}
    return {
        "passes": passes.total(),
        "overlap_passes": passes[Phase.OVERLAP],
        "passes_by_phase": {phase.value: passes[phase] for phase in Phase},
        "tokens_fed": tokens.total(),
        "tokens_by_phase": {phase.value: tokens[phase] for phase in Phase},
        "spoken_tokens": sum(meter.num_spoken for meter in meters),
        "seconds": round(sum(seconds.values()), 3),
        "seconds_by_phase": {phase.value: round(value, 3) for phase, value in seconds.items()},
        "kv_entries_peak": max(meter.trace.kv_entries_peak for meter in meters),
        "kv_bytes_peak": max(meter.trace.kv_bytes_peak for meter in meters),
    }


def _reactions(meters: Sequence[Meter]) -> dict[str, Any]:
    """Medians; None where it never happened."""
    out: dict[str, Any] = {}
    by_name = {
        "first_word": [reaction for meter in meters for reaction in meter.first_words],
        "interruption": [reaction for meter in meters for reaction in meter.interruptions],
    }
    for name, found in by_name.items():
        out[f"{name}_passes"] = _median(reaction.passes for reaction in found)
        out[f"{name}_ms"] = _median(round(1000 * reaction.seconds, 1) for reaction in found)
        out[f"{name}_wait_ms"] = _median(round(1000 * reaction.wait_s) for reaction in found)
        out[f"{name}s"] = len(found)
    return out


def _median(values: Iterable[float]) -> float | None:
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else None


class Counted(IdBackend):
    """Entries and passes of `backend` without its weights: it holds ids, and its results are to be replaced."""

    def __init__(self, backend: Backend) -> None:
        info = dataclasses.replace(backend.info, capacity=_NO_LIMIT, context_length=_NO_LIMIT, max_seqs=64)
        super().__init__(info)

    def check(self, batch: Sequence[Extend]) -> None:
        check_batch(self.info, batch)  # there is room for everything

    def tokens(self, seq: Seq) -> list[Token]:
        return []  # the ids before make no difference, and an hour of them is long

    def step(self, extend: Extend, tokens: list[Token]) -> Step:
        num_watched = len(extend.watch)
        drawn = () if extend.draw is None else (0,)
        return Step(extend.ticket, drawn, (1 / num_watched,) * num_watched if num_watched else ())
