"""Long texts are tokenised in a thread: those of a client one after the other, with a rest after each.

So the event loop serves everybody meanwhile, and no client can keep a core from those that speak.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

PER_TURN = 20  # characters that take as long to tokenise as the markup of a turn
_LONG = 4000  # characters; tokenising them takes some milliseconds
_REST = 3.0  # times as long as a text took, until the next one of its client
P = ParamSpec("P")
T = TypeVar("T")


class _Lane:
    """The long texts of one client."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.rests_until = 0.0  # time of the event loop


class LongTexts:
    """The long texts of all clients."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    async def run(self, client: str, size: int, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Run `call`, which tokenises `size` characters of `client`; in a thread if they are many."""
        if size < _LONG:
            return call(*args, **options)
        loop = asyncio.get_running_loop()
        self._forget(loop.time())
        lane = self._lanes.setdefault(client, _Lane())
        async with lane.turn:
            await asyncio.sleep(lane.rests_until - loop.time())
            began = loop.time()
            try:
                return await asyncio.to_thread(call, *args, **options)
            finally:
                lane.rests_until = loop.time() + _REST * (loop.time() - began)

    def _forget(self, now: float) -> None:
        """Forget clients without long texts."""
        lanes = self._lanes.items()
        self._lanes = {client: lane for client, lane in lanes if lane.turn.locked() or lane.rests_until > now}
