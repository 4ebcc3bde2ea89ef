"""Clients that send faster than they may, or do not read: they are slowed down, and nobody else is."""

import asyncio
import contextlib
import socket
import struct
import time

import pytest
from websockets.exceptions import ConnectionClosed

from duologue.server import protocols
from duologue.server import run as server_process
from duplex_peer import ANSWERS, join, run
from honest import honest
from serving import Running, scripted_model, serving
from soak import size

HANDSHAKE = (
    b"GET /v1/duplex HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, PING, EMPTY_FIRST, EMPTY_CONT = 0x81, 0x89, 0x01, 0x00


def frame(head: int, data: bytes = b"") -> bytes:
    """A masked frame of a client; the mask is zero."""
    assert len(data) < 126
    return bytes([head, 0x80 | len(data)]) + bytes(4) + data


async def raw(server: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket whose frames the test writes itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HANDSHAKE)
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def end(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def protocol_of(server: Running, transport: asyncio.BaseTransport) -> protocols.LimitedWebSocket:
    """The server's end of a connection."""
    port = transport.get_extra_info("sockname")[1]
    (found,) = (
        connection
        for connection in server.listener.server_state.connections
        if isinstance(connection, protocols.LimitedWebSocket) and connection.client and connection.client[1] == port
    )
    return found


def test_who_sends_too_fast_and_reads_everything_stays_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "PING_S", 1.5)  # a ping and its deadline are within the backlog of 4 s
    number = size(300, 4000)

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), messages_per_second=50.0) as server, honest(server):
            peer = await join(server)
            await peer.start()
            for i in range(number):
                await peer.say("ping", id=f"p{i}")
            await peer.until("pong", lambda m: m["id"] == f"p{number - 1}")

    run(talk(), seconds=60 + number / 50)


def test_a_pong_that_waited_behind_messages_is_in_time() -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server, honest(server):
            peer = await join(server)
            await peer.start()
            end_of_server = protocol_of(server, peer.socket.transport)
            await peer.say("ping", id="first")
            await peer.until("pong")
            end_of_server.keepalive_timeout()  # its message was taken just now, and the pong may come behind it
            await peer.say("ping", id="second")
            await peer.until("pong", lambda m: m["id"] == "second")
            end_of_server._held_at -= server_process.PING_S
            end_of_server.keepalive_timeout()  # there was time enough for a pong
            assert await peer.closed() == 1011

    run(talk())


def test_messages_of_a_client_that_is_gone_are_dropped() -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), keep=0.1) as server, honest(server):
            _, writer = await raw(server)
            text = b'{"type": "hear", "text": "mhm"}'
            writer.write(frame(TEXT, b'{"type": "start"}') + frame(TEXT, text) * 3500)
            while len(server.talks) < 2:
                await asyncio.sleep(0.01)
            linger = struct.pack("ii", 1, 0)  # a reset
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            began = time.monotonic()
            await end(writer)
            while len(server.server._connections) > 1:
                await asyncio.sleep(0.01)
            assert time.monotonic() - began < 10, "seventy seconds of messages are not carried out"

    run(talk())


@pytest.mark.parametrize(
    ("first", "flood"),
    [
        (frame(EMPTY_FIRST), frame(EMPTY_CONT)),
        (frame(EMPTY_FIRST, b"x"), frame(EMPTY_CONT, b"x")),
        (b"", frame(PING, b"x" * 100)),
        (b"", frame(TEXT)),
    ],
    ids=["empty fragments", "small fragments", "unread pings", "empty messages"],
)
def test_floods_of_frames_wait_in_the_network(first: bytes, flood: bytes) -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(first)
            while True:
                writer.write(flood * 1000)
                await writer.drain()

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server, honest(server) as client:
            _, writer = await raw(server)
            end_of_server = protocol_of(server, writer.transport)
            counted = []
            for name in ("handle_text", "handle_cont", "handle_ping"):
                original = getattr(end_of_server, name)
                setattr(end_of_server, name, lambda *event, original=original: (counted.append(1), original(*event)))
            flooding = asyncio.create_task(send(writer))
            began, before = time.monotonic(), len(client.latencies)
            while len(client.latencies) < before + 10:
                await asyncio.sleep(0.01)
            most = (time.monotonic() - began + 2) * protocols.LEAST_FRAMES_PER_S
            assert len(counted) <= most + protocols._SLICE / len(flood)
            assert end_of_server.transport.get_write_buffer_size() <= 2 * protocols._MOST_PONGS
            assert len(end_of_server._unparsed) <= 1 << 19
            assert end_of_server.queue.qsize() <= protocols._SLICE
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            await end(writer)

    run(talk())


def test_who_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "PING_S", 1.0)
    monkeypatch.setattr(protocols, "_CLOSE_S", 0.5)

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), messages_per_second=1000.0) as server, honest(server):
            peer = await join(server, close_timeout=0.1)  # it does not notice the end by itself
            await peer.start()
            peer.socket.transport.pause_reading()
            with contextlib.suppress(ConnectionClosed, ConnectionError):
                for number in range(20_000):
                    await peer.say("ping", id="x" * 5000 + str(number))
            while len(server.server._connections) > 1:
                await asyncio.sleep(0.01)

    run(talk())
