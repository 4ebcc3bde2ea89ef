"""Events on their way to a client, in the order in which they came about."""

import asyncio
from collections import deque
from typing import Any

from duologue.server.realtime.items import new_id
from duologue.server.wire import Wire

MOST_WAITING = 4096  # events for a client that reads slowly
_ROOM = 256  # while more wait, nothing more is asked of it


class Outbox:
    """Takes events at once, and sends them as fast as the client takes them."""

    def __init__(self, wire: Wire) -> None:
        self.overflow = asyncio.Event()  # events were lost: the client knows no longer what there is
        self._wire = wire
        self._waiting: deque[dict[str, Any]] = deque()
        self._changed = asyncio.Event()
        self._is_over = False

    def put(self, kind: str, /, **fields: Any) -> None:
        """An event of type `kind`."""
        if len(self._waiting) >= MOST_WAITING:
            self.overflow.set()
        else:
            self._waiting.append({"type": kind, "event_id": new_id("event"), **fields})
        self._changed.set()

    def finish(self) -> None:
        """What waits is the last."""
        self._is_over = True
        self._changed.set()

    async def run(self) -> None:
        """Send, until the client is gone, or all was sent and there is no more."""
        while True:
            self._changed.clear()
            if self._waiting:
                if not await self._wire.send(self._waiting.popleft()):
                    return
                self._changed.set()
            elif self._is_over:
                return
            else:
                await self._changed.wait()

    async def room(self) -> None:
        """Until the client has taken most of what was sent: who asks faster than it reads has to wait."""
        while len(self._waiting) > _ROOM:
            self._changed.clear()
            await self._changed.wait()
