"""Sound over `/v1/duplex`: binary messages of 16-bit samples both ways, beside the JSON messages (docs/protocol.md).

The server listens, recognises, decides and speaks. A client only plays what it gets, and drops what it has not played
when it receives `cut`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from duologue.core.events import Finished, Said
from duologue.errors import EngineError
from duologue.server.conversation import Conversation, EventsLost
from duologue.server.settings import VoiceSettings
from duologue.server.voice import Voices, VoiceStream
from duologue.server.wire import CloseCode, Wire
from duologue.voice.sound import Samples, from_pcm16, to_pcm16
from duologue.voice.timeline import KINDS, Row
from duologue.voice.voice import VoiceConfig

_MOST_WAITING = 500  # messages that wait for a client
log = logging.getLogger("duologue.server")


class TooSlow(EngineError):
    """A client does not read what it is sent."""


class DuplexVoice:
    """The sound of one connection, until it is closed. `failed` is awaited once if the voice fails.

    Raises:
        EngineFull: no voice slot is free.
    """

    def __init__(
        self,
        conversation: Conversation,
        settings: VoiceSettings,
        voices: Voices,
        wire: Wire,
        *,
        failed: Callable[[Exception], Awaitable[None]],
    ) -> None:
        self._conversation = conversation
        self._wire = wire
        self._out: asyncio.Queue[Row | bytes] = asyncio.Queue(_MOST_WAITING)
        config = VoiceConfig(rate=settings.rate, latency_s=settings.latency_ms / 1000, fades=False)
        self._failed = failed
        self._stream = VoiceStream(
            conversation.handle,
            voices,
            config,
            note=self._note,
            give=self._give,
            failed=self._fail,
            hear_sound=voices.sounds_for(conversation.handle),
        )
        self.leave = self._stream.leave
        self.aclose = self._stream.aclose

    def start(self) -> None:
        """Listen and speak from now on."""
        self._stream.start(self._follow, self._send)

    async def hear(self, data: bytes) -> None:
        """Take sound from the client. Waits if it arrives faster than real time.

        Raises:
            BadData: the sound ends within a sample.
        """
        await self._stream.pacer.hear(from_pcm16(data))

    def _take_up(self) -> None:
        """Speak an answer that is already running, from where it has been heard."""
        session, voice = self._conversation.handle.session, self._stream.voice
        running = session.running
        if running is None or not running.is_released:
            return
        rest = running.text[running.num_heard : running.num_said]
        voice.take(Said(session.now, running.id, running.num_heard, rest))
        if running.finished is not None:
            voice.take(Finished(session.now, running.id, running.finished))

    async def _follow(self) -> None:
        await self._conversation.settled()  # else events would say again what is taken up
        self._take_up()
        events = self._conversation.events
        with contextlib.suppress(EventsLost):  # the connection's own reader reports it
            async for _, event in events.after(events.newest):
                self._stream.voice.take(event)

    async def _fail(self, error: Exception) -> None:
        if isinstance(error, TooSlow):
            await self._wire.close(CloseCode.POLICY, "too slow; connect again")
        else:
            log.error("a voice failed", extra={"session": self._conversation.id[:6], "error": str(error)})
            await self._failed(error)

    def _give(self, samples: Samples) -> None:
        if samples.any():
            self._put(to_pcm16(samples))

    async def _send(self) -> None:
        while True:
            item = await self._out.get()
            await (self._wire.send_bytes(item) if isinstance(item, bytes) else self._wire.send(item))

    def _note(self, row: Row) -> None:
        if row["type"] in KINDS:
            self._put({"type": "voice", "what": row.pop("type"), **row})

    def _put(self, item: Row | bytes) -> None:
        if self._out.full():
            self._stream.voice.failure = TooSlow("the client does not take what it is sent")
        else:
            self._out.put_nowait(item)
