"""One session on one backend: its plan is carried out, one pass at a time, and the results are handed back.

`tick` does it all in the caller's thread. Those who must not wait (a terminal, a server) call the three parts:
`prepare` and `finish` beside the session, `Job.run` in the thread that owns the backend. Between them the session may
be told anything; its tickets sort out what of the result is still wanted.
"""

import time
from collections.abc import Callable

from duologue.core.backend import Backend, Step
from duologue.core.cache import Plan
from duologue.core.events import Event
from duologue.core.session import BaseSession, Phase
from duologue.core.trace import Pass, Sink
from duologue.engine.sequence_map import Carrier, failure
from duologue.errors import CacheFull, DuologueError


class Job:
    """Cache changes and one forward pass. `run` may be called in another thread than the session's."""

    def __init__(self, engine: "DirectEngine", plan: Plan, phase: Phase, at: float) -> None:
        self.plan = plan
        self.phase = phase
        self.at = at
        self.steps: list[Step] = []
        self.num_passes = 0
        self.seconds = 0.0
        self.error: Exception | None = None
        self._engine = engine

    def run(self) -> None:
        """Do it. What goes wrong is kept for `finish`."""
        began = self._engine.clock()
        try:
            self._engine.carry_out(self)
        except Exception as error:
            self.error = error
        self.seconds = self._engine.clock() - began


class DirectEngine:
    """Drives one session."""

    def __init__(
        self,
        backend: Backend,
        session: BaseSession,
        *,
        sink: Sink | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.backend = backend
        self.session = session
        self.clock = clock
        self._sink = sink
        self.carrier = Carrier(backend)

    def tick(self) -> list[Event] | None:
        """One forward pass, if there is anything to run. Returns its events; None when there was nothing to do.

        Raises:
            EngineError: the backend failed, or has no room even for this session alone. The session can go on.
        """
        job = self.prepare()
        if job is None:
            return None
        job.run()
        return self.finish(job)

    def prepare(self) -> Job | None:
        """The next pass, or None when there is nothing to feed. Cache changes alone are carried out at once."""
        phase, plan = self.session.phase, self.session.plan()
        if not plan.batch:
            self.carrier.carry_out(plan.ops)
            return None
        return Job(self, plan, phase, self.session.now)

    def finish(self, job: Job) -> list[Event]:
        """Hand the results of a job that has run to the session. If the cache was full, room is made instead.

        Raises:
            EngineError: see `tick`.
        """
        if job.error is not None:
            self.session.lose(job.plan.batch)
            if isinstance(job.error, CacheFull) and self.session.make_room():
                return []
            raise job.error
        events = self.session.take(job.steps)
        if self._sink is not None:
            usage = self.backend.usage()
            self._sink(Pass.of(job.at, job.phase, job.plan.batch, job.seconds, usage, job.num_passes))
        return self.report(events)

    def report(self, events: list[Event]) -> list[Event]:
        """Hand events to the sink; returns them. For those that a command returned, outside of a pass."""
        if self._sink is not None:
            for event in events:
                self._sink(event)
        return events

    def carry_out(self, job: Job) -> None:
        """Change the cache as planned and run the pass.

        Raises:
            EngineError: the backend failed; what its library raised is the cause.
        """
        self.carrier.carry_out(job.plan.ops)
        try:
            batch = self.carrier.renamed(job.plan.batch)
            job.num_passes = self.backend.num_passes(batch)
            job.steps = self.backend.forward(batch)
        except DuologueError:
            raise
        except Exception as error:
            raise failure(self.backend, error) from error

    def close(self) -> None:
        """Free all that the session holds."""
        self.session.close()
        self.carrier.free_all()
