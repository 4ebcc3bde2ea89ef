"""A stand-in for an endpoint with OpenAI's chat completions, which also misbehaves in every way that it is told to."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Answer: TypeAlias = Callable[["Asked"], Awaitable[None]]


@dataclass
class Asked:
    """A request, and the connection to answer it on."""

    headers: dict[str, str]
    body: dict[str, Any]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # the client has closed the connection

    @property
    def messages(self) -> list[tuple[str, str]]:
        return [(message["role"], message["content"]) for message in self.body["messages"]]

    async def begin(self, status: str = "200 OK", kind: str = "text/event-stream", *more: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *more]
        await self.send("\r\n".join(lines) + "\r\n\r\n")

    async def send(self, data: str | bytes) -> None:
        self.writer.write(data if isinstance(data, bytes) else data.encode())
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def say(self, *texts: str, end: str | None = "stop") -> None:
        for text in texts:
            await self.send(row(text))
        if end is not None:
            await self.send(row("", end) + "data: [DONE]\n\n")

    async def until_closed(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self.reader.read()
        self.closed.set()


def row(text: str, reason: str | None = None) -> str:
    """A part of an answer, as endpoints send it."""
    delta = {"content": text} if text else {}
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})}\n\n"


class StandIn:
    """An endpoint. `asked` are its requests so far; each is answered by the next of `answers`, and then by the last."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[Asked] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            headers = {name.lower(): value for name, value in fields}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            asked = Asked(headers, body, reader, writer)
            answer = self.answers[min(len(self.asked), len(self.answers) - 1)]
            self.asked.append(asked)
            await answer(asked)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def standing_in(*answers: Answer) -> AsyncIterator[StandIn]:
    """A stand-in in this event loop."""
    stand_in = StandIn(*answers)
    server = await asyncio.start_server(stand_in.serve, "127.0.0.1", 0)
    stand_in.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield stand_in
    finally:
        server.close()


@contextlib.contextmanager
def standing_in_beside(*answers: Answer) -> Iterator[StandIn]:
    """A stand-in in a thread of its own."""
    loop, ready, box = asyncio.new_event_loop(), threading.Event(), []
    done = asyncio.Event()

    async def serve() -> None:
        async with standing_in(*answers) as stand_in:
            box.append(stand_in)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="stand-in")
    thread.start()
    try:
        assert ready.wait(20)
        yield box[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(20)
        loop.close()


def says(*texts: str, end: str | None = "stop") -> Answer:
    """Answers with `texts`."""

    async def answer(asked: Asked) -> None:
        await asked.begin()
        await asked.say(*texts, end=end)

    return answer


def refuses(status: str, body: str = "", *headers: str) -> Answer:
    """Answers with an error."""

    async def answer(asked: Asked) -> None:
        await asked.begin(status, "application/json", *headers)
        await asked.send(body)

    return answer
