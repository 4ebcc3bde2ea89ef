"""JSON messages and sound over a WebSocket, within the limits of the server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import IntEnum
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from duologue.errors import BadData
from duologue.server.allowance import Allowance
from duologue.server.config import ServerConfig
from duologue.server.fields import parse

PING_S = 20.0  # interval at which a client has to show that it is alive
_WEIGHT = 1 << 12  # characters that count as one more message


class CloseCode(IntEnum):
    """Why the server ends a connection."""

    NORMAL = 1000
    GOING_AWAY = 1001
    POLICY = 1008
    INTERNAL = 1011
    RESTART = 1012
    TRY_LATER = 1013
    TAKEN_OVER = 4001


class Wire:
    """The socket of one client. Sending waits until the client takes the message, which delays no other client.

    `is_busy` tells whether an answer is running: a connection without messages is idle only when none is. Binary
    messages are accepted while `accepts_sound` is set; the code that accepts them limits their rate.
    """

    def __init__(self, socket: WebSocket, config: ServerConfig, *, is_busy: Callable[[], bool]) -> None:
        self._socket = socket
        self._config = config
        self._is_busy = is_busy
        self.accepts_sound = False
        self._sending = asyncio.Lock()
        self._allowance = Allowance(config.messages_per_second)

    async def messages(self) -> AsyncIterator[dict[str, Any] | bytes | BadData]:
        """Messages from the client, or errors in them, until the client leaves or has been idle for too long."""
        while True:
            try:
                async with asyncio.timeout(self._config.idle):  # `wait_for` may swallow a cancellation
                    data = await self._socket.receive()
            except TimeoutError:
                if self._is_busy():
                    continue
                await self.close(CloseCode.GOING_AWAY, "idle")
                return
            except WebSocketDisconnect:
                return
            if data["type"] == "websocket.disconnect":
                return
            sound = data.get("bytes")
            if sound and self.accepts_sound and len(sound) <= self._config.max_message:
                yield sound
                continue
            text = data.get("text")
            await self._slow_down(1 + len(text or "") // _WEIGHT)
            yield self._read(text)

    async def send(self, message: dict[str, Any]) -> bool:
        """Send a message. Returns whether the client was still connected."""
        text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
        return await self._send(self._socket.send_text, text.encode("utf-8", "replace").decode())

    async def send_bytes(self, data: bytes) -> bool:
        """Send a binary message. Returns whether the client was still connected."""
        return await self._send(self._socket.send_bytes, data)

    async def close(self, code: CloseCode, reason: str) -> None:
        """End the connection, if it has not ended."""
        if self._socket.application_state is WebSocketState.CONNECTED:
            await self._send(lambda text: self._socket.close(code, text), reason[:120])

    async def _send(self, send: Callable[[Any], Awaitable[None]], message: str | bytes) -> bool:
        try:
            async with self._sending:
                await send(message)
        except (WebSocketDisconnect, RuntimeError, OSError):
            return False
        return True

    def _read(self, text: str | None) -> dict[str, Any] | BadData:
        if text is None:
            return BadData("expected JSON text, got a binary message: sound needs settings with a voice")
        if len(text.encode("utf-8", "replace")) > self._config.max_message:
            return BadData(f"a message may have {self._config.max_message} bytes")
        try:
            message = parse(text)
        except BadData as error:
            return error
        return message if isinstance(message.get("type"), str) else BadData('a message is a JSON object with a "type"')

    async def _slow_down(self, number: int) -> None:
        """Enforce the permitted rate of messages: further ones wait in the network."""
        self._allowance.take(number)
        await asyncio.sleep(self._allowance.wait_s)
