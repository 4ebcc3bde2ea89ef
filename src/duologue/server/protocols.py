"""uvicorn's protocols with limits below the application: slow headers, floods of frames, dead clients.

Nothing here knows about conversations. Data that a client sends faster than permitted waits in the network.
"""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from duologue.server.allowance import Allowance

HEAD_S = 10.0  # within which the head of a request must arrive
MOST_WAITING = 256  # connections without a request yet; if there are more, the oldest is closed
LEAST_FRAMES_PER_S = 500.0  # voice clients send 50
_SLICE = 4096  # bytes parsed at a time: some hundreds of the smallest frames, 5 ms
_MOST_PONGS = 1 << 16  # bytes waiting to be sent beyond which pings are not answered
_CLOSE_S = 10.0  # for a client that was given up to take what was sent before
_MOST_FRAGMENTS = 1024  # kept apart


class LimitedHttp(H11Protocol):
    """HTTP with a deadline for the head of each request, and a limit on connections that wait for one.

    `waiting` has the connections without a request, oldest first; all connections of a server share it.
    """

    def __init__(self, *args: Any, waiting: dict["LimitedHttp", None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting = waiting
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Receive part of a head or of a body."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_complete:
            self._await_head()
        super().data_received(data)

    def handle_events(self) -> None:
        """Start a request if its head is complete."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_waiting()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Turn the connection into a WebSocket."""
        self._stop_waiting()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._deadline is not None:
            return
        self._deadline = self.loop.call_later(HEAD_S, self.transport.abort)
        self._waiting[self] = None
        if len(self._waiting) > MOST_WAITING:
            next(iter(self._waiting)).transport.abort()

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class LimitedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket that limits frames per second, and notices when a client that it keeps waiting is gone."""

    def __init__(self, *args: Any, frames_per_second: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._frames = Allowance(frames_per_second)
        self._unparsed = bytearray()
        self._timer: asyncio.TimerHandle | None = None  # until frames may be parsed again
        self._held_at = float("-inf")  # when data of the client last waited here

    def data_received(self, data: bytes) -> None:
        """Parse received data at the permitted rate."""
        self._unparsed += data
        if self._timer is None:
            self._parse()

    def _parse(self) -> None:
        self._timer = None
        while self._unparsed and not self.read_paused and not self.transport.is_closing():
            if (wait := self._frames.wait_s) > 0:
                self._held_at = self.loop.time()
                self.transport.pause_reading()
                self._timer = self.loop.call_later(wait, self._parse)
                return
            part = bytes(self._unparsed[:_SLICE])
            del self._unparsed[:_SLICE]
            super().data_received(part)
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> Any:
        """The next message. Messages of a client that is gone are dropped."""
        if self.read_paused:
            self._abort_if_dead()
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._held_at = self.loop.time()
            if self._timer is None:
                self.loop.call_soon(self._parse)
        return message

    def handle_text(self, event: Frame) -> None:
        """The first frame of a text message."""
        self._frames.take()
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """The first frame of a binary message."""
        self._frames.take()
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """A further frame of a message."""
        self._frames.take()
        if len(self.frames) >= _MOST_FRAGMENTS:
            self.frames = [b"".join(self.frames)]
        if event.data or event.fin:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answer, if the client reads the answers."""
        self._frames.take()
        if self.transport.get_write_buffer_size() > _MOST_PONGS:
            self.conn.data_to_send()  # dropped
        else:
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        """Note that the client is alive."""
        self._frames.take()
        super().handle_pong(event)

    def keepalive_timeout(self) -> None:
        """Handle a missing pong, which may be among messages that wait here, or behind messages that waited here.

        The deadline is extended while the client itself reads: it counts from when its data last waited.
        """
        now = self.loop.time()
        if self.read_paused or self._unparsed:
            self._held_at = now
        deadline = self._held_at + (self.ping_timeout or 0.0)
        if deadline > now and self.writable.is_set() and not self.transport.is_closing():
            self._abort_if_dead()
            self.pong_timer = self.loop.call_at(deadline, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self.loop.call_later(_CLOSE_S, self.transport.abort)  # data that it does not take is not kept for it

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection. After a reset, data sent before is discarded."""
        self._unparsed.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if exc is not None:
            while not self.queue.empty():
                self.queue.get_nowait()
        super().connection_lost(exc)

    def _abort_if_dead(self) -> None:
        """Abort after a reset, which the event loop does not notice while nothing is read."""
        peer: socket.socket | None = self.transport.get_extra_info("socket")
        if peer is None or self.transport.is_closing():
            return
        if peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
            while not self.queue.empty():
                self.queue.get_nowait()
            self.transport.abort()
