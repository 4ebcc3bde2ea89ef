"""A conversation in real time: the only clock, and the only asyncio, around a session.

The loop's thread owns the session; one worker thread owns the backend. While a pass runs, the session can be told
anything at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from duologue.core.backend import Backend
from duologue.core.events import Event
from duologue.core.session import Session
from duologue.core.trace import Sink
from duologue.engines.direct import DirectEngine
from duologue.errors import DuologueError, EngineError, UsageError
from duologue.types import Turn

CHARACTERS_PER_WORD = 6.0
_PACE_S = 0.05  # how often what has been heard is brought up to date


class Live:
    """Runs a session until it is closed. Commands are the session's own; their events come out of `events`.

    What the user has heard: with `SessionConfig(heard="shown")`, what is said, at once. With "reported", what `heard`
    is told (a player knows how far it got); or, with `words_per_second`, what can be said at that rate, however fast it
    is generated.
    `clock` gives seconds that never go back; by default it is the event loop's.
    """

    def __init__(
        self,
        backend: Backend,
        session: Session,
        *,
        words_per_second: float | None = None,
        sink: Sink | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if words_per_second is not None and not 0 < words_per_second < float("inf"):
            raise UsageError(f"words_per_second {words_per_second} must be positive; None hears at once")
        if words_per_second is not None and session.config.heard == "shown":
            raise UsageError('words_per_second goes with SessionConfig(heard="reported"), and only with that')
        self.session = session
        self._engine = DirectEngine(backend, session, sink=sink)
        self._rate = None if words_per_second is None else words_per_second * CHARACTERS_PER_WORD
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duologue-backend")
        self._told: asyncio.Queue[Event | DuologueError | None] = asyncio.Queue()
        self._failure: DuologueError | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._started_at = 0.0
        self._hearing: tuple[int, float] | None = None  # the answer being heard, and up to where (characters)
        self._paced_at = 0.0

    async def __aenter__(self) -> "Live":
        self._clock = self._clock or asyncio.get_running_loop().time
        self._started_at = self._clock()
        self._task = asyncio.create_task(self._drive(), name="duologue-live")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let the pass under way end, free everything, stop the worker. Can be called more than once.

        Raises:
            EngineError: the backend could not free what the session held, and had not failed before.
        """
        if self._task is None:
            return
        task, self._task = self._task, None
        try:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.close)
        except Exception as error:
            if self._failure is None:  # otherwise it follows from what was reported already
                raise _translated(error) from error
        finally:
            self._thread.shutdown()
            self._told.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        """What happens, as it happens, until the conversation is closed. Each event is given out once.

        Raises:
            EngineError: the backend failed; the conversation is over.
        """
        while (event := await self._told.get()) is not None:
            if isinstance(event, DuologueError):
                self._told.put_nowait(event)  # whoever asks again is told again
                raise event
            yield event
        self._told.put_nowait(None)

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> None:
        """See `Session.hear`. Like all commands, it raises `UsageError` when the conversation is not open.

        Raises:
            EngineError: the backend has failed; the conversation is over.
        """
        self._command(lambda: self.session.hear(text, utterance=utterance, final=final))

    def heard(self, position: int, *, answer: int | None = None) -> None:
        """See `Session.heard`; for who plays the answers. Not together with `words_per_second`."""
        if self._rate is not None:
            raise UsageError("with words_per_second, what has been heard goes by the clock; leave one of them out")
        self._command(lambda: self.session.heard(position, answer=answer))

    def edit(self, history: Sequence[Turn]) -> None:
        """See `Session.edit`."""
        self._command(lambda: self.session.edit(history))

    def respond(self) -> None:
        """See `Session.respond`."""
        self._command(self.session.respond)

    def stop(self) -> None:
        """See `Session.stop`."""
        self._command(self.session.stop)

    def resume(self) -> None:
        """See `Session.resume`."""
        self._command(self.session.resume)

    def _command(self, command: Callable[[], list[Event]]) -> None:
        if self._failure is not None:
            raise self._failure
        if self._task is None:
            raise UsageError("the conversation is not open; talk to it inside `async with Live(...) as live:`")
        self._advance()
        self._tell(command())
        self._wake.set()

    def _now(self) -> float:
        assert self._clock is not None, "it is set when the conversation opens"
        return self._clock() - self._started_at

    def _tell(self, events: list[Event]) -> None:
        for event in self._engine.report(events):
            self._told.put_nowait(event)

    def _advance(self) -> None:
        """Bring the session's time, and what the user has heard by now, up to date."""
        now = self._now()
        self._tell(self.session.advance(now))
        if self._rate is not None:
            self._tell(self._hear_on(now, self._rate))

    def _hear_on(self, now: float, rate: float) -> list[Event]:
        """The user reads on, `rate` characters a second."""
        elapsed, self._paced_at = now - self._paced_at, now
        running = self.session.running
        if running is None or not running.is_released:
            self._hearing = None
            return []
        answer, position = self._hearing or (-1, 0.0)
        if answer != running.id:
            # it begins, or goes on, now: time that passed before does not count
            answer, position, elapsed = running.id, float(running.num_heard), 0.0
        position = min(position + elapsed * rate, float(running.num_said))  # speech cannot run ahead
        self._hearing = (answer, position)
        return self.session.heard(int(position), answer=answer)

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                self._advance()
                job = self._engine.prepare()
                if job is None:
                    await self._rest()
                    continue
                # Shielded: a pass that was planned must take place. `aclose` waits for it, in the same worker.
                await asyncio.shield(loop.run_in_executor(self._thread, job.run))
                self._advance()
                for event in self._engine.finish(job):
                    self._told.put_nowait(event)
        except Exception as error:
            self._failure = _translated(error)
            self._told.put_nowait(self._failure)

    async def _rest(self) -> None:
        """Until somebody says something, a wait of the session is over, or more has been heard."""
        waits = []
        if self.session.next_deadline is not None:
            waits.append(max(0.0, self.session.next_deadline - self._now()))
        running = self.session.running
        if self._rate is not None and running is not None and running.is_released:
            waits.append(_PACE_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), min(waits, default=None))


def _translated(error: Exception) -> DuologueError:
    """An error that nobody put into words yet, as one of ours; the original is its cause."""
    if isinstance(error, DuologueError):
        return error
    failure = EngineError(f"the conversation failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
