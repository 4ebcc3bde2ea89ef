"""A session among others: its time, who is told what happens in it, and what it holds on the backend."""

from collections.abc import Callable, Iterable

from duologue.core.backend import Backend
from duologue.core.events import Event
from duologue.core.session import BaseSession
from duologue.core.trace import Sink
from duologue.engine import playback_clock
from duologue.engine.sequence_map import Carrier
from duologue.errors import DuologueError


class Member:
    """One session of a `Scheduler`.

    Args:
        sink: takes events and the records of passes. If it raises, the session is over.
        failed: told why, when the session cannot go on; it is out of the scheduler by then.
        now: the scheduler's time.
    """

    def __init__(
        self,
        session: BaseSession,
        backend: Backend,
        *,
        sink: Sink,
        failed: Callable[[DuologueError], None],
        pace: playback_clock.Pace | None,
        now: float,
    ) -> None:
        self.session = session
        self.carrier = Carrier(backend)
        self.sink = sink
        self.failed = failed
        self.is_open = True
        self.last_fed = 0  # number of the pass in which anything of it was fed last
        self.waiting_since: int | None = None  # number of the pass since which not all of it could be fed
        self._pace = pace
        self._began = now - session.now

    def advance(self, now: float) -> None:
        """It is `now` for the scheduler."""
        self.report(self.session.advance(max(self.session.now, now - self._began)))
        if self._pace is not None:
            self.report(self._pace.hear_on())

    def report(self, events: Iterable[Event]) -> None:
        """Hand events to the sink."""
        for event in events:
            self.sink(event)

    def due(self, now: float) -> float | None:
        """The scheduler's time at which `advance` changes something; None if that takes words or commands."""
        deadline = self.session.next_deadline
        due = None if deadline is None else deadline + self._began
        if self._pace is not None and self._pace.is_hearing:
            return now + playback_clock.STEP_S if due is None else min(due, now + playback_clock.STEP_S)
        return due
