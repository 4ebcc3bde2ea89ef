"""Texts that take long to be tokenised: what is too long is refused at once, what is long is tokenised in a thread."""

import asyncio
from typing import Any

import httpx
import pytest

import realtime_peer
from duplex_peer import ANSWERS, join, run
from honest import honest
from serving import Running, scripted_model, serving
from watchdog import watchdog

MEGABYTE = "word " * 200_000
LONG = "word " * 12_000  # may fit into the context, by its characters alone
EMPTY_TURNS = [{"role": "user", "text": ""}] * 30_000
MANY_TURNS = [{"role": "user" if i % 2 == 0 else "assistant", "text": "word"} for i in range(1000)]


async def start(server: Running, **fields: Any) -> None:
    peer = await join(server)
    await peer.say("start", **fields)
    await peer.until("error")


async def edit(server: Running, history: Any) -> None:
    peer = await join(server)
    await peer.start()
    await peer.say("edit", history=history)
    await peer.until("error")


async def hear(server: Running, text: str) -> None:
    peer = await join(server)
    await peer.start()
    await peer.say("hear", text=text, final=True)
    await peer.until("refused")


async def chat(server: Running, *messages: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=server.http, timeout=30) as http:
        answer = await http.post("/v1/chat/completions", json={"messages": list(messages)})
    assert answer.status_code == 400, answer.text


async def realtime(server: Running, kind: str, **fields: Any) -> None:
    peer = await realtime_peer.join(server)
    await peer.say(kind, **fields)
    await peer.error()
    peer.socket.transport.abort()
    await peer.socket.wait_closed()


async def many_items(server: Running) -> None:
    peer = await realtime_peer.join(server)
    for number in range(40):
        await peer.type("word " * 3000, role="assistant" if number % 2 else "system")
    await peer.say("response.create")
    await peer.settled()
    peer.socket.transport.abort()
    await peer.socket.wait_closed()


USER = {"role": "user", "content": "hi"}
ATTACKS = {
    "a long system prompt": lambda server: start(server, settings={"system": MEGABYTE}),
    "a system prompt that could fit": lambda server: start(server, settings={"system": LONG}),
    "a long history": lambda server: start(server, history=[{"role": "user", "text": MEGABYTE}]),
    "a history that could fit": lambda server: start(server, history=[{"role": "user", "text": LONG}]),
    "many turns": lambda server: start(server, history=EMPTY_TURNS),
    "many turns that could fit": lambda server: start(server, history=MANY_TURNS),
    "a long edit": lambda server: edit(server, [{"role": "user", "text": MEGABYTE}]),
    "an edit that could fit": lambda server: edit(server, MANY_TURNS),
    "long words": lambda server: hear(server, MEGABYTE),
    "a long chat message": lambda server: chat(server, {"role": "user", "content": MEGABYTE}),
    "a long chat history": lambda server: chat(server, *[USER] * 20_000),
    "long instructions": lambda server: realtime(
        server, "session.update", session={"type": "realtime", "instructions": MEGABYTE}
    ),
    "instructions of a response": lambda server: realtime(server, "response.create", response={"instructions": LONG}),
    "many long items": many_items,
    "a message of many values": lambda server: start(server, history=[{}] * 100_000),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_nothing_takes_the_event_loop_for_long(attack: Any) -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), max_sessions=4, messages_per_second=10_000) as server:
            async with honest(server):
                with watchdog() as found:
                    await asyncio.wait_for(attack(server), 50)
            assert found == []

    run(talk())


def test_the_watchdog_finds_what_takes_long() -> None:
    async def busy_of_duologue() -> None:
        end = asyncio.get_running_loop().time() + 0.2
        while asyncio.get_running_loop().time() < end:
            pass

    async def talk() -> None:
        with watchdog() as found:
            await asyncio.create_task(busy_of_duologue())
        assert "busy_of_duologue" in found[0][1]

    run(talk())
