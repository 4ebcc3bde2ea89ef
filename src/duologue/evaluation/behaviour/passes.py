"""Runs several cases at a time on one backend, so that a pass reads the weights once for all of them.

Every case has its own thread, session and virtual clock, so that no verdict depends on the others. A pass runs when
every thread waits for one, so the speed of the threads does not affect which cases share it.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, final

from duologue.core.backend import Backend, Extend, Step

T = TypeVar("T")


@final
class SharedPasses:
    """Merges the batches of `num_threads` threads into one pass."""

    def __init__(self, backend: Backend, num_threads: int) -> None:
        self.backend = backend
        self.lock = threading.RLock()  # for calls of the backend: a pass runs only when there are none
        self._num_threads = num_threads
        self._changed = threading.Condition(self.lock)
        self._wanted: dict[int, Sequence[Extend]] = {}
        self._steps: dict[int, list[Step]] = {}
        self._failure: BaseException | None = None

    def forward(self, thread: int, batch: Sequence[Extend]) -> list[Step]:
        """`Backend.forward` for one thread; waits until all others want a pass, too.

        If the backend raises an error, every thread raises it.
        """
        with self._changed:
            self._wanted[thread] = batch
            self._run_if_complete()
            self._changed.wait_for(lambda: thread in self._steps or self._failure is not None)
            if self._failure is not None:
                raise self._failure
            return self._steps.pop(thread)

    def leave(self) -> None:
        """Record that a thread has nothing more to feed."""
        with self._changed:
            self._num_threads -= 1
            self._run_if_complete()

    def _run_if_complete(self) -> None:
        if not self._wanted or len(self._wanted) < self._num_threads or self._failure is not None:
            return
        order = sorted(self._wanted)
        try:
            steps = self.backend.forward([extend for thread in order for extend in self._wanted[thread]])
        except Exception as error:
            self._failure = error
        else:
            for thread in order:
                size = len(self._wanted[thread])
                self._steps[thread], steps = steps[:size], steps[size:]
        self._wanted = {}
        self._changed.notify_all()


def run_together(
    jobs: Sequence[Callable[[SharedPasses, int], T]], backend: Backend, num_threads: int
) -> Iterator[tuple[int, T]]:
    """Run `jobs` on `num_threads` threads. Yields the number and result of each; thread n has n, n + num_threads, …"""
    num_threads = min(num_threads, len(jobs))
    shared = SharedPasses(backend, num_threads)

    def work(thread: int) -> list[tuple[int, T]]:
        try:
            return [(number, jobs[number](shared, thread)) for number in range(thread, len(jobs), num_threads)]
        finally:
            shared.leave()

    with ThreadPoolExecutor(num_threads) as pool:
        for done in pool.map(work, range(num_threads)):
            yield from done
