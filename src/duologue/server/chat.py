"""`/v1/chat/completions` and `/v1/models`: the same engine as an ordinary chat endpoint."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from duologue.core.answer import Answer
from duologue.core.events import Committed, Finished, Said
from duologue.errors import BadData, DuologueError, EngineError, EngineFull, UsageError
from duologue.server.conversation import Conversation
from duologue.server.conversations import Conversations
from duologue.server.duplex.settings import Settings
from duologue.types import Role, Turn

_IGNORED = {"model", "user", "metadata", "store", "frequency_penalty", "presence_penalty", "logit_bias", "service_tier"}
"""Parameters without effect here where they are left at their defaults, or that do not change an answer."""


async def complete(request: Request, conversations: Conversations) -> Response:
    """Answer a chat request, as a stream if it asks for one."""
    try:
        body = await _body(request, conversations.config.max_message)
        completion = _Completion(body, conversations)
    except ClientDisconnect:
        return Response(status_code=400)
    except BadData as error:
        return problem(400, "invalid_request_error", str(error))
    except EngineFull as error:
        return problem(503, "server_error", str(error), headers={"Retry-After": "1"})
    except UsageError as error:
        return problem(400, "invalid_request_error", str(error))
    if completion.is_stream:
        return StreamingResponse(completion.stream(), media_type="text/event-stream")
    work = asyncio.create_task(completion.whole())
    gone = asyncio.create_task(_until_gone(request))
    await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not work.done():
        work.cancel()  # nobody waits for the answer: it is not computed
    try:
        return JSONResponse(await work)
    except asyncio.CancelledError:
        return Response(status_code=499)
    except DuologueError as error:
        return problem(500, "server_error", str(error))


def models(conversations: Conversations, started: int) -> Response:
    """What there is to choose from."""
    row = {"id": conversations.model.name, "object": "model", "created": started, "owned_by": "duologue"}
    return JSONResponse({"object": "list", "data": [row]})


def problem(status: int, kind: str, message: str, *, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers=headers)


class _Completion:
    """One request that has been let in."""

    def __init__(self, body: dict[str, Any], conversations: Conversations) -> None:
        self.is_stream = _flag(body, "stream")
        options = body.get("stream_options") or {}
        self._with_usage = isinstance(options, dict) and _flag(options, "include_usage")
        settings, history, words = _asked(body)
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = conversations.model.name
        self._talk: Conversation = conversations.open(settings, history, keeps_record=False)
        handle = self._talk.handle
        handle.hear(words, utterance="message", final=True)
        handle.respond()
        answer = handle.session.running
        if answer is None or answer.user_text is None:
            self._talk.close("too long")
            raise BadData("the last message is too long for the context")
        self._answer: Answer = answer
        self._prompt_tokens = answer.answer_at

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
        finally:
            self._talk.close("done")

    async def _events(self) -> AsyncGenerator[tuple[str, str | None], None]:
        """Parts of the answer, and why it ended."""
        try:
            reason = "stop"
            async for _, event in self._talk.events.after(0):
                if isinstance(event, Said):
                    yield event.text, None
                elif isinstance(event, Finished):
                    reason = event.reason  # the last words are told behind it
                elif isinstance(event, Committed):
                    yield "", reason
                    return
            raise EngineError(f"the answer ended: {self._talk.events.ended}")
        finally:
            self._talk.close("done")

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
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise BadData(f"a request may have {most} bytes")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadData(f"this is not JSON: {error}"[:200]) from error
    if not isinstance(body, dict):
        raise BadData("a request is a JSON object")
    return body


async def _until_gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise BadData(f"{name} must be true or false")
    return bool(value)


def _asked(body: dict[str, Any]) -> tuple[Settings, tuple[Turn, ...], str]:
    """Settings, the history and the newest words of a request. Raises `BadData`."""
    for name in ("tools", "functions", "response_format", "logprobs", "stop", "audio"):
        if body.get(name):
            raise BadData(f"{name} is not supported")
    if body.get("n") not in (None, 1):
        raise BadData("n other than 1 is not supported")
    rows = body.get("messages")
    if not isinstance(rows, list) or not rows:
        raise BadData("messages must be a list of at least one message")
    system: list[str] = []
    turns: list[Turn] = []
    for row in rows:
        role, text = _message(row)
        if role in ("system", "developer"):
            system.append(text)
        else:
            turns.append(Turn(Role(role), text))
    if not turns or turns[-1].role is not Role.USER or not turns[-1].text.strip():
        raise BadData("the last message must be one of the user, with text")
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    chosen = {
        "hearing": "shown", "max_answer": most,
        **{name: body[name] for name in ("temperature", "top_p", "seed") if body.get(name) is not None},
    }  # fmt: skip
    return Settings.from_json({**chosen, "system": "\n\n".join(system) or None}), tuple(turns[:-1]), turns[-1].text


def _message(row: Any) -> tuple[str, str]:
    if not isinstance(row, dict) or row.get("role") not in ("system", "developer", "user", "assistant"):
        raise BadData("a message has a role (system, developer, user or assistant) and content")
    content = row.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = None if None in parts else "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise BadData("content must be text, or a list of parts of type text")
    return row["role"], content
