"""Drives sessions on a backend that has a loop of its own, as vLLM has: each piece of work by its ticket.

The sessions and their rules are those of `Engine`. There, all of them wait for the pass that they share. Here, each
`Extend` is begun as soon as it is planned, and its result is taken when it is there. Two things follow:

* *The newest wins.* What a session does not want any more is abandoned while it is computed: a decision on words that
  have changed since, a token of an answer that was cut.
* *Leases.* The backend draws ahead as many tokens as may be unheard. When a lease is used up, it is renewed once half
  of it was heard, so that an answer is a few long requests rather than many short ones.
"""

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from duologue.core.backend import Backend, Extend, RequestBackend, Step
from duologue.core.base_session import Phase
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.engine.trace import Pass


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One `Extend` of a session that has been begun."""

    own: Extend  # with the session's sequence number
    extend: Extend  # with the backend's
    future: Future[Step]
    phase: Phase
    at: float  # session time at planning
    began: float


@final
class VllmEngine(Engine):
    """An engine whose sessions do not wait for each other. In use and arguments like `Engine`.

    `tick` and the other synchronous calls make a pass of everything, as `Engine` does.
    """

    def __init__(self, backend: RequestBackend, **options: Any) -> None:
        """`options` are those of `Engine`, except those about passes: the backend divides its passes itself."""
        super().__init__(backend, max_tokens_per_pass=None, **options)
        self._requests = backend
        self._jobs: dict[Handle, dict[int, _Job]] = {}
        self._drawing: dict[Handle, _Job] = {}  # the last job of each session that drew

    async def _cycle(self) -> bool:
        for handle in self.handles:
            with self._guarded(handle):
                handle.advance(self.now())
                self._abandon(handle)
                self._begin(handle)
        for handle in [handle for handle in self._jobs if not handle.is_open]:
            del self._jobs[handle]
            self._drawing.pop(handle, None)
        return False

    def _abandon(self, handle: Handle) -> None:
        """Give up work that is not wanted any more."""
        jobs = self._jobs.get(handle, {})
        for ticket, job in list(jobs.items()):
            if not handle.session.wants(ticket):
                self._requests.abandon(job.extend.seq)
                self._lose(handle, job)
        drawing, running = self._drawing.get(handle), handle.session.running
        live = None if running is None or running.finished else running.sequence.seq
        if drawing is not None and drawing.own.seq != live:
            self._requests.abandon(drawing.extend.seq)  # also what is drawn ahead
            del self._drawing[handle]

    def _lose(self, handle: Handle, job: _Job) -> None:
        del self._jobs[handle][job.own.ticket]
        handle.session.lose([job.own])

    def _begin(self, handle: Handle) -> None:
        """Begin what the session plans."""
        session, at, phase = handle.session, handle.session.now, handle.session.phase
        is_well_ahead = bool(session.deferrable_backlog)
        plan = session.plan()
        handle.sequences.apply(plan.ops)
        renamed = handle.sequences.renamed(plan.batch)
        jobs = self._jobs.setdefault(handle, {})
        for own, extend in zip(plan.batch, renamed, strict=True):
            if is_well_ahead and own.draw is not None and not self._requests.is_being_drawn(extend):
                session.lose([own])  # until more of it has been heard
                continue
            job = _Job(own, extend, self._requests.begin(extend), phase, at, self.now())
            jobs[own.ticket] = job
            if own.draw is not None:
                self._drawing[handle] = job
            asyncio.wrap_future(job.future).add_done_callback(partial(self._end, handle, job))

    def _end(self, handle: Handle, job: _Job, waited: asyncio.Future[Step]) -> None:
        """Take the result of `job`, unless it was abandoned or its session was closed."""
        if not waited.cancelled():
            waited.exception()  # it is reported by `complete`, if anybody wants to know
        if not handle.is_open or self._jobs.get(handle, {}).get(job.own.ticket) is not job:
            return
        with self._guarded(handle):
            handle.advance(self.now())
            if job.future.cancelled():  # the sequence was freed
                self._lose(handle, job)
            else:
                del self._jobs[handle][job.own.ticket]
                self._take(handle, job, self._requests.complete(job.extend, job.future))
        self._wake.set()

    def _take(self, handle: Handle, job: _Job, step: Step) -> None:
        seconds, totals = self.now() - job.began, self.totals
        totals.passes += 1
        totals.judged += bool(step.p)
        totals.tokens += len(job.own.tokens)
        totals.seconds += seconds
        events = handle.session.take([step])
        handle.record(Pass.of(job.at, job.phase, [job.own], [step], seconds, self.backend.usage()))
        handle.report(events)


def engine_on(backend: Backend, **options: Any) -> Engine:
    """The engine for sessions on `backend`, with options of `Engine`."""
    return VllmEngine(backend, **options) if isinstance(backend, RequestBackend) else Engine(backend, **options)
