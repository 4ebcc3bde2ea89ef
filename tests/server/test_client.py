"""The client of `/v1/duplex`, where connections and servers come and go."""

import asyncio

import pytest

from duologue.client import Talk, connect
from duologue.core.events import Event, Said
from duologue.errors import RemoteError
from duplex_peer import ANSWERS, run
from serving import scripted_model, serving

STARTED = {"type": "started", "session": "s", "model": "m", "number": 0, "taken": 0, "missed": False}


async def until(talk: Talk, kind: type[Event]) -> Event:
    """The next event of this kind."""
    async with asyncio.timeout(10):
        async for event in talk.events():
            if isinstance(event, kind):
                return event
    raise AssertionError("the conversation is over")


def test_a_conversation_that_another_client_took_over_is_not_taken_back():
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server:
            first = await connect(server.http)
            second = await connect(server.http, session=first.session)
            with pytest.raises(RemoteError, match="another connection"):
                await until(first, Said)
            second.hear("what is a cat", final=True)
            await until(second, Said)
            await first.aclose()
            await second.aclose()

    run(talk())
