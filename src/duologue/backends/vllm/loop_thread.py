"""A thread with an event loop of its own, for work that others hand to it."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar, final

_T = TypeVar("_T")


@final
class LoopThread:
    """Runs coroutines and calls in the order in which they are handed over, from any thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Run `work`. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, act: Callable[..., object], *args: object) -> None:
        """Call `act` soon."""
        self._loop.call_soon_threadsafe(act, *args)

    def close(self) -> None:
        """Cancel what runs, and end the thread. Can be repeated."""
        if self._thread.is_alive():
            self.submit(_cancel_others()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
