"""A conversation in real time: the only clock, and the only asyncio, around a session.

The loop's thread owns the session; one worker thread owns the backend. While a pass runs, the session can be told
anything at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from duologue.core.backend import Backend
from duologue.core.events import Event
from duologue.core.session import Session
from duologue.core.trace import Sink
from duologue.engines.direct import DirectEngine, Job
from duologue.errors import UsageError

CHARACTERS_PER_WORD = 6.0
_PACE_S = 0.05  # how often what has been heard is brought up to date


class Live:
    """Runs a session until it is closed. Commands are the session's own; their events come out of `events`.

    With `words_per_second`, the user hears answers at that rate, as speech, however fast they are generated: the
    session must have been made with `SessionConfig(heard="reported")`. Without, what is said is heard at once.
    """

    def __init__(
        self, backend: Backend, session: Session, *, words_per_second: float | None = None, sink: Sink | None = None
    ) -> None:
        if words_per_second is not None and words_per_second <= 0:
            raise UsageError(f"words_per_second {words_per_second} must be positive; None hears at once")
        if (words_per_second is None) != (session.config.heard == "shown"):
            raise UsageError('words_per_second goes with SessionConfig(heard="reported"), and only with that')
        self.session = session
        self._engine = DirectEngine(backend, session, sink=sink)
        self._rate = None if words_per_second is None else words_per_second * CHARACTERS_PER_WORD
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duologue-backend")
        self._told: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._started_at = 0.0
        self._hearing: tuple[int, float] | None = None  # the answer being heard, and up to where (characters)
        self._paced_at = 0.0

    async def __aenter__(self) -> "Live":
        self._started_at = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._drive())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let the pass under way end, free everything, stop the worker. Can be called more than once."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.close)
        self._thread.shutdown()
        self._told.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        """What happens, as it happens, until the conversation is closed.

        Raises:
            EngineError: the backend failed; the conversation is over.
        """
        while (event := await self._told.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> None:
        """See `Session.hear`."""
        self._advance()
        self._tell(self.session.hear(text, utterance=utterance, final=final))

    def respond(self) -> None:
        """See `Session.respond`."""
        self._advance()
        self._tell(self.session.respond())

    def stop(self) -> None:
        """See `Session.stop`."""
        self._advance()
        self._tell(self.session.stop())

    def resume(self) -> None:
        """See `Session.resume`."""
        self._advance()
        self._tell(self.session.resume())

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._started_at

    def _tell(self, events: list[Event]) -> None:
        for event in self._engine.report(events):
            self._told.put_nowait(event)
        self._wake.set()

    def _advance(self) -> None:
        """Bring the session's time, and what the user has heard by now, up to date."""
        now = self._now()
        events = self.session.advance(now)
        if self._rate is not None:
            events += self._hear_on(now)
        if events:
            self._tell(events)

    def _hear_on(self, now: float) -> list[Event]:
        assert self._rate is not None
        elapsed, self._paced_at = now - self._paced_at, now
        running = self.session.running
        if running is None or not running.is_released:
            self._hearing = None
            return []
        answer, position = self._hearing or (-1, 0.0)
        if answer != running.id:
            position = float(running.num_heard)
        position = min(position + elapsed * self._rate, float(running.num_said))  # speech cannot run ahead
        self._hearing = (running.id, position)
        return self.session.heard(int(position), answer=running.id)

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
                await self._run(loop, job)
                self._advance()
                for event in self._engine.finish(job):
                    self._told.put_nowait(event)
        except Exception as error:
            self._told.put_nowait(error)

    async def _run(self, loop: asyncio.AbstractEventLoop, job: Job) -> None:
        """The pass, in the worker; a cancelled conversation still waits for it, since it owns the backend."""
        future = loop.run_in_executor(self._thread, job.run)
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def _rest(self) -> None:
        """Until somebody says something, a wait of the session is over, or more has been heard."""
        waits = []
        if self.session.next_deadline is not None:
            waits.append(max(0.0, self.session.next_deadline - self._now()))
        if self._rate is not None and self.session.running is not None:
            waits.append(_PACE_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), min(waits, default=None))
