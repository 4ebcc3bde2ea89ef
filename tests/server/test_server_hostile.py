"""Clients that do what they should not: nothing breaks, nobody else notices, nothing is left."""

import asyncio
import contextlib
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed

from duologue.core.events import EVENT_TYPES
from duologue.server.duplex.connection import MESSAGES
from duplex_peer import ANSWERS, LONG, Peer, join, run
from serving import Running, scripted_model, serving
from soak import IS_LONG, size

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 500), st.floats(allow_nan=False), st.text(max_size=12),
    st.sampled_from(["what is a cat", "mhm", "stop", "tell me a lot", "and the", "true", "stop-only", ""]),
    st.just([{"role": "user", "text": "hi"}]), st.just({"eagerness": 1}), st.lists(st.integers(), max_size=2),
)  # fmt: skip
FIELDS = sorted({name for items in MESSAGES.values() for name in items} | {"id", "number"})
MESSAGE = st.builds(
    lambda kind, rest: {"type": kind, **rest},
    st.sampled_from([*sorted(set(MESSAGES) - {"end"}), "unknown"]),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
)
TALK = st.lists(st.one_of(MESSAGE, MESSAGE, st.text(max_size=20)), max_size=25)


@settings(
    max_examples=size(12, 5000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not IS_LONG,
)
@given(TALK)
def test_whatever_is_sent_the_conversation_goes_on(messages):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), messages_per_second=1000, max_sessions=3) as server:
            peer = await join(server)
            for message in messages:
                await peer.socket.send(message if isinstance(message, str) else json.dumps(message))
            await peer.say("ping", id="last")
            while (answer := await peer.next()) != {"type": "pong", "id": "last"}:
                assert answer["type"] in {"started", "error", "pong", *EVENT_TYPES}
                assert answer.get("code") in (None, "bad_message", "bad_request")
            for conversation in server.talks._open.values():
                assert conversation.is_open

    run(talk())


def told(peer: Peer) -> list[tuple[Any, ...]]:
    """What was said and decided, without the times."""
    kept = [m for m in peer.seen if m["type"] in ("decided", "suspended", "dropped", "committed")]
    text = "".join(m["text"] for m in peer.seen if m["type"] == "said")
    return [text, *[(m["type"], m.get("state"), m.get("reason"), m.get("text"), m.get("heard")) for m in kept]]


async def well_behaved(server: Running) -> list[tuple[Any, ...]]:
    peer = await join(server)
    await peer.start(settings={"hearing": "reported"})
    await peer.say("hear", text="tell me a lot", final=True, utterance="a")
    await peer.until("said", lambda m: m["start"] > 30)
    await peer.say("heard", position=30)
    await peer.until("heard")
    await peer.say("hear", text="mhm", final=True, utterance="b")
    await peer.until("dropped")
    await peer.say("hear", text="what is a cat", final=True, utterance="c")
    await peer.until("suspended")
    for position in (12, 40):  # ends of words
        while "".join(m["text"] for m in peer.seen if m["type"] == "said" and m["answer"] == 1)[position:] == "":
            await peer.next()
        await peer.say("heard", position=position, answer=1)
        await peer.until("heard")
    await peer.say("end")
    return told(peer)


async def misbehave(server: Running, kind: str) -> None:
    chance = random.Random(kind)
    peer = await join(server)
    await peer.start(settings={"hearing": "shown"})
    for i in range(60):
        await peer.say("hear", text=" ".join(["tell me a lot"] * (i % 7)), utterance=f"u{i % 5}", final=i % 3 == 0)
        await asyncio.sleep(0)
    match kind:
        case "killed":
            peer.socket.transport.abort()
        case "half open":
            peer.socket.transport.pause_reading()
            await asyncio.sleep(0.5)
        case "huge":
            await peer.socket.send("x" * 3_000_000)
            await peer.closed()
        case "rubbish":
            for _ in range(200):
                await peer.socket.send(chance.randbytes(200))
        case "raw":
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /v1/duplex HTTP/1.1\r\nHost: x\r\n" + chance.randbytes(2000))
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(100), 0.5)
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("kind", ["killed", "half open", "huge", "rubbish", "raw"])
def test_nobody_else_notices(kind):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server:
            alone = await well_behaved(server)
            beside, _ = await asyncio.gather(well_behaved(server), misbehave(server, kind))
            assert len(alone[0]) > 60
            assert LONG.startswith(alone[0][:30])
            # How far the answers had been written when they were cut depends on the time, what was heard does not.
            assert beside[1:] == alone[1:]

    run(talk())


def test_thousands_of_connections_leave_nothing():
    number = size(100, 10_000)

    async def one(server: Running, chance: random.Random) -> None:
        socket = await open_socket(server.http.replace("http", "ws") + "/v1/duplex", ping_interval=None)
        try:
            moment = chance.randrange(5)
            if moment > 0:
                await socket.send('{"type": "start", "settings": {"hearing": "shown"}}')
            if moment > 1:
                await socket.send('{"type": "hear", "text": "what is a cat", "final": true}')
            for _ in range(chance.randrange(12) if moment > 2 else 0):
                await socket.recv()
            if moment == 4:
                await socket.send('{"type": "end"}')
        except ConnectionClosed:
            pass
        finally:
            socket.transport.abort()
            await socket.wait_closed()

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), keep=0.2, max_sessions=16) as server:
            chance = random.Random(0)
            before = len(asyncio.all_tasks())
            for _ in range(number // 10):
                await asyncio.gather(*(one(server, chance) for _ in range(10)))
            while len(server.talks):
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.1)
            assert len(asyncio.all_tasks()) == before
            assert server.talks.engine.handles == ()
            assert server.talks.engine.handles == ()
            assert server.talks.model.backend.usage().num_seqs == 0

    run(talk(), seconds=60 + number / 10)
