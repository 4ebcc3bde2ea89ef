"""Engines whose passes can be held up, and conversations that leave nothing behind."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from duologue.core.backend import Extend, Step
from scripted import Talk


def run(talk: Coroutine[Any, Any, None]) -> None:
    """Run to the end, and see that no task and no worker is left."""

    async def alone() -> None:
        await asyncio.wait_for(talk, 20)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(alone())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("duologue-backend")]


class Gate:
    """A backend whose passes can be held up, in the thread that owns it."""

    def __init__(self, talk: Talk) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.opened.set()
        self._forward = talk.backend.forward
        talk.backend.forward = self._wait

    def _wait(self, batch: Sequence[Extend]) -> list[Step]:
        self.entered.set()
        assert self.opened.wait(10)
        return self._forward(batch)

    async def hold(self) -> None:
        """From now on a pass is under way."""
        self.entered.clear()
        self.opened.clear()
        await asyncio.to_thread(self.entered.wait, 10)
