"""Runs many sessions on one backend: a synchronous core, and an asynchronous interface around it.

Each cycle of the core is the same, whoever drives it:

    plan (what all sessions feed) ─▶ ForwardPass.run (one pass on the backend) ─▶ take (results to their sessions)

Sessions may receive commands between `plan` and `take`; tickets identify the results that are still wanted. `tick` does
all three in the caller's thread. In asynchronous use the event loop's thread owns the sessions, so that commands are
carried out at once even while a pass runs, and a worker thread runs the passes. Neither needs a lock: the backend is
used by the worker while a pass runs, and by the event loop otherwise.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from duologue.core.backend import Backend
from duologue.core.base_session import BaseSession
from duologue.core.session import Session
from duologue.engine.forward_pass import ForwardPass, Portion
from duologue.engine.handle import Handle
from duologue.engine.playback_clock import PlaybackClock
from duologue.engine.scheduler import MAX_PASS_S, MAX_TOKENS_PER_PASS, Scheduler
from duologue.engine.sequence_map import SequenceMap, as_failure
from duologue.engine.trace import Pass, Sink
from duologue.errors import CacheFull, ContextOverflow, DuologueError, EngineFull, UsageError

SEQS_PER_SESSION = 2  # the output channel and an input channel
SPARE_SEQS = 2  # shared by suspended answers and compactions


class Speaker(Protocol):
    """What answers in conversations whose answers come from elsewhere."""

    def attach(self, handle: Handle) -> None:
        """Answer in the conversation of `handle` until it is closed."""

    async def aclose(self) -> None:
        """Close the connections. No conversation is open any more."""


@dataclass(slots=True)
class Totals:
    """What an engine has done so far."""

    passes: int = 0  # forward passes; where probes have one of their own, both count
    judged: int = 0  # channels that were judged, by the pass
    judged_apart: int = 0  # those whose probe was computed in a pass of its own
    tokens: int = 0  # fed
    seconds: float = 0.0  # in passes
    admitted: int = 0  # sessions
    refused: int = 0
    failed: int = 0
    evicted: int = 0  # suspended answers whose KV was given up for others


class Engine:
    """Drives sessions until they are closed, each through its `Handle`.

    In the caller's thread:

        engine = Engine(model.backend)
        talk = engine.open(model.session())
        talk.hear("what is a cat", final=True)
        while engine.tick():
            for event in talk.new_events():
                ...

    In real time, inside an event loop:

        async with Engine(model.backend) as engine:
            talk = engine.open(model.session())
            talk.hear("what is a cat", final=True)
            async for event in talk.events():
                ...

    Args:
        speaker: what answers in sessions whose answers come from elsewhere; None: the caller does, with `Handle.say`.
        max_tokens_per_pass: the most tokens of a pass, which bounds how long words can wait for it to end; None: every
            session feeds all it has in each pass (see `Scheduler`).
        max_seconds_per_pass: how long a pass should take; passes that take longer are narrowed.
        overcommit: sessions are admitted while all of them together could fill the KV cache at most this many times. At
            1, every session can always use its whole `SessionConfig.max_length`.
        clock: returns seconds and never goes back. All time comes from it; a virtual one makes runs reproducible.

    Raises:
        UsageError: a number is not positive.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        speaker: Speaker | None = None,
        max_tokens_per_pass: int | None = MAX_TOKENS_PER_PASS,
        max_seconds_per_pass: float = MAX_PASS_S,
        overcommit: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not overcommit > 0:
            raise UsageError(f"overcommit is {overcommit} and must be positive")
        self.backend = backend
        self.scheduler = Scheduler(max_tokens_per_pass, max_seconds_per_pass)
        self.totals = Totals()
        self.now = clock
        self._speaker = speaker
        self._overcommit = overcommit
        self.handles: tuple[Handle, ...] = ()  # of the open sessions, oldest first; read only
        self._leaving: list[SequenceMap] = []  # of sessions that were closed and are still to be freed
        self._free_failure: DuologueError | None = None  # the first
        self._running: ForwardPass | None = None
        self._is_closed = False
        self._wake = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None
        self._worker: ThreadPoolExecutor | None = None

    # ------------------------------------------------------------------ opening and closing

    def open(self, session: BaseSession, *, words_per_second: float | None = None, sink: Sink | None = None) -> Handle:
        """Admit a session.

        What the user has heard depends on `SessionConfig.heard`. With "shown", it is what is said, at once. With
        "reported", it is what `Handle.heard` reports, or, with `words_per_second`, what can be spoken at that rate,
        however fast it is generated. `sink` receives the events and a record of every pass; if it raises, this session
        is closed.

        Raises:
            EngineFull: there is no room for it beside the others.
            ContextOverflow: it may grow longer than the backend's sequences.
            UsageError: the engine is closed, the session is open already, or the rate is not possible with it.
        """
        if self._is_closed:
            raise UsageError("the engine is closed; make another one")
        playback = None if words_per_second is None else PlaybackClock(session, words_per_second)
        self._check_room(session)
        self.scheduler.make_room_for_probe(session.probe.length)
        sequences = SequenceMap(self.backend)
        handle = Handle(session, sequences, playback, sink, clock=self.now, wake=self._wake.set, leave=self._leave)
        self.handles += (handle,)
        self.totals.admitted += 1
        if self._speaker is not None and isinstance(session, Session) and session.is_elsewhere:
            self._speaker.attach(handle)
        self._wake.set()
        return handle

    def close(self) -> None:
        """Close all sessions and free what they hold. Call it in the thread that drives the engine.

        Raises:
            EngineError: the backend could not free what the sessions held, and no session had failed before.
        """
        self._is_closed = True
        self._running = None
        for handle in self.handles:
            handle.close()
        self._free_leaving()
        failure, self._free_failure = self._free_failure, None
        if failure is not None and not self.totals.failed:  # else it follows from a failure that was reported
            raise failure

    def _leave(self, handle: Handle) -> None:
        self.handles = tuple(other for other in self.handles if other is not handle)
        self._leaving.append(handle.sequences)
        if self._running is None:
            self._free_leaving()

    def _free_leaving(self) -> None:
        while self._leaving:
            try:
                self._leaving.pop().free_all()
            except DuologueError as error:
                self._free_failure = self._free_failure or error

    def _check_room(self, session: BaseSession) -> None:
        info, wanted = self.backend.info, session.most_entries
        if any(handle.session is session for handle in self.handles):
            raise UsageError("this session is open already; make another one")
        if wanted > info.context_length:
            raise ContextOverflow(
                f"the session may grow to {wanted} tokens, and sequences of this backend hold {info.context_length}; "
                f"make it with SessionConfig(max_length={info.context_length}), or with Model.session, which does so"
            )
        if not self.handles:
            return  # a single session makes do with whatever there is
        promised = sum(handle.session.most_entries for handle in self.handles)
        num_seqs = (len(self.handles) + 1) * SEQS_PER_SESSION + SPARE_SEQS
        if promised + wanted <= info.capacity * self._overcommit and num_seqs <= info.max_seqs:
            return
        self.totals.refused += 1
        raise EngineFull(
            f"{len(self.handles)} sessions are open and may use {promised} of {info.capacity} KV entries "
            f"(overcommit {self._overcommit:g}); one more needs {wanted}, and {num_seqs} sequences of {info.max_seqs}. "
            "Close a session, give sessions a smaller SessionConfig.max_length, or load the model for more sessions: "
            "load(sessions=…)"
        )

    # ------------------------------------------------------------------ the synchronous core

    def tick(self) -> bool:
        """Run one cycle in the caller's thread. Returns whether there was anything to feed."""
        forward_pass = self.plan()
        if forward_pass is not None:
            forward_pass.run()
            self.take(forward_pass)
        return forward_pass is not None

    def plan(self) -> ForwardPass | None:
        """The next pass, or None if there is nothing to feed. Cache operations without a pass take place at once."""
        assert self._running is None, "the previous pass has not been taken"
        now = self.now()
        for handle in self.handles:
            with self._guarded(handle):
                handle.advance(now)
        while portions := self._portions(now):
            forward_pass = ForwardPass(self.backend, portions)
            if any(portion.plan.batch for portion in portions):
                self._running = forward_pass
                return forward_pass
            forward_pass.run()
            self._hand_out(forward_pass)
        return None

    def take(self, forward_pass: ForwardPass) -> None:
        """Give the results of a pass that has run to its sessions, and free what was closed meanwhile."""
        self._running = None
        self.scheduler.count(forward_pass.num_tokens, forward_pass.seconds)
        self._hand_out(forward_pass)
        self._free_leaving()

    def due(self) -> float | None:
        """The time at which there will be something to do without new words or commands; None if never."""
        now = self.now()
        dues = [handle.due(now) for handle in self.handles]
        return min((due for due in (*dues, self.scheduler.due(self.handles)) if due is not None), default=None)

    def _portions(self, now: float) -> list[Portion]:
        portions: list[Portion] = []

        def feed(handle: Handle, limit: int | None, compaction_limit: int | None) -> int:
            session = handle.session
            with self._guarded(handle):
                phase, plan = session.phase, session.plan(limit, compaction_limit)
                if plan.batch:
                    handle.last_fed = self.totals.passes
                if plan.batch or plan.ops or handle.sequences.is_behind:
                    portions.append(Portion(handle, plan, phase, session.now))
                return max(0, sum(len(extend.tokens) for extend in plan.batch) - (compaction_limit or 0))
            return 0

        self.scheduler.divide(self.handles, now, feed)
        return portions

    def _hand_out(self, forward_pass: ForwardPass) -> None:
        now, usage = self.now(), self.backend.usage()
        self.totals.tokens += forward_pass.num_tokens
        self.totals.passes += forward_pass.num_passes
        self.totals.judged += forward_pass.num_judged
        self.totals.judged_apart += forward_pass.num_judged_apart
        self.totals.seconds += forward_pass.seconds
        for portion in forward_pass.portions:
            handle, batch = portion.handle, portion.plan.batch
            if not handle.is_open:
                continue
            with self._guarded(handle):
                handle.advance(now)
                if portion.error is not None:
                    self._recover(portion, portion.error, forward_pass)
                elif batch:
                    events = handle.session.take(portion.steps)
                    seconds = forward_pass.seconds
                    handle.record(Pass.of(portion.at, portion.phase, batch, portion.steps, seconds, usage))
                    handle.report(events)

    def _recover(self, portion: Portion, error: DuologueError, forward_pass: ForwardPass) -> None:
        """Handle a portion that failed. If the cache was full, make room, so that it is planned again.

        A session that has nothing to give up waits until the others hold less: what all were promised fits.
        """
        session = portion.handle.session
        session.lose(portion.plan.batch)
        if not isinstance(error, CacheFull):
            raise error
        others_fed = any(other.error is None and other.num_tokens_in(error) for other in forward_pass.portions)
        full = portion.handle.sequences.named(error.seqs)
        if not (self._evict(error) or session.make_room(full) or others_fed):
            raise error

    def _evict(self, full: CacheFull) -> bool:
        """Give up one suspended answer, of the session that was fed least recently. Returns whether there was one.

        A running answer is never given up for another session, and neither is anything outside of the full cache.
        """
        for handle in sorted(self.handles, key=lambda handle: handle.last_fed):
            if full.is_about(handle.sequences.seqs.values()) and handle.session.evict():
                self.totals.evicted += 1
                return True
        return False

    @contextmanager
    def _guarded(self, handle: Handle) -> Iterator[None]:
        """Confine a failure to the session that caused it."""
        try:
            yield
        except Exception as error:
            if handle.is_open:
                self.totals.failed += 1
                handle.fail(as_failure(error, "the conversation failed"))

    # ------------------------------------------------------------------ the asynchronous interface

    async def __aenter__(self) -> "Engine":
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="duologue-backend")
        self._driver = asyncio.create_task(self._drive(), name="duologue-engine")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """As `close`, in asynchronous use: let the running pass end first, and stop the worker. Can be repeated.

        Raises:
            EngineError: see `close`.
        """
        if self._driver is None or self._worker is None:
            return
        driver, self._driver, self._is_closed = self._driver, None, True
        for handle in self.handles:
            handle.close()
        driver.cancel()
        try:
            await asyncio.gather(driver, return_exceptions=True)
            await asyncio.get_running_loop().run_in_executor(self._worker, self.close)  # after the running pass
        finally:
            self._worker.shutdown()
            if self._speaker is not None:
                await self._speaker.aclose()

    async def _drive(self) -> None:
        try:
            while True:
                self._wake.clear()
                if not await self._cycle():
                    await self._rest()
        except Exception as error:  # a defect of the engine: nobody may be left waiting
            self.totals.failed += 1
            self._is_closed = True
            for handle in self.handles:
                handle.fail(as_failure(error, "the engine failed", "; please report it"))

    async def _cycle(self) -> bool:
        """Run one cycle. Returns whether there was anything to feed."""
        forward_pass = self.plan()
        if forward_pass is not None:
            # Shielded: a pass that was planned must take place. `aclose` waits for it in the same worker.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._worker, forward_pass.run))
            self.take(forward_pass)
        return forward_pass is not None

    async def _rest(self) -> None:
        """Wait for a command, or until a session has something to do."""
        due = self.due()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if due is None else max(0.0, due - self.now())):
                await self._wake.wait()
