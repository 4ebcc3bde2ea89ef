"""`/v1/realtime`: OpenAI's Realtime protocol for text, with duplex behind it; docs/realtime.md says how."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from starlette.websockets import WebSocket

from duologue.engine.playback_clock import CHARACTERS_PER_WORD
from duologue.errors import BadData, EngineError, EngineFull, UsageError
from duologue.server.config import ServerConfig
from duologue.server.conversation import Conversation, EventsLost
from duologue.server.conversations import Conversations
from duologue.server.duplex.settings import Settings
from duologue.server.duplex.voice import Voices
from duologue.server.realtime.commands import Commands
from duologue.server.realtime.dialogue import Dialogue
from duologue.server.realtime.errors import Rejection
from duologue.server.realtime.messages import event_id, read
from duologue.server.realtime.outbox import Outbox
from duologue.server.realtime.voice import RealtimeVoice
from duologue.server.wire import Wire

_GOING_AWAY, _POLICY, _RESTART, _TRY_LATER = 1001, 1008, 1012, 1013
_MOST_WAITING = 64  # messages that are behind a commit; more wait in the network
_ABOUT_SOUND = ("session.update", "input_audio_buffer.clear")  # what is appended behind these is not what was before
_LAST_WORDS_S = 2.0  # for a client to take what is left
log = logging.getLogger("duologue.server")


class Realtime:
    """One connection. The conversation lives as long as it does."""

    def __init__(self, socket: WebSocket, conversations: Conversations, config: ServerConfig) -> None:
        self._conversations = conversations
        self._config = config
        self._is_duplex = socket.query_params.get("duplex", "") in ("1", "true")
        self._wire = Wire(socket, config, is_busy=self._is_busy)
        self._outbox = Outbox(self._wire)
        self.dialogue: Dialogue | None = None  # to be read
        self._talk: Conversation | None = None
        self._num_taken = 0  # events of the session that the dialogue has
        self._is_over = False
        self._voice: RealtimeVoice | None = None  # from the first sound on
        self._orders: asyncio.Queue[dict[str, Any] | BadData] = asyncio.Queue(_MOST_WAITING)  # not carried out yet

    async def run(self) -> None:
        """Until the client goes, or the conversation ends."""
        try:
            talk = self._conversations.open(Settings(hearing=self._config.words_per_second))
        except (EngineFull, UsageError) as error:
            await self._refuse(error)
            return
        self._talk = talk
        talk.attach(self)
        dialogue = self.dialogue = Dialogue(
            talk,
            self._conversations.model,
            self._outbox.put,
            system=self._config.system,
            rate=self._config.words_per_second * CHARACTERS_PER_WORD,
            most_tokens=self._config.max_answer,
            now=self._conversations.engine.now,
            later=asyncio.get_running_loop().call_later,
            is_duplex=self._is_duplex,
            has_voice=self._conversations.voices is not None,
        )
        self._outbox.put("session.created", session=dialogue.config.as_json(dialogue.id, dialogue.model.name))
        try:
            await self._exchange(talk, dialogue)
        finally:
            if self._voice is not None:
                await self._voice.aclose()
            dialogue.close()
            talk.close("ended")

    def replaced(self) -> None:
        """Nobody else can have the conversation: its name is not told."""

    async def _exchange(self, talk: Conversation, dialogue: Dialogue) -> None:
        """Both ways at once, until one of them ends; then the other does."""
        sending = asyncio.create_task(self._outbox.run(), name="duologue-realtime-sender")
        telling = asyncio.create_task(self._tell(talk, dialogue), name="duologue-realtime-teller")
        commands = Commands(dialogue, speak=lambda: self._speak(commands))
        reading = asyncio.create_task(self._read(commands), name="duologue-realtime-reader")
        taking = asyncio.create_task(self._take(commands), name="duologue-realtime-taker")
        losing = asyncio.create_task(self._outbox.overflow.wait(), name="duologue-realtime-overflow")
        tasks = (sending, telling, reading, taking, losing)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if telling.done() and telling.exception() is None:
                await asyncio.wait((sending,), timeout=_LAST_WORDS_S)
                await self._wire.close(_RESTART if talk.events.ended == "shutdown" else _GOING_AWAY, "it is over")
        finally:
            self._is_over = True
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        if self._outbox.overflow.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._wire.close(_POLICY, "too slow")

    async def _tell(self, talk: Conversation, dialogue: Dialogue) -> None:
        """What the session tells."""
        reason = ""
        try:
            async for number, event in talk.events.after(0):
                dialogue.take(event)
                if self._voice is not None:
                    self._voice.take(event)
                self._num_taken = number
                if number == talk.events.newest:
                    dialogue.settle()
        except EventsLost as lost:
            reason = str(lost)
        reason = reason or talk.events.ended or "closed"
        error = Rejection(f"the conversation is over: {reason}", code="session_ended", kind="server_error")
        self._outbox.put("error", error=error.as_json(None))
        self._outbox.finish()

    async def _read(self, commands: Commands) -> None:
        """What the client sends. Sound goes to the voice as it comes. All else is carried out in its order, by
        `_take`, so that what is behind a commit finds its words: a `response.create` answers them, a
        `response.cancel` behind that is about that response, and so on, without a rule for each pair."""
        async for message in self._wire.messages():
            assert not isinstance(message, bytes), "binary messages are not taken here"
            await self._outbox.room()
            if await self._hear(message, commands):
                continue
            await self._orders.put(message)
            if not isinstance(message, BadData) and message["type"] in _ABOUT_SOUND:
                await self._orders.join()
        await self._orders.join()

    async def _hear(self, message: dict[str, Any] | BadData, commands: Commands) -> bool:
        """Sound, and where it ends, on a server with a voice. Returns whether that was all about the message."""
        voices = self._conversations.voices
        if voices is None or isinstance(message, BadData):
            return False
        with self._refusing(message):
            if message["type"] == "input_audio_buffer.append":
                fields = read(message, is_duplex=self._is_duplex)
                await self._speaking(commands, voices).append(fields["audio"])
                return True
            if message["type"] == "input_audio_buffer.commit":
                await self._orders.join()  # one at a time: what waits to be recognised stays small
                self._speaking(commands, voices).commit()
            return False
        return True  # it was refused

    async def _take(self, commands: Commands) -> None:
        """Carry out what the client asks for."""
        while True:
            message = await self._orders.get()
            await self._outbox.room()
            with self._refusing(message):
                await self._carry_out(message, commands)
            self._orders.task_done()

    async def _carry_out(self, message: dict[str, Any] | BadData, commands: Commands) -> None:
        await self._catch_up()
        if isinstance(message, BadData):
            raise Rejection(str(message), code="invalid_json")
        if message["type"] == "input_audio_buffer.commit" and self._voice is not None:
            words = await self._voice.committed()
            await self._catch_up()
            if words is not None:
                commands.commit(words, self._voice.pop_failure(words))
            return
        if message["type"] == "input_audio_buffer.clear" and self._voice is not None:
            self._voice.clear()
        commands.take(message)
        if self._voice is not None:
            self._voice.adjust()

    @contextmanager
    def _refusing(self, message: dict[str, Any] | BadData) -> Iterator[None]:
        """What cannot be done is told, and the connection goes on."""
        try:
            yield
        except (UsageError, EngineError) as error:
            rejection = error if isinstance(error, Rejection) else Rejection(str(error))
            if isinstance(error, EngineError):
                rejection = Rejection(str(error), code="server_error", kind="server_error")
            name = None if isinstance(message, BadData) else event_id(message)
            self._outbox.put("error", error=rejection.as_json(name))

    def _speak(self, commands: Commands) -> None:
        assert self._conversations.voices is not None, "nothing else makes a session speak"
        self._speaking(commands, self._conversations.voices)

    def _speaking(self, commands: Commands, voices: Voices) -> RealtimeVoice:
        if self._voice is None:
            assert self.dialogue is not None, "it is there before anything is taken"
            self._voice = RealtimeVoice(self.dialogue, commands, voices)
        return self._voice

    async def _catch_up(self) -> None:
        """Until all that has happened was told: what the client asks for is judged by how things are."""
        talk = self._talk
        while talk is not None and talk.is_open and not self._is_over and self._num_taken < talk.handle.num_told:
            await asyncio.sleep(0)

    async def _refuse(self, error: Exception) -> None:
        is_full = isinstance(error, EngineFull)
        code = "rate_limit_exceeded" if is_full else "server_error"
        refusal = Rejection(str(error), code=code, kind="server_error").as_json(None)
        await self._wire.send({"type": "error", "event_id": "event_0", "error": refusal})
        await self._wire.close(_TRY_LATER if is_full else _GOING_AWAY, "full" if is_full else "not possible")

    def _is_busy(self) -> bool:
        return self._talk is not None and self._talk.is_open and self._talk.handle.session.running is not None
