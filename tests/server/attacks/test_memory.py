"""What conversations leave behind: nothing, once they are closed, and not more than their budget before."""

import asyncio
import gc
import tracemalloc
import weakref

import pytest

import realtime_peer
from duologue.core.events import Edited, Received
from duologue.server.conversation import MOST_BYTES, EventLog
from duologue.types import Role, Turn
from duplex_peer import ANSWERS, OPEN, join, run
from honest import honest
from serving import Running, scripted_model, serving
from soak import size

NUM_CONVERSATIONS = size(60, 1000)


def test_kept_events_are_weighed() -> None:
    log = EventLog(most_bytes=10_000)
    for number in range(100):
        log.add(Received(0.0, "one", "x" * number * 10, False))
        assert log.num_bytes <= 10_000
    assert log.has(log.newest - 5)
    log.add(Edited(0.0, (Turn(Role.USER, "x" * 50_000),)))
    assert log.num_bytes > 10_000, "the newest one is always there"
    assert log.has(log.newest - 1)
    assert not log.has(log.newest - 2)
    log.add(Received(0.0, "one", "", False))
    assert log.num_bytes < 1000


def test_long_words_are_not_kept() -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), messages_per_second=10_000) as server, honest(server):
            peer = await join(server)
            name = (await peer.start())["session"]
            log = server.talks._open[name].events
            for number in range(40):
                await peer.say("hear", text="word " * 100_000, utterance=f"u{number}", final=True)
                await peer.until("dropped")
            assert log.num_bytes < 100_000
            for number in range(300):
                await peer.say("hear", text=f"mhm {number} " * 500 + "mhm", utterance="long")
            await peer.say("ping")
            await peer.until("pong")
            assert log.num_bytes <= MOST_BYTES

    run(talk())


@pytest.mark.parametrize("kind", ["duplex", "realtime"])
def test_a_closed_conversation_is_gone_at_once(kind: str) -> None:
    async def duplex(server: Running) -> None:
        peer = await join(server)
        await peer.start(settings={"hearing": "shown"})
        await peer.say("hear", text="what is a cat", final=True)
        await peer.until("committed")
        found.append(weakref.ref(next(iter(server.talks))))
        await peer.say("end")
        await peer.closed()

    async def realtime(server: Running) -> None:
        peer = await realtime_peer.join(server)
        await peer.ask("what is a cat")
        await peer.until("response.done")
        found.append(weakref.ref(next(iter(server.talks))))
        await peer.socket.close()

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server:
            await (duplex(server) if kind == "duplex" else realtime(server))
            for _ in range(1000):
                if found[0]() is None:
                    break
                await asyncio.sleep(0.01)
            assert found[0]() is None, gc.get_referrers(found[0]())

    found: list[weakref.ref[object]] = []
    gc.collect()
    gc.disable()
    try:
        run(talk())
    finally:
        gc.enable()


def test_many_conversations_leave_nothing() -> None:
    async def one(server: Running, number: int) -> None:
        peer = await join(server)
        await peer.start(settings={"hearing": "shown"}, history=[{"role": "user", "text": "x" * 500}])
        await peer.say("hear", text=f"what is a cat {number}", final=True)
        await peer.until("said")
        await peer.say("end")
        await peer.closed()
        OPEN.remove(peer.socket)

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server, honest(server):
            for number in range(20):
                await one(server, number)
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for number in range(NUM_CONVERSATIONS):
                await one(server, number)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            assert grown < 200_000 + 1000 * NUM_CONVERSATIONS, "about what one conversation takes"

    run(talk(), seconds=120 + NUM_CONVERSATIONS)
