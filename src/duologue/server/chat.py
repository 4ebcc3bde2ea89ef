"""`/v1/chat/completions` and `/v1/models`: a conventional chat endpoint on the same engine."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from duologue.core.answer import LogP
from duologue.core.words import words_in
from duologue.errors import BadData, DuologueError, EngineFull, UsageError
from duologue.models.model import Model
from duologue.models.structured import json_constraint
from duologue.server.authentication import client_of
from duologue.server.choice import Choice, Part, log_probabilities
from duologue.server.conversations import Conversations
from duologue.server.fields import Field, Rejection, Table, parse, read
from duologue.server.settings import ConversationSettings
from duologue.types import Role, Turn

_BODY_S = 30.0  # within which the body of a request must arrive


async def complete(request: Request, conversations: Conversations) -> Response:
    """Answer a chat request, as a stream if requested. Parameters that have no meaning here are ignored."""
    try:
        body = await read_body(request, conversations.config.max_message)
        completion = await _Completion.begin(body, conversations, client_of(request, conversations.config))
    except ClientDisconnect:
        return Response(status_code=400)
    except EngineFull as error:
        return problem(503, "server_error", str(error), headers={"Retry-After": "1"})
    except UsageError as error:
        return problem(400, "invalid_request_error", str(error))
    if completion.is_stream:
        return _Stream(completion)
    work = asyncio.create_task(completion.whole())
    gone = asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(work.result()) if work.done() else Response(status_code=499)
    except DuologueError as error:
        return problem(500, "server_error", str(error))
    finally:
        work.cancel()  # if the client is gone, the answer is not computed
        gone.cancel()
        completion.close()


def models(conversations: Conversations, started: int) -> Response:
    """The list of models, which has one entry."""
    row = {"id": conversations.model.name, "object": "model", "created": started, "owned_by": "duologue"}
    return JSONResponse({"object": "list", "data": [row]})


def problem(status: int, kind: str, message: str, *, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in the format that OpenAI's clients expect."""
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers=headers)


class _Stream(StreamingResponse):
    """An answer as server-sent events. Its place is given back even if the client leaves before the first of them."""

    def __init__(self, completion: "_Completion") -> None:
        super().__init__(completion.stream(), media_type="text/event-stream")
        self._completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._completion.close()


class _Completion:
    """An admitted request."""

    def __init__(self, choices: list[Choice], model: Model, options: dict[str, Any]) -> None:
        self.is_stream: bool = options["stream"]
        self._with_usage: bool = options["stream_options"].get("include_usage", False)
        self._with_log_p: bool = options["logprobs"]
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._choices = choices
        self._prompt_tokens = choices[0].answer.thought_at

    @classmethod
    async def begin(cls, body: dict[str, Any], conversations: Conversations, client: str) -> "_Completion":
        """Admit a request.

        Raises:
            EngineFull: there is no room.
            UsageError: the request cannot be answered.
        """
        options = read(BODY, body)
        if len(options["messages"]) > conversations.most_turns:
            raise Rejection(f"at most {conversations.most_turns} messages fit into the context", param="messages")
        if options["top_logprobs"] and not options["logprobs"]:
            raise Rejection("top_logprobs needs logprobs: true", param="top_logprobs")
        asked = _Asked.read(body, options)
        choices: list[Choice] = []
        try:
            for index in range(options["n"]):
                choices.append(await _begin(index, asked, conversations, client))
            return cls(choices, conversations.model, options)
        except BaseException:
            for choice in choices:
                choice.close()
            raise

    def close(self) -> None:
        """Give the places back, whether or not the answers were wanted."""
        for choice in self._choices:
            choice.close()

    async def whole(self) -> dict[str, Any]:
        """The answers in one piece."""
        parts: dict[int, list[Part]] = {choice.index: [] for choice in self._choices}
        async with aclosing(_merged(self._choices)) as merged:
            async for index, part in merged:
                parts[index].append(part)
        choices = [self._finished(index, found) for index, found in parts.items()]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}

    def _finished(self, index: int, parts: list[Part]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(part.text for part in parts), "refusal": None}
        log_p = self._log_p([row for part in parts for row in part.log_p])
        return {"index": index, "message": message, "finish_reason": parts[-1].reason, "logprobs": log_p}

    def _log_p(self, rows: Sequence[LogP]) -> dict[str, Any] | None:
        return log_probabilities(rows, self._model.template.tokenizer) if self._with_log_p else None

    async def stream(self) -> AsyncIterator[str]:
        """The answers as server-sent events."""
        try:
            for choice in self._choices:
                yield self._chunk(choice.index, {"role": "assistant", "content": ""}, None)
            async with aclosing(_merged(self._choices)) as merged:
                async for index, part in merged:
                    if part.text or part.log_p:
                        yield self._chunk(index, {"content": part.text}, None, self._log_p(part.log_p))
                    if part.reason:
                        yield self._chunk(index, {}, part.reason)
            if self._with_usage:
                yield _event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})
            yield "data: [DONE]\n\n"
        except DuologueError as error:
            yield _event({"error": {"message": str(error), "type": "server_error", "param": None, "code": None}})

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None, log_p: dict[str, Any] | None = None) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": log_p}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model.name}

    def _usage(self) -> dict[str, int]:
        made = sum(choice.answer.num_made for choice in self._choices)
        return {
            "prompt_tokens": self._prompt_tokens, "completion_tokens": made, "total_tokens": self._prompt_tokens + made,
        }  # fmt: skip


async def _begin(index: int, asked: "_Asked", conversations: Conversations, client: str) -> Choice:
    """Begin one answer in a conversation of its own."""
    settings = replace(asked.settings, seed=asked.settings.seed + index)
    more: dict[str, Any] = {"num_alternatives": asked.num_alternatives}
    if asked.schema is not None:
        more["constraint"] = await asyncio.to_thread(json_constraint, conversations.model, asked.schema)
    conversation = await conversations.open(settings, asked.history, client=client, keeps_record=False, **more)
    try:
        conversation.handle.hear(asked.words, utterance="message", final=True)
        conversation.handle.respond()
        answer = conversation.handle.session.running
        if answer is None or answer.user_text is None:
            raise BadData("the last message is too long for the context")
        return Choice(index, conversation, answer, asked.stops)
    except BaseException:
        conversation.close("not possible")
        raise


async def _merged(choices: Sequence[Choice]) -> AsyncGenerator[tuple[int, Part], None]:
    """The parts of all answers as they are made."""
    parts: asyncio.Queue[tuple[int, Part] | DuologueError | None] = asyncio.Queue()

    async def pump(choice: Choice) -> None:
        try:
            async with aclosing(choice.parts()) as made:
                async for part in made:
                    parts.put_nowait((choice.index, part))
            parts.put_nowait(None)
        except DuologueError as error:
            parts.put_nowait(error)

    pumps = [asyncio.create_task(pump(choice)) for choice in choices]
    try:
        left = len(pumps)
        while left:
            item = await parts.get()
            if isinstance(item, DuologueError):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def _event(row: dict[str, Any]) -> str:
    return f"data: {json.dumps(row, ensure_ascii=False)}\n\n"


async def read_body(request: Request, most: int) -> dict[str, Any]:
    """The JSON object that a request brings.

    Raises:
        BadData: it is longer than `most` bytes, arrives too slowly, or is not an object.
        ClientDisconnect: the client is gone.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise BadData(f"a request may have at most {most} bytes")
    except TimeoutError as error:
        raise BadData(f"the body of the request did not arrive within {_BODY_S:.0f} s") from error
    return parse(data)


async def _until_gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request asks for."""

    settings: ConversationSettings
    history: tuple[Turn, ...]
    words: str  # the newest message
    stops: tuple[str, ...]
    num_alternatives: int | None
    schema: dict[str, Any] | None

    @classmethod
    def read(cls, body: dict[str, Any], options: dict[str, Any]) -> "_Asked":
        """From a request and its checked `options`. Raises `Rejection`."""
        for name, default in _UNSUPPORTED.items():
            if body.get(name) and body[name] != default:
                raise Rejection(f"{name} is not supported", param=name)
        system: list[str] = []
        turns: list[Turn] = []
        for number, row in enumerate(options["messages"]):
            role, text = _message(row, f"messages[{number}]")
            if role in ("system", "developer"):
                system.append(text)
            else:
                turns.append(Turn(Role(role), text))
        if not turns or turns[-1].role is not Role.USER or not words_in(turns[-1].text):
            raise Rejection("the last message must be a user message with words", param="messages")
        chosen = {name: body[name] for name in ("temperature", "top_p", "seed") if body.get(name) is not None}
        chosen["max_answer"] = body.get("max_completion_tokens", body.get("max_tokens"))
        settings = ConversationSettings.from_json({**chosen, "hearing": "shown", "system": "\n\n".join(system) or None})
        num_alternatives = (options["top_logprobs"] or 0) if options["logprobs"] else None
        return cls(
            settings, tuple(turns[:-1]), turns[-1].text, options["stop"], num_alternatives, options["response_format"]
        )


def _message(row: Any, where: str) -> tuple[str, str]:
    if not isinstance(row, dict):
        raise Rejection(f"{where} must be an object", code="invalid_type", param=where)
    role, content = read(_MESSAGE, row, f"{where}.").values()
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        is_text = len(parts) == len(content) and all(isinstance(part, str) for part in parts)
        content = "".join(map(str, parts)) if is_text else None
    if not isinstance(content, str):
        raise Rejection(f"{where}.content must be text, or a list of parts of type text", param=where)
    return role, content


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
    if not 1 <= len(stops) <= _MOST_STOPS or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError(f"a text, or a list of 1 to {_MOST_STOPS} texts")
    return stops


def _schema(value: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON schema of `response_format`; None for text."""
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    wrapped = value.get("json_schema")
    if kind != "json_schema" or not isinstance(wrapped, dict) or not isinstance(wrapped.get("schema"), dict):
        raise ValueError('of type "text", "json_object", or "json_schema" with json_schema.schema')
    _check_schema(wrapped["schema"])
    return dict(wrapped["schema"])


def _check_schema(schema: Any) -> None:
    """A grammar repeats its rules as often as the schema says, so that numbers of repetitions are limited."""
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name in _REPETITIONS and isinstance(value, int) and value > _MOST_REPETITIONS:
                raise ValueError(f"a schema in which {name} is at most {_MOST_REPETITIONS}")
            if name == "pattern" and re.search(r"\d{4}", str(value)):
                raise ValueError("a schema in which a pattern repeats nothing a thousand times")
            _check_schema(value)
    elif isinstance(schema, list):
        for value in schema:
            _check_schema(value)


_MOST_STOPS = 4
_MOST_REPETITIONS = 1000
_REPETITIONS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_UNSUPPORTED = {
    "tools": None, "functions": None, "tool_choice": "none", "function_call": "none", "audio": None,
    "modalities": ["text"],
}  # fmt: skip
"""Parameters that are accepted only with their default, which some clients send."""
BODY: Table = {
    "messages": Field(list, is_needed=True, least=1),
    "n": Field(int, 1, least=1, most=8),
    "stop": Field(object, (), parse=_stops),
    "logprobs": Field(bool, False),
    "top_logprobs": Field(int, least=0, most=20),
    "response_format": Field(dict, parse=_schema),
    "stream": Field(bool, False),
    "stream_options": Field(dict, {}, fields={"include_usage": Field(bool, False)}),
}
"""The fields of a request, besides `temperature`, `top_p`, `seed`, `max_tokens` and `max_completion_tokens`."""
_MESSAGE: Table = {
    "role": Field(str, is_needed=True, choices=("system", "developer", "user", "assistant")),
    "content": Field(object),
}
