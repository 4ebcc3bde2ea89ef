"""A client that behaves, beside others that do not."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from duplex_peer import Peer, join
from serving import Running


class Honest:
    """Says something several times a second, and measures how long it takes until it is judged."""

    def __init__(self, peer: Peer) -> None:
        self.latencies: list[float] = []  # seconds
        self._peer = peer

    async def talk(self) -> None:
        """Until it is cancelled."""
        number = 0
        while True:
            number += 1
            began = time.perf_counter()
            await self._peer.say("hear", text=f"mhm {number} mhm", utterance=f"honest{number}", final=True)
            await self._peer.until("decided", lambda m, number=number: m["utterance"] == f"honest{number}")
            self.latencies.append(time.perf_counter() - began)
            self._peer.seen.clear()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def honest(server: Running) -> AsyncIterator[Honest]:
    """One that talks meanwhile, is served throughout, and keeps its conversation."""
    peer = await join(server)
    session = (await peer.start(settings={"hearing": "shown"}))["session"]
    client = Honest(peer)
    talking = asyncio.create_task(client.talk())
    while len(client.latencies) < 3:
        await asyncio.sleep(0.01)
        assert not talking.done(), talking.exception()
    before = len(client.latencies)
    try:
        yield client
        while len(client.latencies) < before + 3:
            assert not talking.done(), talking.exception()
            await asyncio.sleep(0.01)
        assert session in server.talks._open, "it has its conversation"
    finally:
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
