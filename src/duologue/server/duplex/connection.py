"""`/v1/duplex`: the events of a session over a WebSocket, and nothing else. docs/protocol.md is its specification.

client: start · hear · heard · respond · stop · resume · edit · settings · ping · end
server: started · every event of `duologue.core.events` with its number · error · pong · closing
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from starlette.websockets import WebSocket

from duologue.core.events import as_dict
from duologue.errors import BadData, DuologueError, EngineError, EngineFull, UsageError
from duologue.server.config import ServerConfig
from duologue.server.conversation import Conversation, EventsLost
from duologue.server.conversations import Conversations
from duologue.server.duplex.settings import Settings, VoiceSettings, read_turns
from duologue.server.duplex.voice import VoiceLine, needed
from duologue.server.wire import Wire

GOING_AWAY, POLICY, TRY_LATER, TAKEN_OVER = 1001, 1008, 1013, 4001
log = logging.getLogger("duologue.server")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message from a client."""

    kind: type
    default: Any = None
    is_needed: bool = False


MESSAGES: Mapping[str, Mapping[str, Field]] = {
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
"""What a client may send; `id`, any text, may stand beside, and comes back in what answers the message."""


class Duplex:
    """One connection."""

    def __init__(self, socket: WebSocket, conversations: Conversations, config: ServerConfig) -> None:
        self._conversations = conversations
        self._config = config
        self._wire = Wire(socket, config, is_busy=self._is_busy)
        self._talk: Conversation | None = None
        self._line: VoiceLine | None = None
        self._sender: asyncio.Task[None] | None = None
        self._is_over = False
        self._commands: dict[str, Callable[[Conversation, dict[str, Any]], None]] = {
            "hear": lambda talk, m: talk.handle.hear(m["text"], utterance=m["utterance"], final=m["final"]),
            "heard": lambda talk, m: talk.handle.heard(m["position"], answer=m["answer"]),
            "respond": lambda talk, m: talk.handle.respond(),
            "stop": lambda talk, m: talk.handle.stop(),
            "resume": lambda talk, m: talk.handle.resume(),
            "edit": lambda talk, m: talk.handle.edit(read_turns(m["history"])),
        }

    async def run(self) -> None:
        """Until the client goes, or the conversation ends."""
        try:
            async for message in self._wire.messages():
                if isinstance(message, BadData):
                    await self._say_error("bad_message", str(message), None)
                elif isinstance(message, bytes):
                    await self._take_sound(message)
                else:
                    await self._take(message)
                if self._is_over:
                    break
        finally:
            await self._fall_silent()
            if self._sender is not None:
                self._sender.cancel()
                with suppress(asyncio.CancelledError):
                    await self._sender
            if self._talk is not None:
                self._talk.detach(self, self._conversations.engine.now())

    def replaced(self) -> None:
        """Another connection has the conversation: this one ends."""
        if self._line is not None:
            self._line.leave()
        if self._sender is not None:
            self._sender.cancel()
        self._sender = asyncio.create_task(self._give_way(), name="duologue-duplex-replaced")

    async def _give_way(self) -> None:
        await self._fall_silent()
        await self._wire.close(TAKEN_OVER, "another connection has this conversation")

    async def _take_sound(self, data: bytes) -> None:
        assert self._line is not None, "the wire takes sound when there is somebody to hear it"
        try:
            await self._line.hear(data)
        except BadData as error:
            await self._say_error("bad_message", str(error), None)

    async def _take(self, message: dict[str, Any]) -> None:
        kind, number = message["type"], message.get("id")
        number = number if isinstance(number, (str, int)) else None
        if kind not in MESSAGES:
            return  # of a later version: what is not known is passed over
        try:
            fields = _read(kind, message)
            if kind == "ping":
                await self._wire.send({"type": "pong", **({} if number is None else {"id": number})})
            elif kind == "start":
                await self._start(fields)
            else:
                talk = self._talk if self._talk is not None else await self._start(_read("start", {}))
                if isinstance(number, int):
                    if number <= talk.taken:
                        return  # it came before the connection was cut
                    talk.taken = number
                if kind == "end":
                    talk.close("ended")
                    self._is_over = True
                    await self._wire.send({"type": "closing", "reason": "ended"})
                    await self._wire.close(1000, "ended")
                elif kind == "settings":
                    await self._change(talk, fields)
                else:
                    self._commands[kind](talk, fields)
        except EngineFull as error:
            await self._say_error("full", str(error), number)
            if self._talk is None:
                self._is_over = True
                await self._wire.close(TRY_LATER, "full")
        except (BadData, UsageError) as error:
            await self._say_error("bad_request", str(error), number)
        except EngineError as error:
            await self._say_error("failed", str(error), number)

    async def _start(self, fields: dict[str, Any]) -> Conversation:
        if self._talk is not None:
            raise UsageError("the conversation has begun; end it, or connect again for another one")
        found: Conversation | None = None
        if fields["session"] is not None:
            found = self._conversations.find(fields["session"])
            if found is None:
                raise UsageError("there is no conversation of that name any more; start without one")
        if found is None:
            default = Settings(hearing=self._config.words_per_second)
            settings = Settings.from_json(fields["settings"] or {}, before=default)
            history = read_turns(fields["history"] or [])
            talk = self._conversations.open(settings, history)
        else:
            talk = found
        talk.attach(self)  # who had it before gives its voice back
        try:
            line = self._line_for(talk, talk.settings.voice)
        except DuologueError:
            if found is None:
                talk.close("no voice")
            talk.detach(self, self._conversations.engine.now())
            raise
        self._talk = talk
        after = fields["after"]
        is_whole = after is not None and found is not None and talk.events.has(after)
        begin = after if is_whole else talk.events.newest
        await self._wire.send(
            {
                "type": "started",
                "session": talk.id,
                "number": begin,
                "model": self._conversations.model.name,
                "resumed": found is not None,
                "missed": found is not None and not is_whole,
                "taken": talk.taken,
                "settings": talk.settings.as_json(),
                "has_voice": self._conversations.voices is not None,
                **talk.snapshot(),
            }
        )
        self._sender = asyncio.create_task(self._send_events(talk, begin), name="duologue-duplex-sender")
        self._talk_over(line)
        return talk

    def _line_for(self, talk: Conversation, settings: VoiceSettings | None) -> VoiceLine | None:
        if settings is None:
            return None
        return VoiceLine(talk, settings, needed(self._conversations.voices), self._wire, failed=self._lose_voice)

    def _talk_over(self, line: VoiceLine | None) -> None:
        self._line, self._wire.takes_sound = line, line is not None
        if line is not None:
            line.start()

    async def _fall_silent(self) -> None:
        line = self._line
        self._talk_over(None)
        if line is not None:
            await line.aclose()

    async def _lose_voice(self, error: Exception) -> None:
        """It failed: the conversation goes on without."""
        talk = self._talk
        assert talk is not None, "a voice has a conversation"
        self._talk_over(None)
        if talk.is_open:
            talk.settings = replace(talk.settings, voice=None)
            talk.handle.adjust(talk.settings.policy(self._conversations.model))
            await self._say_error("no_voice", f"the voice failed: {error}", None)

    async def _send_events(self, talk: Conversation, begin: int) -> None:
        try:
            async for number, event in talk.events.after(begin):
                taken = {"taken": talk.taken} if talk.taken else {}
                if not await self._wire.send({"number": number, **taken, **as_dict(event)}):
                    return
        except EventsLost as error:
            await self._say_error("too_slow", str(error), None)
            await self._wire.close(POLICY, "too slow; connect again")
            return
        reason = talk.events.ended or "closed"
        if reason != "ended":
            await self._wire.send({"type": "closing", "reason": reason})
            await self._wire.close(1012 if reason == "shutdown" else GOING_AWAY, reason)

    async def _change(self, talk: Conversation, message: dict[str, Any]) -> None:
        given = {name: value for name, value in message.items() if value is not None}
        settings = Settings.from_json(given, before=talk.settings)
        if "voice" in given:
            if settings.voice is not None and talk.settings.hearing != "reported":
                raise UsageError('a conversation gets a voice only where "hearing" is "reported"')
            if self._line is not None:
                self._line.leave()
            line = self._line_for(talk, settings.voice)  # at once: the place that it left is its own
            await self._fall_silent()
            self._talk_over(line)
        if "eagerness" in given or "voice" in given:
            talk.handle.adjust(settings.policy(self._conversations.model))
        if "interruptible" in given:
            talk.handle.protect(settings.interruptible)
        talk.settings = settings

    def _is_busy(self) -> bool:
        return self._talk is not None and self._talk.is_open and self._talk.handle.session.running is not None

    async def _say_error(self, code: str, text: str, number: str | int | None) -> None:
        await self._wire.send(
            {"type": "error", "code": code, "message": text, **({} if number is None else {"id": number})}
        )


def _read(kind: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a message, checked. Raises `BadData`."""
    found = {}
    for name, item in MESSAGES[kind].items():
        value = message.get(name)
        if value is None:
            if item.is_needed:
                raise BadData(f'a message of type {kind} needs "{name}"')
            value = item.default
        elif item.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif not isinstance(value, item.kind) or (isinstance(value, bool) and item.kind not in (bool, object)):
            raise BadData(f'"{name}" of {kind} is {value!r:.60}; it must be {_JSON[item.kind]}')
        found[name] = value
    return found


_JSON = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
