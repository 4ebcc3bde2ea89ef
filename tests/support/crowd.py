"""Several scripted conversations on one engine, with a clock that goes on by one tick a pass."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import scripted
from duologue.backends.llamacpp.multi_cache import MultiCacheBackend
from duologue.core.backend import Backend, Extend
from duologue.core.config import SessionConfig
from duologue.core.events import Event, Said
from duologue.core.policy import Policy
from duologue.core.session import Session
from duologue.engine.engine import Engine
from duologue.engine.trace import Pass
from duologue.errors import DuologueError
from duologue.types import Turn
from scripted import Talk


class Guest:
    """One session, and what was told of it."""

    def __init__(self, crowd: "Crowd", session: Session, rate: float | None) -> None:
        self.session = session
        self.events: list[Event] = []
        self.passes: list[Pass] = []
        self.handle = crowd.engine.open(session, words_per_second=rate, sink=self.take)

    @property
    def failure(self) -> DuologueError | None:
        """Why the session could not go on."""
        try:
            for _ in self.handle.new_events():
                pass
        except DuologueError as error:
            return error
        return None

    def take(self, record: Pass | Event) -> None:
        (self.passes if isinstance(record, Pass) else self.events).append(record)  # type: ignore[arg-type]

    def hear(self, text: str, utterance: str = "u", *, final: bool = True) -> None:
        self.handle.report(self.session.hear(text, utterance=utterance, final=final))

    def told(self, events: list[Event]) -> None:
        self.handle.report(events)

    @property
    def said(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Said))

    def first(self, kind: type) -> Any:
        """The first event of a kind; None if there was none."""
        return next((event for event in self.events if isinstance(event, kind)), None)


class Crowd:
    """An engine with guests. `batches` has the passes of the backend, as they were asked for.

    With several `caches`, each has `capacity` and `max_seqs`.
    """

    def __init__(
        self,
        answers: Mapping[str, str] | None = None,
        *,
        tick_s: float = 0.01,
        capacity: int = 1 << 20,
        max_seqs: int = 256,
        caches: int = 1,
        **options: Any,
    ) -> None:
        self.script = Talk(answers, max_seqs=max_seqs, capacity=capacity)
        self.backend: Backend = self.script.backend
        if caches > 1:
            self.backend = MultiCacheBackend(
                [Talk(answers, max_seqs=max_seqs, capacity=capacity).backend for _ in range(caches)]
            )
        self.now = 0.0
        self.engine = Engine(self.backend, **{"max_seconds_per_pass": math.inf, **options}, clock=lambda: self.now)
        self.tick_s = tick_s
        self.batches: list[Sequence[Extend]] = []
        self._forward = self.backend.forward
        self.backend.forward = self._recorded  # type: ignore[method-assign]

    def _recorded(self, batch: Sequence[Extend]) -> Any:
        self.batches.append(batch)
        return self._forward(batch)

    def guest(
        self,
        *,
        config: SessionConfig | None = None,
        policy: Policy | None = None,
        history: Sequence[Turn] = (),
        rate: float | None = None,
    ) -> Guest:
        session = Session(self.script.template, scripted.PROBE, policy=policy, config=config, history=history)
        return Guest(self, session, rate)

    def tick(self, count: int = 1) -> int:
        """So many passes, or fewer when there is nothing left to do. Returns how many."""
        for number in range(count):
            if not self.engine.tick():
                return number
            self.now += self.tick_s
        return count

    def run(self) -> int:
        """Passes until there is nothing to do."""
        return self.tick(100_000)
