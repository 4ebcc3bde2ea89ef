"""`/v1/duplex`: the events of a session over a WebSocket, and nothing else. docs/protocol.md is its specification.

client: start · hear · heard · respond · stop · resume · edit · settings · ping · end
server: started · every event of `duologue.core.events` with its number · error · pong · closing
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from starlette.websockets import WebSocket

from duologue.core.events import as_dict
from duologue.errors import BadData, EngineError, EngineFull, UsageError
from duologue.server.authentication import client_of
from duologue.server.config import ServerConfig
from duologue.server.conversation import Conversation, EventsLost
from duologue.server.conversations import Conversations
from duologue.server.duplex.voice import DuplexVoice
from duologue.server.fields import Field, Table, read
from duologue.server.long_texts import PER_TURN
from duologue.server.settings import ConversationSettings, VoiceSettings, read_turns
from duologue.server.voice import needed
from duologue.server.wire import CloseCode, Wire

_LAST_WORDS_S = 1.0  # within which a client that makes way reads why
MESSAGES: Mapping[str, Table] = {
    "start": {"session": Field(str), "after": Field(int), "history": Field(list), "settings": Field(dict)},
    "hear": {
        "text": Field(str, is_needed=True),
        "utterance": Field(str, "user"),
        "final": Field(bool, False),
    },
    "heard": {"position": Field(int, is_needed=True), "answer": Field(int)},
    "respond": {},
    "stop": {},
    "resume": {},
    "edit": {"history": Field(list, is_needed=True)},
    "settings": {"eagerness": Field(float), "interruptible": Field(object), "voice": Field(object)},
    "ping": {},
    "end": {},
}
"""What a client may send; each may also have an `id`, which comes back in what answers the message."""


class Duplex:
    """One connection."""

    def __init__(self, socket: WebSocket, conversations: Conversations, config: ServerConfig) -> None:
        self._conversations = conversations
        self._config = config
        self._client = client_of(socket, config)
        self._route = socket.query_params.get("route", "")
        self._wire = Wire(socket, config, is_busy=self._is_busy)
        self._conversation: Conversation | None = None
        self._voice: DuplexVoice | None = None
        self._sender: asyncio.Task[None] | None = None
        self._is_over = False

    async def run(self) -> None:
        """Serve the client until it leaves or the conversation ends."""
        try:
            async for message in self._wire.messages():
                if isinstance(message, BadData):
                    await self._say_error("bad_message", message, None)
                elif isinstance(message, bytes):
                    await self._take_sound(message)
                else:
                    await self._take(message)
                if self._is_over:
                    break
        finally:
            await self._use_voice(None)
            if self._sender is not None:
                self._sender.cancel()
                with suppress(asyncio.CancelledError):
                    await self._sender
            if self._conversation is not None:
                self._conversation.detach(self, self._conversations.engine.now())
                self._conversation = None

    @property
    def has_begun(self) -> bool:
        """Whether it has a conversation."""
        return self._conversation is not None

    async def make_way(self) -> None:
        """Close the connection, on which no conversation has begun, to make room for others.

        They do not wait for a client that does not read; the keepalive ends its connection.
        """
        self._is_over = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._wire.close(CloseCode.TRY_LATER, "nothing was sent, and others wait")

    def replaced(self) -> None:
        """End this connection, because another one has taken over the conversation."""
        if self._voice is not None:
            self._voice.leave()
        if self._sender is not None:
            self._sender.cancel()
        self._sender = asyncio.create_task(self._give_way(), name="duologue-duplex-replaced")

    async def _give_way(self) -> None:
        await self._use_voice(None)
        await self._wire.close(CloseCode.TAKEN_OVER, "another connection has this conversation")

    async def _take_sound(self, data: bytes) -> None:
        assert self._voice is not None, "the wire accepts sound only while there is a voice"
        try:
            await self._voice.hear(data)
        except BadData as error:
            await self._say_error("bad_message", error, None)

    async def _take(self, message: dict[str, Any]) -> None:
        kind, number = message["type"], message.get("id")
        number = number if isinstance(number, (str, int)) else None
        if kind not in MESSAGES:
            return  # it belongs to a later version of the protocol
        try:
            await self._carry_out(kind, read(MESSAGES[kind], message), number)
        except EngineFull as error:
            await self._say_error("full", error, number)
            if self._conversation is None:
                self._is_over = True
                await self._wire.close(CloseCode.TRY_LATER, "full")
        except UsageError as error:
            await self._say_error("bad_request", error, number)
        except EngineError as error:
            await self._say_error("failed", error, number)

    async def _carry_out(self, kind: str, fields: dict[str, Any], number: str | int | None) -> None:
        if kind == "ping":
            await self._wire.send({"type": "pong", **({} if number is None else {"id": number})})
            return
        if kind == "start":
            await self._start(fields)
            return
        conversation = self._conversation or await self._start(read(MESSAGES["start"], {}))
        async with conversation.order:
            if conversation.owner not in (None, self):
                return  # another connection has it, and the client says there again what was not begun
            if not isinstance(number, int):
                await self._command(conversation, kind, fields)
            elif conversation.begin_message(number):  # otherwise, it arrived before the connection was lost
                try:
                    await self._command(conversation, kind, fields)
                finally:
                    conversation.end_message(number)

    async def _command(self, conversation: Conversation, kind: str, fields: dict[str, Any]) -> None:
        handle = conversation.handle
        match kind:
            case "hear":
                handle.hear(fields["text"], utterance=fields["utterance"], final=fields["final"])
            case "heard":
                handle.heard(fields["position"], answer=fields["answer"])
            case "respond":
                handle.respond()
            case "stop":
                handle.stop()
            case "resume":
                handle.resume()
            case "edit":
                turns = read_turns(fields["history"], most=self._conversations.most_turns)
                size = sum(len(turn.text) + PER_TURN for turn in turns)
                run = self._conversations.long_texts.run
                laid_out = await run(self._client, size, conversation.session.lay_out, turns)
                handle.edit(turns, laid_out=laid_out)
            case "settings":
                await self._change(conversation, fields)
            case "end":
                conversation.close("ended")
                self._is_over = True
                await self._wire.send({"type": "closing", "reason": "ended"})
                await self._wire.close(CloseCode.NORMAL, "ended")

    async def _start(self, fields: dict[str, Any]) -> Conversation:
        if self._conversation is not None:
            raise UsageError("the conversation has already begun; end it, or connect again for another one")
        is_new = fields["session"] is None
        conversation = await (self._open(fields) if is_new else self._find(fields["session"]))
        await conversation.settled()
        if not conversation.is_open:
            raise EngineFull("the conversation has just been closed here; connect again")
        events = conversation.events
        newest = events.first if conversation.is_new else events.newest
        conversation.attach(self)  # the previous owner gives its voice back
        try:
            voice = self._make_voice(conversation, conversation.settings.voice)
        except BaseException:
            if is_new:
                conversation.close("no voice")
            conversation.detach(self, self._conversations.engine.now())
            raise
        self._conversation = conversation
        after = fields["after"]
        is_whole = after is not None and not is_new and events.has(after)
        begin = after if is_whole else newest
        await self._wire.send(
            {
                "type": "started",
                "session": conversation.id,
                "number": begin,
                "model": self._conversations.model.name,
                "resumed": not is_new,
                "missed": not is_new and not is_whole,
                "taken": conversation.taken,
                "settings": conversation.settings.as_json(),
                "has_voice": self._conversations.voices is not None,
                **conversation.snapshot(),
            }
        )
        self._sender = asyncio.create_task(self._send_events(conversation, begin), name="duologue-duplex-sender")
        await self._use_voice(voice)
        return conversation

    async def _open(self, fields: dict[str, Any]) -> Conversation:
        default = ConversationSettings(hearing=self._config.words_per_second)
        settings = ConversationSettings.from_json(fields["settings"] or {}, before=default)
        history = read_turns(fields["history"] or [], most=self._conversations.most_turns)
        return await self._conversations.open(settings, history, client=self._client, route=self._route)

    async def _find(self, session: str) -> Conversation:
        found = await self._conversations.find(session, self._client)
        if found is None:
            raise UsageError("no conversation has this name any longer; start without one")
        return found

    def _make_voice(self, conversation: Conversation, settings: VoiceSettings | None) -> DuplexVoice | None:
        if settings is None:
            return None
        voices = needed(self._conversations.voices)
        return DuplexVoice(conversation, settings, voices, self._wire, failed=self._lose_voice)

    async def _use_voice(self, voice: DuplexVoice | None) -> None:
        """Speak and listen with `voice` instead of the current voice."""
        before, self._voice = self._voice, voice
        self._wire.accepts_sound = voice is not None
        if before is not None:
            await before.aclose()
        if voice is not None:
            voice.start()

    async def _lose_voice(self, error: Exception) -> None:
        """Continue without a voice, because it failed. The task of the voice calls this, so it is not awaited."""
        conversation = self._conversation
        assert conversation is not None, "a voice has a conversation"
        self._voice, self._wire.accepts_sound = None, False
        if conversation.is_open:
            conversation.settings = replace(conversation.settings, voice=None)
            conversation.handle.adjust(conversation.settings.policy(self._conversations.model))
            await self._say_error("no_voice", f"the voice failed: {error}", None)

    async def _send_events(self, conversation: Conversation, begin: int) -> None:
        try:
            async for number, event in conversation.events.after(begin):
                taken = {"taken": conversation.taken} if conversation.taken else {}
                if not await self._wire.send({"number": number, **taken, **as_dict(event)}):
                    return
        except EventsLost as error:
            await self._say_error("too_slow", error, None)
            await self._wire.close(CloseCode.POLICY, "too slow; connect again")
            return
        reason = conversation.events.ended or "closed"
        if reason != "ended":
            await self._wire.send({"type": "closing", "reason": reason})
            await self._wire.close(CloseCode.RESTART if reason == "shutdown" else CloseCode.GOING_AWAY, reason)

    async def _change(self, conversation: Conversation, fields: dict[str, Any]) -> None:
        given = {name: value for name, value in fields.items() if value is not None}
        settings = ConversationSettings.from_json(given, before=conversation.settings)
        if fields["voice"] is not None:
            if settings.voice is not None and conversation.settings.hearing != "reported":
                raise UsageError('a conversation gets a voice only where "hearing" is "reported"')
            if self._voice is not None:
                self._voice.leave()  # at once, so that the new voice can take its slot
            await self._use_voice(self._make_voice(conversation, settings.voice))
        if fields["eagerness"] is not None or fields["voice"] is not None:
            conversation.handle.adjust(settings.policy(self._conversations.model))
        if fields["interruptible"] is not None:
            conversation.handle.protect(settings.interruptible)
        conversation.settings = settings

    def _is_busy(self) -> bool:
        return self._conversation is not None and self._conversation.is_speaking

    async def _say_error(self, code: str, error: object, number: str | int | None) -> None:
        answered = {} if number is None else {"id": number}
        await self._wire.send({"type": "error", "code": code, "message": str(error), **answered})
