"""How many live sessions one machine serves in real time, all of them speaking and hearing at the same time.

Each session has a history of its own, speaks `tokens_per_second` without end, and hears a user all the while: every two
seconds five more words of an utterance that is ignored once it has twenty. All passes are real, probes included. Only
the decisions are forced, so that the figures do not depend on how the model judges the words. Answers do not end.

The *decision latency* runs from passing the words to the decision event. A *deadline* is missed when a listener who
hears a token every 1 / `tokens_per_second` seconds has to wait for the next one; an answer may be one second ahead.

What the users do (`Room`) is separate from the time that passes: `perform` waits in real time, and
`duologue.evaluation.capacity` moves a virtual clock.
"""

import asyncio
import dataclasses
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from duologue.core.backend import Backend
from duologue.core.config import SessionConfig
from duologue.core.events import Decided, Event
from duologue.core.prompt import Probe
from duologue.core.session import Session
from duologue.core.transitions import Floor
from duologue.engine.engine import Engine, Totals
from duologue.engine.handle import Handle
from duologue.engine.trace import Pass
from duologue.engine.vllm_engine import engine_on
from duologue.evaluation.forced_policy import ForcedPolicy, NextDecision
from duologue.evaluation.quantiles import p50_p95, percentile
from duologue.evaluation.simulated_user import Listener, history, utterances
from duologue.text.template import Template
from duologue.types import SLICE_PERIOD_S, InputState

MAX_P95_MS = 300.0
MIN_SHARE = 0.99  # of the wanted rate, for the slowest session: allows one short wait in twenty seconds
STEP_S = 0.02
"""How often the users act."""
_WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True)
class ScaleSetting:
    """What to measure."""

    sessions: int
    context_tokens: int  # history of each session at the start
    seconds: float = 20.0  # measured, after a warm-up
    tokens_per_second: float = 5.0
    seed: int = 0
    together: bool = False  # whether all users speak at the same time, instead of one after another

    @property
    def max_length(self) -> int:
        """Tokens that a session may grow to: history, what it says during the measurement, and room for the words."""
        grown = self.context_tokens + int(self.tokens_per_second * (self.seconds + 60)) + 128
        return max(grown * 8 // 7, self.context_tokens * 8 // 5) + 64


@dataclass(frozen=True, slots=True)
class ScaleResult:
    """What was measured. Times are in milliseconds, rates in tokens per second."""

    setting: ScaleSetting
    decisions: tuple[float, ...]
    rates: tuple[float, ...]  # of each session
    missed_deadlines: int
    passes: int  # during the measurement
    kv_bytes: int  # peak
    judged: int = 0  # decisions in the passes
    judged_apart: int = 0  # those that took a pass of their own

    @property
    def realtime(self) -> bool:
        """Whether every session was served in real time."""
        enough = MIN_SHARE * self.setting.tokens_per_second
        return percentile(self.decisions, 95) < MAX_P95_MS and min(self.rates) >= enough

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rates = self.rates
        return {
            "sessions": self.setting.sessions,
            "context_tokens": self.setting.context_tokens,
            "decision_ms": p50_p95(self.decisions, 1),
            "tokens_per_second": {
                "min": round(min(rates), 2),
                "median": round(statistics.median(rates), 2),
                "total": round(sum(rates), 1),
            },
            "missed_deadlines": self.missed_deadlines,
            "realtime": self.realtime,
            "kv_bytes": self.kv_bytes,
            "passes": self.passes,
            "judged": self.judged,
            "judged_apart": self.judged_apart,
            "seconds": self.setting.seconds,
        }


class _Participant:
    """One session and its simulated user, and what was measured of them."""

    def __init__(self, number: int, setting: ScaleSetting, template: Template, probe: Probe) -> None:
        self.decisions: list[float] = []  # seconds
        self.kv_bytes = 0
        chance = random.Random(f"{setting.seed}/{number}")
        self._utterances = utterances(chance)
        self._next_slice_at = 0.0 if setting.together else SLICE_PERIOD_S * number / setting.sessions
        self._undecided_since: float | None = None
        self._next_decision = NextDecision()
        self.session = Session(
            dataclasses.replace(template, stop_tokens=frozenset()),  # answers do not end
            probe,
            policy=ForcedPolicy(forced=self._next_decision),
            config=SessionConfig(
                max_length=setting.max_length,
                max_answer=setting.max_length,
                heard="reported",
                lookahead=max(1, round(setting.tokens_per_second)),
            ),
            history=history(template, chance, setting.context_tokens),
        )
        self.listener = Listener(self.session, setting.tokens_per_second)

    def take(self, record: Pass | Event) -> None:
        """A sink."""
        if isinstance(record, Pass):
            self.kv_bytes = max(self.kv_bytes, record.kv_bytes)
        elif isinstance(record, Decided):
            self.decisions.append(record.at - record.heard_at)
            self._undecided_since = None

    def speak(self, handle: Handle, now: float) -> None:
        """Say the next slice if it is due at `now`, in seconds since all sessions were ready."""
        if now < self._next_slice_at:
            return
        self.stop_waiting(now)
        utterance, text, is_whole = next(self._utterances)
        self._next_decision.state = InputState.IGNORE if is_whole else InputState.INCOMPLETE
        self._next_slice_at += SLICE_PERIOD_S
        self._undecided_since = now
        handle.hear(text, utterance=utterance, final=is_whole)

    def stop_waiting(self, now: float) -> None:
        """Count a missing decision as arriving `now`."""
        if self._undecided_since is not None:
            self.decisions.append(now - self._undecided_since)
            self._undecided_since = None


class Room:
    """All sessions of a setting on one engine, and their users.

    Raises:
        EngineFull: the backend has no room for so many sessions of `setting.max_length`.
    """

    def __init__(self, engine: Engine, template: Template, probe: Probe, setting: ScaleSetting) -> None:
        participants = [_Participant(number, setting, template, probe) for number in range(setting.sessions)]
        self._engine = engine
        self._setting = setting
        self._participants = [(one, engine.open(one.session, sink=one.take)) for one in participants]
        self._ready_at: float | None = None
        self._before = Totals()
        self._seconds = 0.0  # measured

    def perform(self) -> Iterator[None]:
        """What the users do from beginning to end; each further step is due `STEP_S` after the one before.

        They ask every session something, wait until all of them speak, and then speak and hear: first to warm up, then
        for the measurement.

        Raises:
            EngineError: a session failed.
        """
        for _, handle in self._participants:
            handle.hear("tell me a very long story", utterance="question", final=True)
        while not all(one.session.floor is Floor.SPEAKING for one, _ in self._participants):
            yield
            self._act()
        self._ready_at = self._engine.now()
        yield from self._talk(_WARM_UP_S)
        self._before = dataclasses.replace(self._engine.totals)
        for one, _ in self._participants:
            one.decisions.clear()
            one.listener.reset()
        began = self._engine.now()
        yield from self._talk(self._setting.seconds)
        self._seconds = self._engine.now() - began
        for one, _ in self._participants:
            one.stop_waiting(self._engine.now() - self._ready_at)

    @property
    def is_ready(self) -> bool:
        """Whether all sessions have spoken, so that the users speak, too."""
        return self._ready_at is not None

    def result(self) -> ScaleResult:
        """What was measured. Call it when the users have finished."""
        participants = [one for one, _ in self._participants]
        totals, before = self._engine.totals, self._before
        return ScaleResult(
            self._setting,
            decisions=tuple(1000 * wait for one in participants for wait in one.decisions),
            rates=tuple(one.listener.position / self._seconds for one in participants),
            missed_deadlines=sum(one.listener.missed for one in participants),
            passes=totals.passes - before.passes,
            judged=totals.judged - before.judged,
            judged_apart=totals.judged_apart - before.judged_apart,
            kv_bytes=max(one.kv_bytes for one in participants),
        )

    def _talk(self, seconds: float) -> Iterator[None]:
        began = self._engine.now()
        while self._engine.now() < began + seconds:
            yield
            self._act()

    def _act(self) -> None:
        now = self._engine.now()
        for one, handle in self._participants:
            deque(handle.new_events(), maxlen=0)  # nobody else reads them, and they would pile up
            heard = one.listener.listen(now)
            if heard is not None:
                handle.heard(heard)
            if self._ready_at is not None:
                one.speak(handle, now - self._ready_at)


async def measure(backend: Backend, template: Template, probe: Probe, setting: ScaleSetting) -> ScaleResult:
    """Open the sessions, wait until all of them speak, and measure.

    Raises:
        EngineFull: the backend has no room for so many sessions of `setting.max_length`.
        EngineError: a session failed.
    """
    return await perform(engine_on(backend), template, probe, setting)


async def perform(engine: Engine, template: Template, probe: Probe, setting: ScaleSetting) -> ScaleResult:
    """The same on an engine that has not been started. It is closed afterwards."""
    async with engine:
        room = Room(engine, template, probe, setting)
        for _ in room.perform():
            await asyncio.sleep(STEP_S)
        return room.result()


def largest(most: int, measured: Callable[[int], ScaleResult]) -> tuple[int, ScaleResult]:
    """The largest number of sessions up to `most` that runs in real time, and its result.

    If there is none: 0, and the result of one session.
    """
    good, bad, best = 0, most + 1, None
    number = min(4, most)
    while bad - good > 1:
        result = measured(number)
        if result.realtime:
            good, best = number, result
        else:
            bad = number
        number = min(2 * good, most) if bad > most else (good + bad) // 2
    return good, best or measured(1)
