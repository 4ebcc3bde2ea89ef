"""`/v1/realtime`: OpenAI's Realtime protocol, with duplex behind it. docs/realtime.md is its specification."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from starlette.websockets import WebSocket

from duologue.errors import BadData, DuologueError, EngineError, EngineFull, UsageError
from duologue.server.authentication import client_of
from duologue.server.config import ServerConfig
from duologue.server.conversation import Conversation, EventsLost
from duologue.server.conversations import Conversations
from duologue.server.fields import Rejection
from duologue.server.realtime.commands import Commands
from duologue.server.realtime.items import new_id
from duologue.server.realtime.messages import ServerFault, as_error, event_id, read_event
from duologue.server.realtime.session import RealtimeSession
from duologue.server.realtime.voice import RealtimeVoice
from duologue.server.settings import ConversationSettings
from duologue.server.voice import needed
from duologue.server.wire import CloseCode, Wire

MOST_WAITING = 4096  # events for a client that reads slowly
_ROOM = 256  # while more events wait, no requests are carried out
_MOST_ORDERS = 64  # messages that wait behind a commit; further ones wait in the network
_ABOUT_SOUND = ("session.update", "input_audio_buffer.clear")  # these divide the appended sound
_LAST_WORDS_S = 2.0  # within which a client reads the remaining events


class Outbox:
    """Queues events, and sends them as fast as the client takes them."""

    def __init__(self, wire: Wire) -> None:
        self.overflow = asyncio.Event()  # events were lost: the client no longer knows the conversation
        self._wire = wire
        self._waiting: deque[dict[str, Any]] = deque()
        self._changed = asyncio.Event()
        self._is_over = False

    def put(self, kind: str, /, **fields: Any) -> None:
        """Queue an event of type `kind`."""
        if len(self._waiting) >= MOST_WAITING:
            self.overflow.set()
        else:
            self._waiting.append({"type": kind, "event_id": new_id("event"), **fields})
        self._changed.set()

    def finish(self) -> None:
        """Accept no more events."""
        self._is_over = True
        self._changed.set()

    async def run(self) -> None:
        """Send until the client is gone, or until everything is sent after `finish`."""
        while True:
            self._changed.clear()
            if self._waiting:
                if not await self._wire.send(self._waiting.popleft()):
                    return
                self._changed.set()
            elif self._is_over:
                return
            else:
                await self._changed.wait()

    async def room(self) -> None:
        """Wait until the client has read most of what was sent. A client that does not read cannot request more."""
        while len(self._waiting) > _ROOM:
            self._changed.clear()
            await self._changed.wait()


class Realtime:
    """One connection. The conversation ends with it."""

    def __init__(self, socket: WebSocket, conversations: Conversations, config: ServerConfig) -> None:
        self._conversations = conversations
        self._config = config
        self._is_duplex = socket.query_params.get("duplex", "") in ("1", "true")
        self._client = client_of(socket, config)
        self._wire = Wire(socket, config, is_busy=self._is_busy)
        self._outbox = Outbox(self._wire)
        self.session: RealtimeSession | None = None  # read only
        self._conversation: Conversation | None = None
        self._num_taken = 0  # events of the conversation that the session has processed
        self._is_over = False
        self._voice: RealtimeVoice | None = None  # from the first sound on
        self._orders: asyncio.Queue[dict[str, Any] | BadData] = asyncio.Queue(_MOST_ORDERS)  # not carried out yet

    async def run(self) -> None:
        """Serve the client until it leaves or the conversation ends."""
        try:
            settings = ConversationSettings(hearing=self._config.words_per_second)
            conversation = self._conversation = await self._conversations.open(settings, client=self._client)
        except (EngineFull, UsageError) as error:
            await self._refuse(error)
            return
        try:
            conversation.attach(self)
            session = self.session = RealtimeSession(
                conversation,
                self._conversations.model,
                self._config,
                self._outbox.put,
                long_texts=self._conversations.long_texts,
                is_duplex=self._is_duplex,
                has_voice=self._conversations.voices is not None,
            )
            session.tell_config("session.created")
            await self._exchange(conversation, session)
        finally:
            if self._voice is not None:
                await self._voice.aclose()
            if self.session is not None:
                self.session.close()
            conversation.close("ended")
            self.session = self._conversation = self._voice = None  # nothing of it is kept

    @property
    def has_begun(self) -> bool:
        """Whether it has a conversation: always, unless it is about to end."""
        return True

    async def make_way(self) -> None:
        """Never needed; see `has_begun`."""

    def replaced(self) -> None:
        """Never needed: nobody else knows the name of the conversation."""

    async def _exchange(self, conversation: Conversation, session: RealtimeSession) -> None:
        """Send and receive until one of them ends; then end the other."""
        commands = Commands(session, speak=self._speaking)
        telling = asyncio.create_task(self._tell(conversation, session), name="duologue-realtime-teller")
        sending = asyncio.create_task(self._outbox.run(), name="duologue-realtime-sender")
        others = (self._read(commands), self._take(session, commands), self._outbox.overflow.wait())
        tasks = (sending, telling, *(asyncio.create_task(other, name="duologue-realtime") for other in others))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if telling.done() and telling.exception() is None:
                await asyncio.wait((sending,), timeout=_LAST_WORDS_S)
                is_restart = conversation.events.ended == "shutdown"
                await self._wire.close(CloseCode.RESTART if is_restart else CloseCode.GOING_AWAY, "it is over")
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
                    await self._wire.close(CloseCode.POLICY, "too slow")

    async def _tell(self, conversation: Conversation, session: RealtimeSession) -> None:
        """Translate the conversation's events."""
        reason = ""
        try:
            async for number, event in conversation.events.after(0):
                session.take(event)
                if self._voice is not None:
                    self._voice.take(event)
                self._num_taken = number
                if number == conversation.events.newest:
                    session.settle()
        except EventsLost as lost:
            reason = str(lost)
        except DuologueError:  # an event asked for a command, and the conversation has ended meanwhile
            if conversation.is_open:
                raise
        reason = reason or conversation.events.ended or "closed"
        session.tell_error(ServerFault(f"the conversation is over: {reason}", code="session_ended"))
        self._outbox.finish()

    async def _read(self, commands: Commands) -> None:
        """Read what the client sends. Sound goes to the voice as it arrives; `_take` carries out the rest in order.

        A message behind a commit therefore finds the words of the commit: a `response.create` answers them, a following
        `response.cancel` refers to that response, and so on, without a rule for each pair."""
        async for message in self._wire.messages():
            assert not isinstance(message, bytes), "binary messages are not accepted here"
            await self._outbox.room()
            if await self._hear(message, commands):
                continue
            await self._orders.put(message)
            if not isinstance(message, BadData) and message["type"] in _ABOUT_SOUND:
                await self._orders.join()
        await self._orders.join()

    async def _hear(self, message: dict[str, Any] | BadData, commands: Commands) -> bool:
        """On a server with a voice, take sound and note where it ends. Returns whether the message is dealt with."""
        if self._conversations.voices is None or isinstance(message, BadData):
            return False
        with self._refusing(message):
            if message["type"] == "input_audio_buffer.append":
                audio = read_event(message, is_duplex=self._is_duplex)["audio"]
                await self._speaking(commands).append(audio)
                return True
            if message["type"] == "input_audio_buffer.commit":
                await self._orders.join()  # one at a time, so that little sound waits for recognition
                self._speaking(commands).commit()
            return False
        return True  # it was refused

    async def _take(self, session: RealtimeSession, commands: Commands) -> None:
        """Carry out the client's requests."""
        while True:
            message = await self._orders.get()
            await self._outbox.room()
            with self._refusing(message):
                await self._carry_out(message, session, commands)
            self._orders.task_done()

    async def _carry_out(self, message: dict[str, Any] | BadData, session: RealtimeSession, commands: Commands) -> None:
        if isinstance(message, BadData):
            await self._catch_up()
            raise Rejection(str(message), code="invalid_json")
        await session.prepare(message["type"], message.get("session") or message.get("response"))
        await self._catch_up()
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
        """Report requests that are refused, and continue."""
        try:
            yield
        except (UsageError, EngineError) as error:
            name = None if isinstance(message, BadData) else event_id(message)
            self._outbox.put("error", error=as_error(error, name))

    def _speaking(self, commands: Commands) -> RealtimeVoice:
        if self._voice is None:
            self._voice = RealtimeVoice(commands.session, commands, needed(self._conversations.voices))
        return self._voice

    async def _catch_up(self) -> None:
        """Wait until all events have been translated, because requests depend on the current state."""
        conversation = self._conversation
        while (
            conversation is not None
            and conversation.is_open
            and not self._is_over
            and self._num_taken < conversation.handle.num_told
        ):
            await asyncio.sleep(0)

    async def _refuse(self, error: EngineFull | UsageError) -> None:
        is_full = isinstance(error, EngineFull)
        fault = ServerFault(str(error), code="rate_limit_exceeded" if is_full else "server_error")
        await self._wire.send({"type": "error", "event_id": "event_0", "error": as_error(fault)})
        code = CloseCode.TRY_LATER if is_full else CloseCode.GOING_AWAY
        await self._wire.close(code, "full" if is_full else "not possible")

    def _is_busy(self) -> bool:
        return self._conversation is not None and self._conversation.is_speaking
