"""A raw client of `/v1/duplex` for tests."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed

from serving import Running

LONG = "Well, " + " ".join(f"word{i}" for i in range(60)) + "."
ANSWERS = {"tell me a lot": LONG, "tell me more": LONG}


def run(talk: Coroutine[Any, Any, None], *, seconds: float = 60) -> None:
    """Run to the end, and see that no task is left."""

    async def alone() -> None:
        try:
            await asyncio.wait_for(talk, seconds)
        finally:
            while OPEN:
                OPEN[-1].transport.abort()
                await OPEN.pop().wait_closed()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(alone())


OPEN: list[ClientConnection] = []


class Peer:
    """A raw client."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(10):  # in Python 3.11, `wait_for` may swallow a cancellation
            message = json.loads(await self.socket.recv())
        self.seen.append(message)
        return message

    async def until(self, kind: str, when: Callable[[dict[str, Any]], bool] = lambda m: True) -> dict[str, Any]:
        while (message := await self.next())["type"] != kind or not when(message):
            assert message["type"] not in ("error", "closing") or kind in ("error", "closing"), message
        return message

    async def start(self, **fields: Any) -> dict[str, Any]:
        await self.say("start", **fields)
        return await self.until("started")

    async def closed(self) -> int:
        """Read to the end; the code of the close."""
        try:
            while True:
                await self.next()
        except ConnectionClosed:
            pass
        assert self.socket.close_code is not None
        return self.socket.close_code

    def kinds(self) -> list[str]:
        return [m["type"] for m in self.seen if m["type"] not in ("said", "heard", "received", "started")]


async def join(server: Running, **options: Any) -> Peer:
    socket = await open_socket(server.http.replace("http", "ws") + "/v1/duplex", ping_interval=None, **options)
    OPEN.append(socket)
    return Peer(socket)
