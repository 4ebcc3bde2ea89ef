"""The cost of listening while speaking: the same words and decisions in every kind of session, on the same weights.

Passes, tokens, seconds and KV come from the trace. Two measurements do not depend on the weights and are counted on ids
alone, which is fast: an hour of silence, and answers over which more and more is heard.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from duologue.backends.ids import IdBackend
from duologue.baselines.sessions import NAMES, factory
from duologue.core.backend import Backend, Extend, Step, check_batch
from duologue.core.base_session import Phase
from duologue.core.events import Event, Received, Said, Suspended, Withdrawn
from duologue.core.policy import Policy
from duologue.engine.replay import Replay
from duologue.engine.trace import Pass, Trace
from duologue.evaluation.oracle_script import OracleBackend, OracleScript, oracle_scripts, overheard
from duologue.evaluation.quantiles import percentile
from duologue.models.model import Model
from duologue.models.opening import Progress
from duologue.types import SLICE_PERIOD_S, Seq, Token

SILENCE_S = 3600.0
NUM_SLICES = (0, 1, 2, 4, 8)
_PASSES_PER_PERIOD = 10  # five tokens a second, the rate of speech
_NO_LIMIT = 1 << 24


def measure(
    model: Model, *, conversations: int = 2, exchanges: int = 6, seed: int = 0, progress: Progress
) -> dict[str, Any]:
    """Run every kind of session on `model`. Returns figures by kind, as `duologue bench cost --json` prints them."""
    scripts = oracle_scripts(model.template, conversations=conversations, exchanges=exchanges, seed=seed)
    runner = Runner(model)
    out = {}
    for number, name in enumerate(NAMES):
        progress(f"running {name}", number / len(NAMES))
        out[name] = runner.figures(name, scripts)
    return {"sessions": out}


class Runner:
    """Runs sessions through oracle scripts on the backend of one model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        # One token, as a model trained for time division has; which one does not change the cost of a pass.
        self._idle = model.template.encode(".")[-1:]

    def figures(self, name: str, scripts: Sequence[OracleScript]) -> dict[str, Any]:
        """All figures of sessions of kind `name`."""
        meters = [self.run(name, script) for script in scripts]
        is_sliced = name.startswith("tdm")
        return {
            "decider": "forced" if name in ("cdm", "sequential") or is_sliced else "none: end of turn or silence",
            **_totals(meters),
            **_reactions(meters),
            **self._after_silence(name, scripts[0]),
            "by_exchange": meters[0].by_exchange,
            "by_slices": [self._heard_over(name, count) for count in NUM_SLICES],
        }

    def run(
        self,
        name: str,
        script: OracleScript,
        *,
        counted: bool = False,
        silence_s: float = 0.0,
        limit: int | None = None,
    ) -> "Meter":
        """Run a session of kind `name` through `script`, followed by `silence_s` seconds of silence.

        `counted`: on ids alone, without weights. `limit` is the longest context, by default the model's.
        """
        model = self._model
        backend = CountingBackend(model.backend) if counted else model.backend
        oracle = OracleBackend(backend, model.probe, model.template, script)
        meter = Meter(script.ends)
        replay = Replay(
            script.script,
            oracle,
            model.template,
            model.probe,
            policy=Policy(),  # the oracle decides: no thresholds
            passes=_PASSES_PER_PERIOD,
            max_length=limit or model.max_length,
            sink=meter,
            make=factory(name, judge=script.decide, idle=self._idle),
            end=script.ends[-1] + silence_s,
        )
        oracle.session = replay.session
        try:
            for _ in replay:
                pass
            meter.end(backend.usage().kv_entries, oracle.num_spoken)
        finally:
            replay.close()
        return meter

    def _after_silence(self, name: str, script: OracleScript) -> dict[str, Any]:
        before, after = (
            self.run(name, script, counted=True, silence_s=silence_s, limit=_NO_LIMIT) for silence_s in (0.0, SILENCE_S)
        )
        per_token = self._model.backend.info.kv_bytes_per_token
        return {
            "kv_entries_after_hour": after.kv_entries,
            "kv_bytes_after_hour": after.kv_entries * per_token,
            "kv_entries_of_hour": after.kv_entries - before.kv_entries,
            "passes_of_hour": after.trace.num_passes - before.trace.num_passes,
        }

    def _heard_over(self, name: str, num_slices: int) -> dict[str, int]:
        meter = self.run(name, overheard(self._model.template, num_slices), counted=True, limit=_NO_LIMIT)
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
    """What happens between words and the reaction to them."""

    at: float
    passes: int = 0
    seconds: float = 0.0  # of compute
    run_s: float = 0.0  # while passes ran, on the replay's clock
    wait_s: float = 0.0  # while nothing ran, on the same clock


class Meter:
    """A sink that sums up one conversation, and times its reactions."""

    def __init__(self, ends: Sequence[float]) -> None:
        self.trace = Trace()
        self.seconds: defaultdict[Phase, float] = defaultdict(float)
        self.by_exchange: list[dict[str, int]] = []
        self.first_words: list[_Reaction] = []
        self.interruptions: list[_Reaction] = []
        self.kv_entries = 0  # at the end
        self.num_spoken = 0  # tokens of answers
        self.said = ""
        self._ends = ends
        self._asked: _Reaction | None = None
        self._cut: _Reaction | None = None
        self._interruption = ""
        self._last_entries = 0

    def __call__(self, record: Pass | Event) -> None:
        """Count a record."""
        self._close_exchanges(record.at)
        self.trace(record)
        match record:
            case Pass():
                self._last_entries = record.kv_entries
                self.seconds[record.phase] += record.seconds
                for reaction in filter(None, (self._asked, self._cut)):
                    reaction.passes += record.num_passes
                    reaction.seconds += record.seconds
                    reaction.run_s += SLICE_PERIOD_S / _PASSES_PER_PERIOD
            case Received(at, utterance, _, final) if utterance.startswith("ask"):
                self._asked, self._cut = (_Reaction(at) if final else None), None
            case Received(at, utterance, _, final) if utterance.startswith("cut"):
                self._interrupted(at, utterance, final=final)
            case Said(at):
                self.said += record.text
                if self._asked is not None:
                    _end(self._asked, at, self.first_words)
                    self._asked = None
            case Suspended(at) | Withdrawn(at) if self._cut is not None:
                _end(self._cut, at, self.interruptions)
                self._cut = None
            case _:
                pass

    def end(self, kv_entries: int, num_spoken: int) -> None:
        """End the conversation, which still holds `kv_entries`."""
        self._close_exchanges(float("inf"))
        self.kv_entries, self.num_spoken = kv_entries, num_spoken

    def _interrupted(self, at: float, utterance: str, *, final: bool) -> None:
        """An interruption is timed from its last words, unless the session stops before them: then from its first."""
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
    """Sums over conversations, and peaks of memory."""
    passes, tokens = Counter[Phase](), Counter[Phase]()
    for meter in meters:
        passes += meter.trace.passes
        tokens += meter.trace.tokens_fed
    seconds = {phase: sum(meter.seconds[phase] for meter in meters) for phase in Phase}
    return {
        "passes": passes.total(),
        "overlap_passes": passes[Phase.OVERLAP],
        "passes_by_phase": {phase.value: passes[phase] for phase in Phase},
        "judged": sum(meter.trace.num_judged for meter in meters),
        "judged_apart": sum(meter.trace.num_judged_apart for meter in meters),
        "tokens_fed": tokens.total(),
        "tokens_by_phase": {phase.value: tokens[phase] for phase in Phase},
        "spoken_tokens": sum(meter.num_spoken for meter in meters),
        "seconds": round(sum(seconds.values()), 3),
        "seconds_by_phase": {phase.value: round(value, 3) for phase, value in seconds.items()},
        "kv_entries_peak": max(meter.trace.kv_entries_peak for meter in meters),
        "kv_bytes_peak": max(meter.trace.kv_bytes_peak for meter in meters),
    }


def _reactions(meters: Sequence[Meter]) -> dict[str, Any]:
    """Medians; None if a reaction never occurred."""
    out: dict[str, Any] = {}
    by_name = {
        "first_word": [reaction for meter in meters for reaction in meter.first_words],
        "interruption": [reaction for meter in meters for reaction in meter.interruptions],
    }
    for name, found in by_name.items():
        out[f"{name}_passes"] = _median([reaction.passes for reaction in found])
        out[f"{name}_ms"] = _median([round(1000 * reaction.seconds, 1) for reaction in found])
        out[f"{name}_wait_ms"] = _median([round(1000 * reaction.wait_s) for reaction in found])
        out[f"{name}s"] = len(found)
    return out


def _median(values: Sequence[float]) -> float | None:
    return percentile(values, 50) if values else None


class CountingBackend(IdBackend):
    """Counts entries and passes as `backend` would, without its weights. Its results mean nothing."""

    def __init__(self, backend: Backend) -> None:
        info = dataclasses.replace(backend.info, capacity=_NO_LIMIT, context_length=_NO_LIMIT, max_seqs=64)
        super().__init__(info)

    def check(self, batch: Sequence[Extend]) -> None:
        check_batch(self.info, batch)  # there is room for everything

    def tokens(self, seq: Seq) -> list[Token]:
        return []  # earlier ids do not matter here, and an hour of them is long

    def step(self, extend: Extend, tokens: list[Token]) -> Step:
        drawn, p = () if extend.draw is None else (0,), tuple((1 / len(group),) * len(group) for group in extend.watch)
        if not self.info.probe_passes or extend.tokens[-1] < self.info.vocab_size:
            return Step(extend.ticket, drawn, p)
        passes = (0, 1) if extend.tokens[0] < self.info.vocab_size else (1,)
        return Step(extend.ticket, drawn, p, passes=passes, is_apart=True)
