"""One session on one backend, in the caller's thread: carry out its plan, run the pass, hand back the results."""

import time
from collections.abc import Callable

from duologue.core.backend import Backend, Extend
from duologue.core.events import Event
from duologue.core.plan import Fork, Plan, Truncate
from duologue.core.session import Session
from duologue.core.trace import Pass, Sink
from duologue.errors import CacheFull
from duologue.types import Seq


class DirectEngine:
    """Drives one session. Nothing is retried but a pass for which room could be made."""

    def __init__(
        self,
        backend: Backend,
        session: Session,
        *,
        sink: Sink | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.backend = backend
        self.session = session
        self._sink = sink
        self._clock = clock
        self._seqs: dict[Seq, Seq] = {}  # the session's numbers to the backend's names

    def tick(self) -> list[Event] | None:
        """One forward pass, if there is anything to run. Returns its events; None when there was nothing to do.

        Raises:
            CacheFull: the backend has no room even for this session's answer alone.
            EngineError: the backend failed. The session is as it was and can go on.
        """
        session = self.session
        while True:
            phase, plan = session.phase, session.plan()
            if not plan.batch:
                self._change(plan)
                return None
            began = self._clock()
            try:
                self._change(plan)
                steps = self.backend.forward([_renamed(extend, self._seqs) for extend in plan.batch])
            except CacheFull:
                session.lose(plan.batch)
                if not session.make_room():
                    raise
                continue
            except Exception:
                session.lose(plan.batch)
                raise
            seconds = self._clock() - began
            events = session.take(steps)
            if self._sink is not None:
                usage = self.backend.usage()
                self._sink(Pass.of(session.now, phase, plan.batch, seconds, usage))
            self.report(events)
            return events

    def report(self, events: list[Event]) -> list[Event]:
        """Hand events to the sink; returns them. For those that a command returned, outside of a pass."""
        if self._sink is not None:
            for event in events:
                self._sink(event)
        return events

    def close(self) -> None:
        """Free all that the session holds."""
        self._change(self.session.close())

    def _change(self, plan: Plan) -> None:
        for op in plan.ops:
            match op:
                case Fork(seq, parent, length):
                    self._seqs[seq] = self.backend.fork(None if parent is None else self._seqs[parent], length)
                case Truncate(seq, length):
                    self.backend.truncate(self._seqs[seq], length)
                case _:
                    self.backend.free(self._seqs.pop(op.seq))


def _renamed(extend: Extend, seqs: dict[Seq, Seq]) -> Extend:
    return Extend(seqs[extend.seq], extend.tokens, draw=extend.draw, watch=extend.watch, ticket=extend.ticket)
