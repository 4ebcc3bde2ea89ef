"""Sound over `/v1/duplex`: binary messages of 16-bit samples both ways, beside the JSON messages. docs/protocol.md.

The server listens, recognises, decides and speaks; a client that plays what it gets, and drops what it has not played
when it is told `cut`, has a voice.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable

from duologue.core.events import Finished, Said
from duologue.errors import EngineError, EngineFull, UsageError
from duologue.server.conversation import Conversation, EventsLost
from duologue.server.duplex.settings import VoiceSettings
from duologue.server.pacing import Pacer
from duologue.server.wire import Wire
from duologue.voice.engines.defaults import Engines
from duologue.voice.sound import Samples, from_pcm16, to_pcm16
from duologue.voice.timeline import KINDS, Row, Timeline
from duologue.voice.voice import Voice, VoiceConfig

_MOST_WAITING = 500  # messages that a client has not taken
log = logging.getLogger("duologue.server")


class Voices:
    """The engines that all conversations by voice share, and how many of them there may be at a time."""

    def __init__(self, engines: Engines, most: int) -> None:
        self.engines = engines
        self._most = most
        self._num = 0

    def enter(self) -> None:
        """One more conversation has a voice. Raises `EngineFull` if as many have one as may."""
        if self._num >= self._most:
            raise EngineFull(f"all {self._most} places for voices are taken; try again later, or without voice")
        self._num += 1

    def leave(self) -> None:
        """One fewer."""
        self._num -= 1


class TooSlow(EngineError):
    """A client does not take what is said to it."""


class VoiceLine:
    """The sound of one connection, until it is closed."""

    def __init__(
        self,
        talk: Conversation,
        settings: VoiceSettings,
        voices: Voices,
        wire: Wire,
        *,
        failed: Callable[[Exception], Awaitable[None]],
    ) -> None:
        """Take a place. `failed` is told when it cannot go on; it has given the place back then.

        Raises:
            EngineFull: as many conversations have a voice as may have one.
        """
        voices.enter()
        self._has_place = True
        self._voices = voices
        self._talk = talk
        self._wire = wire
        self._failed = failed
        self._out: asyncio.Queue[Row | bytes] = asyncio.Queue(_MOST_WAITING)
        engines = voices.engines
        self._voice = Voice(
            talk.handle,
            engines.detector(),
            engines.recogniser,
            engines.synthesiser,
            config=VoiceConfig(rate=settings.rate, latency_s=settings.latency_ms / 1000, fades=False),
            timeline=Timeline(self._tell, keeps=False),
            name=f"voice-{secrets.token_hex(3)}",
        )
        self._pacer = Pacer(self._voice, self._give)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen and speak from now on."""
        self._task = asyncio.create_task(self._run(self._talk.events.newest), name="duologue-voice")

    async def hear(self, data: bytes) -> None:
        """Sound came from the client. Waits if it comes faster than it can have been said.

        Raises:
            BadData: half a sample.
        """
        await self._pacer.hear(from_pcm16(data))

    def leave(self) -> None:
        """Give the place back: whoever was speaking has ended."""
        if self._has_place:
            self._has_place = False
            self._voices.leave()
            self._voice.hang_up()

    async def aclose(self) -> None:
        """The connection has gone."""
        self.leave()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, begin: int) -> None:
        try:
            async with self._voice as voice, asyncio.TaskGroup() as group:
                self._take_up(voice)
                group.create_task(self._follow(begin))
                group.create_task(self._send())
                group.create_task(self._pacer.run())
        except* TooSlow:
            await self._wire.close(1008, "too slow; connect again")
        except* Exception as errors:
            (error, *_) = errors.exceptions
            log.error("a voice failed", extra={"session": self._talk.id[:6], "error": str(error)})
            self.leave()
            await self._failed(error)

    def _take_up(self, voice: Voice) -> None:
        """An answer that is running already goes on from where it was heard."""
        session = self._talk.handle.session
        running = session.running
        if running is None or not running.is_released:
            return
        rest = running.text[running.num_heard : running.num_said]
        voice.take(Said(session.now, running.id, running.num_heard, rest))
        if running.finished is not None:
            voice.take(Finished(session.now, running.id, running.finished))

    async def _follow(self, begin: int) -> None:
        with contextlib.suppress(EventsLost):  # the other reader is told
            async for _, event in self._talk.events.after(begin):
                self._voice.take(event)

    def _give(self, samples: Samples) -> None:
        if samples.any():
            self._put(to_pcm16(samples))

    async def _send(self) -> None:
        while True:
            item = await self._out.get()
            await (self._wire.send_bytes(item) if isinstance(item, bytes) else self._wire.send(item))

    def _tell(self, row: Row) -> None:
        if row["type"] in KINDS:
            self._put({"type": "voice", "what": row.pop("type"), **row})

    def _put(self, item: Row | bytes) -> None:
        if self._out.full():
            self._voice.failure = TooSlow("the client does not take what it is sent")
        else:
            self._out.put_nowait(item)


def needed(voices: Voices | None) -> Voices:
    """The voices of a server. Raises `UsageError` if it has none."""
    if voices is None:
        raise UsageError("this server has no voice; it is started with --voice auto")
    return voices
