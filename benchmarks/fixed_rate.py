"""An endpoint with OpenAI's chat completions that streams words at a fixed rate, in a process of its own.

No model runs there, so what is measured beside it is not the speaker. Every answer has as many words as were asked for,
the first of them at once. When a client closes a request before its end, the endpoint says when that was.
"""

import asyncio
import json
import multiprocessing
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_TEXT = "and then he said that the sea was calm, the boat was old, and nobody knew the way home."
_WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class FixedRate:
    """The endpoint."""

    url: str
    _closings: Connection

    def closed_at(self, question: str, seconds: float) -> float | None:
        """When the request for an answer to `question` was closed before its end, by `time.monotonic`.

        None if nothing is closed for so many seconds.
        """
        while self._closings.poll(seconds):
            asked, at = self._closings.recv()
            if asked == question:
                return float(at)
        return None


@contextmanager
def fixed_rate(words_per_second: float) -> Iterator[FixedRate]:
    """The endpoint, until the block ends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(words_per_second, theirs), daemon=True)
    process.start()
    try:
        yield FixedRate(f"http://127.0.0.1:{ours.recv()}/v1", ours)
    finally:
        process.terminate()
        process.join()


def _serve(words_per_second: float, closings: Connection) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (closed := await _answer(reader, writer, 1 / words_per_second)) is None:
                pass
            closings.send((closed, time.monotonic()))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # between two requests, or it was closed while a word was written
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        closings.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds_per_word: float) -> str | None:
    """Answer one request. Returns None, or the question if the client closes the request before the end."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    assert length is not None, "a request has a body"
    body = json.loads(await reader.readexactly(int(length[1])))
    writer.write(_HEAD)
    loop = asyncio.get_running_loop()
    began, gone = loop.time(), asyncio.ensure_future(reader.read(1))
    for number in range(body["max_tokens"]):
        await asyncio.wait([gone], timeout=max(0.0, began + number * seconds_per_word - loop.time()))
        if gone.done():
            gone.exception()  # a reset is a closed request, too
            return str(body["messages"][-1]["content"])
        writer.write(_row({"content": f"{_WORDS[number % len(_WORDS)]} "}, None))
    writer.write(_row({}, "length") + _chunk("data: [DONE]\n\n") + _chunk(""))
    gone.cancel()
    return None


def _row(delta: dict[str, str], reason: str | None) -> bytes:
    return _chunk(f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})}\n\n")


def _chunk(text: str) -> bytes:
    return f"{len(text.encode()):x}\r\n{text}\r\n".encode()
