"""Messages over a WebSocket, JSON or sound, within the limits of the server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from duologue.errors import BadData
from duologue.server.config import ServerConfig

PING_S = 20.0  # how often a client has to show that it is there
_BURST_S = 2.0  # seconds' worth of messages that may come at once


class Wire:
    """One client's socket. Sending waits until the client takes it, which holds up this client and nobody else.

    `is_busy` tells whether an answer is running: a connection without messages is idle only when none is. Binary
    messages are taken once `takes_sound` is set; whoever takes them sees to it that they do not come too fast.
    """

    def __init__(self, socket: WebSocket, config: ServerConfig, *, is_busy: Callable[[], bool]) -> None:
        self._socket = socket
        self._config = config
        self._is_busy = is_busy
        self.takes_sound = False
        self._sending = asyncio.Lock()
        self._allowance = config.messages_per_second * _BURST_S
        self._counted_at = asyncio.get_running_loop().time()

    async def messages(self) -> AsyncIterator[dict[str, Any] | bytes | BadData]:
        """What the client sends, or what is wrong with it, until it goes or has been idle for too long."""
        while True:
            try:
                async with asyncio.timeout(self._config.idle):  # `wait_for` may swallow being cancelled
                    data = await self._socket.receive()
            except TimeoutError:
                if self._is_busy():
                    continue
                await self.close(1001, "idle")
                return
            except WebSocketDisconnect:
                return
            if data["type"] == "websocket.disconnect":
                return
            sound = data.get("bytes")
            if sound and self.takes_sound and len(sound) <= self._config.max_message:
                yield sound
                continue
            await self._slow_down()
            yield self._read(data)

    async def send(self, message: dict[str, Any]) -> bool:
        """Send a message. Returns whether the client was still there."""
        text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
        return await self._send(self._socket.send_text, text.encode("utf-8", "replace").decode())

    async def send_bytes(self, data: bytes) -> bool:
        """Send a binary message. Returns whether the client was still there."""
        return await self._send(self._socket.send_bytes, data)

    async def close(self, code: int, reason: str) -> None:
        """End the connection, if it has not ended."""
        if self._socket.application_state is WebSocketState.CONNECTED:
            try:
                async with self._sending:
                    await self._socket.close(code, reason[:120])
            except (WebSocketDisconnect, RuntimeError, OSError):
                pass

    async def _send(self, send: Callable[[Any], Awaitable[None]], message: str | bytes) -> bool:
        try:
            async with self._sending:
                await send(message)
        except (WebSocketDisconnect, RuntimeError, OSError):
            return False
        return True

    def _read(self, data: Any) -> dict[str, Any] | BadData:
        text = data.get("text")
        if text is None:
            return BadData("messages are JSON text, and this one was binary: sound goes with settings that say voice")
        if len(text.encode("utf-8", "replace")) > self._config.max_message:
            return BadData(f"a message may have {self._config.max_message} bytes")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            return BadData(f"this is not JSON: {error}"[:200])
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            return BadData('a message is a JSON object with a "type"')
        return message

    async def _slow_down(self) -> None:
        """Take messages at the rate that is allowed: what comes faster waits in the network."""
        rate, now = self._config.messages_per_second, asyncio.get_running_loop().time()
        self._allowance = min(rate * _BURST_S, self._allowance + (now - self._counted_at) * rate) - 1
        self._counted_at = now
        if self._allowance < 0:
            await asyncio.sleep(-self._allowance / rate)
