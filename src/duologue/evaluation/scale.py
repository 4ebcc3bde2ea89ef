"""How many live sessions one machine holds: everybody speaks and hears at the same time, in real time.

Each session has a history of its own, speaks `tokens_per_second` without end, and hears somebody all the while: every
two seconds five more words of an utterance that is dropped when it has twenty. The passes are real, probes included;
only the verdicts are set, so that what is measured does not depend on what the model thinks of the words, and answers
do not end.

The *decision latency* runs from the words handed in to the decision told. A *deadline* is missed when a listener who
hears a token every 1 / `tokens_per_second` seconds has to wait for the next; an answer may be one second ahead.
"""

import asyncio
import dataclasses
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from duologue.core.backend import Backend
from duologue.core.config import SessionConfig
from duologue.core.events import Decided, Event
from duologue.core.prompt import Probe
from duologue.core.session import Session
from duologue.core.trace import Pass
from duologue.core.transitions import Floor
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.evaluation.people import Listener, Taught, Verdict, history, words
from duologue.evaluation.quantiles import percentile
from duologue.text.template import Template
from duologue.types import SLICE_PERIOD_S, InputState

MAX_P95_MS = 300.0
MIN_SHARE = 0.99  # of the wanted rate that the slowest session must have: one short wait in twenty seconds is allowed
_SLICES = 4  # of an utterance
_WORDS = 5  # of a slice
_STEP_S = 0.02  # how often the listeners go on
_WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What is to be measured."""

    sessions: int
    context_tokens: int  # history of each session when it begins
    seconds: float = 20.0  # measured, after a warm-up
    tokens_per_second: float = 5.0
    seed: int = 0

    @property
    def max_length(self) -> int:
        """Tokens that a session may grow to: history, what it says while it is measured, and room for the words."""
        grown = self.context_tokens + int(self.tokens_per_second * (self.seconds + 60)) + 128
        return max(grown * 8 // 7, self.context_tokens * 8 // 5) + 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured. Times are in milliseconds, rates in tokens a second."""

    setting: Setting
    decisions: tuple[float, ...]
    rates: tuple[float, ...]  # of each session
    missed_deadlines: int
    passes: int  # while it was measured
    kv_bytes: int  # most that was held

    @property
    def realtime(self) -> bool:
        """Whether every session was served as fast as it should be."""
        enough = MIN_SHARE * self.setting.tokens_per_second
        return percentile(self.decisions, 95) < MAX_P95_MS and min(self.rates) >= enough

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        rates = self.rates
        return {
            "sessions": self.setting.sessions,
            "context_tokens": self.setting.context_tokens,
            "decision_ms": {f"p{p}": round(percentile(self.decisions, p), 1) for p in (50, 95)},
            "tokens_per_second": {
                "min": round(min(rates), 2),
                "median": round(statistics.median(rates), 2),
                "total": round(sum(rates), 1),
            },
            "missed_deadlines": self.missed_deadlines,
            "realtime": self.realtime,
            "kv_bytes": self.kv_bytes,
            "passes": self.passes,
            "seconds": self.setting.seconds,
        }


class _Person:
    """One session, who is heard in it, and what was measured of it."""

    def __init__(self, number: int, setting: Setting, template: Template, probe: Probe) -> None:
        self.decisions: list[float] = []
        self.kv_bytes = 0
        self._verdict = Verdict()
        self._chance = random.Random(f"{setting.seed}/{number}")
        self._next_slice_at = SLICE_PERIOD_S * number / setting.sessions  # not in chorus
        self._num_slices = 0
        self._text = ""
        self._undecided_since: float | None = None
        self.session = Session(
            dataclasses.replace(template, stop_tokens=frozenset()),  # answers do not end
            probe,
            policy=Taught(verdict=self._verdict),
            config=SessionConfig(
                max_length=setting.max_length,
                max_answer=setting.max_length,
                heard="reported",
                lookahead=max(1, round(setting.tokens_per_second)),
            ),
            history=history(template, self._chance, setting.context_tokens),
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
        """Say the next slice if it is due at `now`, seconds since everybody was ready."""
        if now < self._next_slice_at:
            return
        self.give_up_waiting(now)
        utterance, number = divmod(self._num_slices, _SLICES)
        new = words(self._chance, _WORDS)
        self._text = f"{self._text} {new}" if number else new
        is_last = number == _SLICES - 1
        self._verdict.state = InputState.IGNORE if is_last else InputState.INCOMPLETE
        self._num_slices += 1
        self._next_slice_at += SLICE_PERIOD_S
        self._undecided_since = now
        handle.hear(self._text, utterance=f"u{utterance}", final=is_last)

    def give_up_waiting(self, now: float) -> None:
        """A decision that is not there yet counts as if it came now."""
        if self._undecided_since is not None:
            self.decisions.append(now - self._undecided_since)
            self._undecided_since = None


class _Room:
    """Everybody on one engine."""

    def __init__(self, engine: Engine, people: list[_Person]) -> None:
        self._engine = engine
        self._people = [(person, engine.open(person.session, sink=person.take)) for person in people]
        self._ready_at: float | None = None

    async def get_ready(self) -> None:
        """Everybody is asked something; until something of every answer has been heard."""
        for _, handle in self._people:
            handle.hear("tell me a very long story", utterance="question", final=True)
        while not all(person.session.floor is Floor.SPEAKING for person, _ in self._people):
            await self._go_on()
        self._ready_at = self._engine.now()

    async def talk(self, seconds: float) -> float:
        """Everybody speaks and hears. Returns how many seconds it was."""
        began = self._engine.now()
        while self._engine.now() < began + seconds:
            await self._go_on()
        return self._engine.now() - began

    async def _go_on(self) -> None:
        await asyncio.sleep(_STEP_S)
        now = self._engine.now()
        for person, handle in self._people:
            heard = person.listener.listen(now)
            if heard is not None:
                handle.heard(heard)
            if self._ready_at is not None:
                person.speak(handle, now - self._ready_at)


async def measure(backend: Backend, template: Template, probe: Probe, setting: Setting) -> Outcome:
    """Open the sessions, wait until all of them speak, and measure.

    Raises:
        EngineFull: the backend has no room for so many sessions of `setting.max_length`.
        EngineError: a session failed.
    """
    people = [_Person(number, setting, template, probe) for number in range(setting.sessions)]
    async with Engine(backend) as engine:
        room = _Room(engine, people)
        await room.get_ready()
        warm_up = await room.talk(_WARM_UP_S)
        passes = engine.totals.passes
        for person in people:
            person.decisions.clear()
            person.listener.reset()
        seconds = await room.talk(setting.seconds)
        for person in people:
            person.give_up_waiting(warm_up + seconds)
        return Outcome(
            setting,
            decisions=tuple(1000 * wait for person in people for wait in person.decisions),
            rates=tuple(person.listener.position / seconds for person in people),
            missed_deadlines=sum(person.listener.missed for person in people),
            passes=engine.totals.passes - passes,
            kv_bytes=max(person.kv_bytes for person in people),
        )


def largest(most: int, measured: Callable[[int], Outcome]) -> tuple[int, Outcome]:
    """The largest number of sessions up to `most` that runs in real time, and what was measured with it.

    If there is none, 0 and what was measured with one.
    """
    good, bad, best = 0, most + 1, None
    number = min(4, most)
    while bad - good > 1:
        outcome = measured(number)
        if outcome.realtime:
            good, best = number, outcome
        else:
            bad = number
        number = min(2 * good, most) if bad > most else (good + bad) // 2
    return good, best or measured(1)
