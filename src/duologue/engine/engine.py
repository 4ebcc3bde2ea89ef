"""Many conversations in real time on one backend: the only clock, and the only asyncio, around their sessions.

The event loop's thread owns the sessions, so a command is carried out, and what it leads to is told, at once, also
while a pass runs. One worker thread owns the backend and does nothing but passes. Neither needs a lock: they meet when
a pass is handed over, and when it comes back.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from duologue.core.backend import Backend
from duologue.core.events import Event
from duologue.core.policy import Policy
from duologue.core.session import BaseSession, Session
from duologue.core.trace import Pass, Sink
from duologue.core.transitions import Interruptible
from duologue.engine.playback_clock import Pace
from duologue.engine.scheduler import MAX_SECONDS_PER_PASS, MAX_TOKENS_PER_PASS, Scheduler
from duologue.errors import DuologueError, EngineError, UsageError
from duologue.text.template import Template
from duologue.types import Turn


class BatchEngine:
    """Runs sessions until they are closed, each through its `Handle`.

        async with BatchEngine(model.backend) as engine:
            talk = engine.open(model.session())
            talk.hear("what is a cat", final=True)
            async for event in talk.events():
                ...

    Args:
        max_tokens_per_pass, max_seconds_per_pass, overcommit: see `Scheduler`.
        clock: gives seconds that never go back; by default the event loop's.

    `scheduler` says who is in, and has the totals of what was done; it is to be read only. `handles` are those of the
    sessions that are open.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_tokens_per_pass: int = MAX_TOKENS_PER_PASS,
        max_seconds_per_pass: float = MAX_SECONDS_PER_PASS,
        overcommit: float = 1.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.scheduler = Scheduler(
            backend,
            max_tokens_per_pass=max_tokens_per_pass,
            max_seconds_per_pass=max_seconds_per_pass,
            overcommit=overcommit,
        )
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duologue-backend")
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.handles: set[Handle] = set()

    async def __aenter__(self) -> "BatchEngine":
        if self._clock is None:
            self._clock = asyncio.get_running_loop().time
        self._task = asyncio.create_task(self._drive(), name="duologue-engine")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all sessions, let the pass under way end, stop the worker. Can be called more than once.

        Raises:
            EngineError: the backend could not free what the sessions held, and had not failed before.
        """
        if self._task is None:
            return
        task, self._task = self._task, None
        for handle in tuple(self.handles):
            handle.end()
        task.cancel()
        try:
            await asyncio.gather(task, return_exceptions=True)
            # In the same worker, so behind the pass under way.
            await asyncio.get_running_loop().run_in_executor(self._thread, self.scheduler.close)
        finally:
            self._thread.shutdown()
        if (
            self.scheduler.trouble is not None and not self.scheduler.totals.failed
        ):  # else it follows from what was told already
            raise self.scheduler.trouble

    def open(
        self, session: BaseSession, *, words_per_second: float | None = None, sink: Sink | None = None
    ) -> "Handle":
        """Let a session in.

        What the user has heard: with `SessionConfig(heard="shown")`, what is said, at once. With "reported", what
        `Handle.heard` is told (a player knows how far it got); or, with `words_per_second`, what can be said at that
        rate, however fast it is generated. `sink` takes the events and a record of every pass; if it raises in a pass,
        this session is over.

        Raises:
            EngineFull: there is no room for it beside the others.
            UsageError: the engine is not open, the session is open already, or the rate does not go with it.
        """
        if self._task is None:
            raise UsageError("the engine is not open; use it inside `async with BatchEngine(...) as engine:`")
        return Handle(self, session, None if words_per_second is None else Pace(session, words_per_second), sink)

    def now(self) -> float:
        """Seconds on the engine's clock."""
        assert self._clock is not None, "it is set when the engine opens"
        return self._clock()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    async def _drive(self) -> None:
        loop, scheduler = asyncio.get_running_loop(), self.scheduler
        try:
            while self._task is not None:  # not for ever: `wait_for` may swallow being cancelled when it is woken too
                self._wake.clear()
                job = scheduler.prepare(self.now())
                if job is None:
                    await self._rest()
                    continue
                # Shielded: a pass that was planned must take place. `aclose` waits for it, in the same worker.
                await asyncio.shield(loop.run_in_executor(self._thread, job.run))
                scheduler.finish(job, self.now())
        except Exception as error:  # a defect of ours: nobody is left waiting for ever
            failure = EngineError(f"the engine failed: {type(error).__name__}: {error}; please report it")
            failure.__cause__ = error
            self.scheduler.totals.failed += 1
            for handle in tuple(self.handles):
                handle.fail(failure)

    async def _rest(self) -> None:
        """Until somebody says something, or a wait of a session is over."""
        due = self.scheduler.due(self.now())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), None if due is None else max(0.0, due - self.now()))


class Handle:
    """A session that is open on an engine. Commands are the session's own, and return at once; what comes of them is
    told by `events`. To be used in the event loop's thread.
    """

    def __init__(self, engine: BatchEngine, session: BaseSession, pace: Pace | None, sink: Sink | None) -> None:
        self.session = session  # to be read
        self.num_told = 0  # events so far
        self._engine = engine
        self._pace = pace
        self._sink = sink
        self._told: asyncio.Queue[Event | DuologueError | None] = asyncio.Queue()
        self._failure: DuologueError | None = None
        self._is_open = True
        self._member = engine.scheduler.admit(session, sink=self._tell, failed=self.fail, pace=pace, now=engine.now())
        engine.handles.add(self)
        engine.wake()

    async def events(self) -> AsyncIterator[Event]:
        """What happens, as it happens, until the session is closed. Each event is given out once.

        Raises:
            EngineError: the session could not go on; it is over.
        """
        while (event := await self._told.get()) is not None:
            if isinstance(event, DuologueError):
                self._told.put_nowait(event)  # whoever asks again is told again
                raise event
            yield event
        self._told.put_nowait(None)

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> None:
        """See `Session.hear`. Like all commands, it raises `UsageError` when the session is closed.

        Raises:
            EngineError: the session could not go on; it is over.
        """
        self._command(lambda: self.session.hear(text, utterance=utterance, final=final))

    @property
    def is_protected(self) -> bool:
        """Whether words may not cut the running answer."""
        running = self.session.running
        return running is not None and running.interruptible is not Interruptible.YES

    def retract(self, utterance: str) -> None:
        """See `Session.retract`. Raises `UsageError` for another kind of session."""
        session = self._duplex
        self._command(lambda: session.retract(utterance))

    def heard(self, position: int, *, answer: int | None = None) -> None:
        """See `Session.heard`; for who plays the answers. Not together with `words_per_second`."""
        if self._pace is not None:
            raise UsageError("with words_per_second, what has been heard goes by the clock; leave one of them out")
        self._command(lambda: self.session.heard(position, answer=answer))

    def take_reports(self) -> None:
        """From now on what has been heard is what `heard` is told, also where it went by the clock."""
        if self._pace is not None:
            self._pace.is_paused, self._pace = True, None

    def hear_out(self, position: int | None = None) -> None:
        """The running answer has been heard up to `position` (None: all that was said), whatever the clock says."""
        running = self.session.running
        if running is not None:
            until = running.num_said if position is None else min(position, running.num_said)
            self._command(lambda: self.session.heard(until, answer=running.id))

    def edit(self, history: Sequence[Turn], *, template: Template | None = None) -> None:
        """See `Session.edit`. Raises `UsageError` when another kind of session is given a template."""
        if template is None:
            self._command(lambda: self.session.edit(history))
        else:
            session = self._duplex
            self._command(lambda: session.edit(history, template=template))

    def respond(self) -> None:
        """See `Session.respond`."""
        self._command(self.session.respond)

    def stop(self) -> None:
        """See `Session.stop`."""
        self._command(self.session.stop)

    def resume(self) -> None:
        """See `Session.resume`."""
        self._command(self.session.resume)

    def protect(self, interruptible: Interruptible) -> None:
        """See `Session.protect`. Raises `UsageError` for another kind of session."""
        session = self._duplex
        self._command(lambda: session.protect(interruptible))

    def limit(self, max_answer: int) -> None:
        """See `Session.limit`. Raises `UsageError` for another kind of session."""
        session = self._duplex
        self._command(lambda: session.limit(max_answer))

    def adjust(self, policy: Policy) -> None:
        """See `Session.adjust`. Raises `UsageError` for another kind of session."""
        session = self._duplex
        self._command(lambda: session.adjust(policy))

    def pause(self, is_paused: bool) -> None:
        """Nobody hears for the time being, or somebody does again. Without `words_per_second` it changes nothing."""
        if self._pace is not None:
            self._pace.is_paused = is_paused
            self._engine.wake()

    def close(self) -> None:
        """End the session at once; what it holds is freed as soon as the pass under way has ended."""
        self.end()
        self._engine.scheduler.remove(self._member)

    def end(self) -> None:
        """Take no more commands, and tell no more events."""
        if self._is_open:
            self._is_open = False
            self._engine.handles.discard(self)
            self._told.put_nowait(self._failure)

    def fail(self, failure: DuologueError) -> None:
        """The session cannot go on; whoever waits for events or gives a command is told why."""
        if self._is_open:
            self._failure = failure
            self.end()

    def _tell(self, record: Pass | Event) -> None:
        if self._sink is not None:
            self._sink(record)
        if self._is_open and not isinstance(record, Pass):
            self.num_told += 1
            self._told.put_nowait(record)

    @property
    def _duplex(self) -> Session:
        if not isinstance(self.session, Session):
            raise UsageError(f"a session of kind {type(self.session).__name__} has no policy to change")
        return self.session

    def _command(self, command: Callable[[], list[Event] | None]) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._is_open:
            raise UsageError("the session is not open any more; open another one with BatchEngine.open")
        self._member.advance(self._engine.now())
        self._member.report(command() or ())
        self._engine.wake()
