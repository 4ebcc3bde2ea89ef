"""`/v1/chat/completions` and `/v1/models`: a conventional chat endpoint on the same engine."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from duologue.core.answer import Answer
from duologue.core.events import Committed, Failed, Finished, Said
from duologue.core.words import words_in
from duologue.errors import BadData, DuologueError, EngineError, EngineFull, UsageError
from duologue.server.conversation import Conversation
from duologue.server.conversations import Conversations
from duologue.server.fields import Field, Rejection, Table, parse, read
from duologue.server.settings import ConversationSettings
from duologue.types import Role, Turn

_BODY_S = 30.0  # within which the body of a request must arrive


async def complete(request: Request, conversations: Conversations) -> Response:
    """Answer a chat request, as a stream if requested. Parameters that have no meaning here are ignored."""
    try:
        body = await _body(request, conversations.config.max_message)
        completion = await _Completion.begin(body, conversations)
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

    def __init__(self, conversation: Conversation, answer: Answer, model: str, options: dict[str, Any]) -> None:
        self.is_stream: bool = options["stream"]
        self._with_usage: bool = options["stream_options"].get("include_usage", False)
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._conversation = conversation
        self._answer = answer
        self._prompt_tokens = answer.answer_at

    @classmethod
    async def begin(cls, body: dict[str, Any], conversations: Conversations) -> "_Completion":
        """Admit a request.

        Raises:
            EngineFull: there is no room.
            UsageError: the request cannot be answered.
        """
        options = read(_BODY, body)
        if len(options["messages"]) > conversations.most_turns:
            raise Rejection(f"at most {conversations.most_turns} messages fit into the context", param="messages")
        settings, history, words = _conversation_of(body, options["messages"])
        conversation = await conversations.open(settings, history, keeps_record=False)
        try:
            conversation.handle.hear(words, utterance="message", final=True)
            conversation.handle.respond()
            answer = conversation.handle.session.running
            if answer is None or answer.user_text is None:
                raise BadData("the last message is too long for the context")
            return cls(conversation, answer, conversations.model.name, options)
        except BaseException:
            conversation.close("not possible")
            raise

    def close(self) -> None:
        """Give the place back, whether or not the answer was wanted."""
        self._conversation.close("done")

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        text, reason = "", "stop"
        async with aclosing(self._events()) as events:
            async for part, end in events:
                text += part
                reason = end or reason
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage()}

    async def stream(self) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        try:
            yield self._chunk({"role": "assistant", "content": ""}, None)
            async with aclosing(self._events()) as events:
                async for part, end in events:
                    if part:
                        yield self._chunk({"content": part}, None)
                    if end:
                        yield self._chunk({}, end)
            if self._with_usage:
                yield _event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})
            yield "data: [DONE]\n\n"
        except DuologueError as error:
            yield _event({"error": {"message": str(error), "type": "server_error", "param": None, "code": None}})

    async def _events(self) -> AsyncGenerator[tuple[str, str | None], None]:
        """The parts of the answer, and the reason why it ended."""
        reason = "stop"
        async for _, event in self._conversation.events.after(0):
            if isinstance(event, Said):
                yield event.text, None
            elif isinstance(event, Finished):
                reason = event.reason  # the last words follow
            elif isinstance(event, Failed):
                raise EngineError(event.reason)
            elif isinstance(event, Committed):
                yield "", reason
                return
        raise EngineError(f"the answer ended: {self._conversation.events.ended}")

    def _chunk(self, delta: dict[str, Any], reason: str | None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self) -> dict[str, int]:
        made = self._answer.num_tokens
        return {
            "prompt_tokens": self._prompt_tokens, "completion_tokens": made, "total_tokens": self._prompt_tokens + made,
        }  # fmt: skip


def _event(row: dict[str, Any]) -> str:
    return f"data: {json.dumps(row, ensure_ascii=False)}\n\n"


async def _body(request: Request, most: int) -> dict[str, Any]:
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


def _conversation_of(body: dict[str, Any], messages: list[Any]) -> tuple[ConversationSettings, tuple[Turn, ...], str]:
    """Settings, the history and the newest words of a request. Raises `Rejection`."""
    for name in _UNSUPPORTED:
        if body.get(name):
            raise Rejection(f"{name} is not supported", param=name)
    system: list[str] = []
    turns: list[Turn] = []
    for number, row in enumerate(messages):
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
    return settings, tuple(turns[:-1]), turns[-1].text


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


_UNSUPPORTED = ("tools", "functions", "response_format", "logprobs", "stop", "audio")
_BODY: Table = {
    "messages": Field(list, is_needed=True, least=1),
    "n": Field(int, choices=(1,)),
    "stream": Field(bool, False),
    "stream_options": Field(dict, {}, fields={"include_usage": Field(bool, False)}),
}
_MESSAGE: Table = {
    "role": Field(str, is_needed=True, choices=("system", "developer", "user", "assistant")),
    "content": Field(object),
}
