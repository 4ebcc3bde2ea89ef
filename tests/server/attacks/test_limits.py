"""Clients that take connections and give nothing: health is answered, and so are others."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from duologue.server import app, protocols
from duplex_peer import ANSWERS, Peer, join, run
from honest import honest
from serving import Running, scripted_model, serving

HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


@contextlib.asynccontextmanager
async def connections(server: Running, number: int, head: bytes = b"") -> AsyncIterator[list[asyncio.StreamReader]]:
    """Connections on which nothing else is said."""
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(number)]
    try:
        for _, writer in opened:
            writer.write(head)
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for _, writer in opened), return_exceptions=True)


@pytest.mark.parametrize("head", [b"", HEAD], ids=["silent", "half a head"])
def test_connections_without_a_request_keep_nobody_out(head: bytes) -> None:
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS)) as server,
            honest(server),
            connections(server, 400, head),
            httpx.AsyncClient(base_url=server.http) as http,
        ):
            for path in ("/health", "/ready", "/v1/models", "/metrics"):
                assert (await http.get(path)).status_code == 200
            await (await join(server)).start()

    run(talk())


@pytest.mark.parametrize("head", [b"", HEAD, HEAD + b"\r\n" + HEAD], ids=["silent", "first", "second"])
def test_a_head_that_comes_slowly_is_given_up(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "HEAD_S", 0.5)

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server, honest(server):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head)
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while await asyncio.wait_for(reader.read(4096), 10):
                    writer.write(b"X: y\r\n")
            assert time.monotonic() - began < 5
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    run(talk())


def test_requests_are_limited_and_health_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_REQUESTS", -2)

    async def talk() -> None:
        body = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        async with (
            serving(scripted_model(ANSWERS), max_sessions=2) as server,
            connections(server, 6, body),
            httpx.AsyncClient(base_url=server.http) as http,
        ):
            while (await http.get("/v1/models")).status_code != 503:
                await asyncio.sleep(0.01)
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/ready")).status_code == 200

    run(talk())


def test_websockets_that_say_nothing_make_way() -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), max_connections=4) as server, honest(server):
            silent = [await join(server) for _ in range(3)]
            peer = await join(server)
            await peer.start()
            assert await silent[0].closed() == 1013
            await silent[1].start()
            await silent[2].start()
            with pytest.raises(InvalidStatus) as refused:
                await join(server)
            assert refused.value.response.status_code == 503
            async with httpx.AsyncClient(base_url=server.http) as http:
                assert (await http.get("/health")).status_code == 200
            await peer.socket.close()
            await free(server, 3)
            await (await join(server)).start()

    async def free(server: Running, number: int) -> None:
        while len(server.server._connections) > number:
            await asyncio.sleep(0.01)

    run(talk())


def test_a_websocket_that_does_not_read_makes_way_at_once() -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), max_connections=1, messages_per_second=10_000) as server:
            silent = await join(server, close_timeout=0.1)
            silent.socket.transport.pause_reading()
            (connection,) = server.server._connections
            while not connection._wire._sending.locked():  # until what it is sent fills the network
                await silent.say("ping", id="x" * 60_000)
                await asyncio.sleep(0.01)
            async with asyncio.timeout(10):  # much less than until it is given up
                await (await join(server)).start()
            silent.socket.transport.abort()

    run(talk())


def test_one_client_cannot_have_all_conversations() -> None:
    tokens = ("mine-1234", "yours-1234")
    mine, yours = ({"additional_headers": {"Authorization": f"Bearer {token}"}} for token in tokens)

    async def talk() -> None:
        settings = {"max_sessions": 3, "max_per_client": 2, "tokens": tokens}
        async with serving(scripted_model(ANSWERS), **settings) as server:
            talks = server.talks
            first, second, third = [await join(server, **mine) for _ in range(3)]
            names = [(await peer.start())["session"] for peer in (first, second)]
            await third.say("start")
            refused = await third.until("error")
            assert "as many conversations as it may, 2" in refused["message"]
            assert not await answered_by(server, "mine-1234", "/v1/chat/completions")
            await (await join(server, **yours)).start()

            await first.socket.close()  # its conversation is kept for a while, but makes way for its client's next
            while talks._open[names[0]].detached_at is None:
                await asyncio.sleep(0.01)
            fourth = await join(server, **mine)
            await fourth.start()
            assert set(talks._open) > {names[1]}
            assert names[0] not in talks._open

    async def answered_by(server: Running, token: str, path: str) -> bool:
        async with httpx.AsyncClient(base_url=server.http, headers={"Authorization": f"Bearer {token}"}) as http:
            body = {"messages": [{"role": "user", "content": "hi"}]}
            return (await http.post(path, json=body)).status_code == 200

    run(talk())


def test_without_tokens_clients_are_told_apart_by_address() -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), max_per_client=1) as server:
            peer = await join(server)
            await peer.start()
            other = await join(server)
            await other.say("start")
            assert "as many conversations as it may, 1" in (await other.until("error"))["message"]

    run(talk())


@pytest.mark.parametrize("stream", [False, True])
def test_places_of_chat_requests_are_given_back(stream: bool) -> None:
    async def one(server: Running, waits_s: float) -> None:
        body = json.dumps({"messages": [{"role": "user", "content": "tell me a lot"}], "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        async with connections(server, 1, head.encode() + body):
            await asyncio.sleep(waits_s)

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), max_sessions=8) as server, honest(server):
            for number in range(60):
                await one(server, number % 6 * 0.002)
            while len(server.talks) > 1:
                await asyncio.sleep(0.05)
            assert len(server.talks.engine.handles) == 1

    run(talk())


def test_places_are_given_back_whatever_happens() -> None:
    async def one(server: Running, number: int) -> None:
        peer: Peer = await join(server)
        await peer.say("start", settings={"system": "x" * (number % 3) * 100_000})
        if number % 2:
            await peer.next()
        peer.socket.transport.abort()

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), keep=0.0, max_sessions=8) as server, honest(server):
            for number in range(60):
                await one(server, number)
            while len(server.talks) > 1:
                await asyncio.sleep(0.05)
            assert len(server.talks.engine.handles) == 1
            assert len(server.server._connections) == 1

    run(talk())
