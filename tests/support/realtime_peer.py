"""A raw Realtime client for tests, that checks the grammar of what it is told."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed

from serving import Running

ALWAYS: Callable[[dict[str, Any]], bool] = lambda message: True  # noqa: E731
TEXT_EVENTS = ("response.output_text.delta", "response.output_text.done", "response.content_part.done")


class Mirror:
    """The conversation as a client's events tell it."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        self.running: str | None = None  # id of the response in progress
        self.texts: dict[str, str] = {}  # of responses
        self.ids: set[str] = set()

    def __call__(self, message: dict[str, Any]) -> None:
        assert message["event_id"] not in self.ids, "an id twice"
        self.ids.add(message["event_id"])
        kind = message["type"]
        if kind == "conversation.item.added":
            self._add(message)
        elif kind == "conversation.item.done":
            if message["item"]["id"] in self.items:
                self.items[message["item"]["id"]] = message["item"]
        elif kind == "conversation.item.deleted":
            del self.items[message["item_id"]]
            self.order.remove(message["item_id"])
        elif kind == "conversation.item.truncated":
            self.items[message["item_id"]]["content"] = [{"type": "output_text", "text": message["text"]}]
        elif kind == "response.created":
            assert self.running is None, "two at a time"
            self.running = message["response"]["id"]
            self.texts[self.running] = ""
        elif kind in TEXT_EVENTS:
            assert message["response_id"] == self.running
            if kind.endswith("delta"):
                self.texts[self.running] += message["delta"]
            elif kind == "response.output_text.done":
                assert message["text"] == self.texts[self.running]
        elif kind == "response.done":
            self._end(message["response"])

    def _add(self, message: dict[str, Any]) -> None:
        item, previous = message["item"], message["previous_item_id"]
        assert item["id"] not in self.items
        at = 0 if previous is None else self.order.index(previous) + 1
        self.items[item["id"]] = item
        self.order.insert(at, item["id"])

    def _end(self, response: dict[str, Any]) -> None:
        assert response["id"] == self.running
        self.running = None
        assert response["status"] in ("completed", "cancelled", "incomplete")
        assert (response["status"] == "completed") == (response["status_details"] is None)
        assert set(response["usage"]) >= {"total_tokens", "input_tokens", "output_tokens"}
        (item,) = response["output"]
        text = "".join(part["text"] for part in item["content"])
        assert self.texts[response["id"]].startswith(text)
        assert (response["status"] == "cancelled") or text == self.texts[response["id"]]

    @property
    def said(self) -> list[tuple[str, str]]:
        """The items in order: who, and what."""
        return [
            (item["role"], "".join(part.get("text") or part.get("transcript", "") for part in item["content"]))
            for item in (self.items[name] for name in self.order)
        ]


class RealtimePeer:
    """A raw client."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []
        self.mirror = Mirror()

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def type(self, text: str, *, role: str = "user", name: str | None = None, **fields: Any) -> None:
        """Create an item."""
        kind = "output_text" if role == "assistant" else "input_text"
        item = {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}
        await self.say("conversation.item.create", item=item if name is None else {**item, "id": name}, **fields)

    async def ask(self, text: str, *, name: str | None = None, **response: Any) -> None:
        """Create an item of the user's, and ask for a response."""
        await self.type(text, name=name)
        await self.say("response.create", event_id="ask", **({"response": response} if response else {}))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(20):  # in Python 3.11, `wait_for` may swallow a cancellation
            message = json.loads(await self.socket.recv())
        self.seen.append(message)
        self.mirror(message)
        return message

    async def until(self, kind: str, when: Callable[[dict[str, Any]], bool] = ALWAYS) -> dict[str, Any]:
        while (message := await self.next())["type"] != kind or not when(message):
            assert message["type"] != "error" or kind == "error", message
        return message

    async def error(self) -> dict[str, Any]:
        """The next error."""
        return (await self.until("error"))["error"]

    async def said(self, length: int) -> None:
        """Until so many characters of a response were said."""
        while not any(len(text) >= length for name, text in self.mirror.texts.items() if name == self.mirror.running):
            await self.next()

    async def settled(self) -> None:
        """Until all that was sent has been answered."""
        await self.say("no such event", event_id="settled")
        while True:
            message = await self.next()
            if message["type"] == "error" and message["error"]["event_id"] == "settled":
                return

    async def closed(self) -> int:
        """Read to the end; the code of the close."""
        try:
            while True:
                await self.next()
        except ConnectionClosed:
            pass
        assert self.socket.close_code is not None
        return self.socket.close_code

    def kinds(self, *, after: str = "") -> list[str]:
        """What was told, text aside, behind the first event of that type."""
        kinds = [message["type"] for message in self.seen]
        if after:
            kinds = kinds[kinds.index(after) + 1 :]
        return [kind for kind in kinds if kind not in TEXT_EVENTS]


OPEN: list[ClientConnection] = []


async def join(server: Running, query: str = "?model=any", **options: Any) -> RealtimePeer:
    """Connect, and read `session.created`."""
    url = server.http.replace("http", "ws") + "/v1/realtime" + query
    socket = await open_socket(url, ping_interval=None, **options)
    OPEN.append(socket)
    peer = RealtimePeer(socket)
    await peer.until("session.created")
    return peer
