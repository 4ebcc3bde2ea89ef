"""Who does work that consists of many jobs: this process, processes beside it, or a Ray cluster (`ray_workers`).

Knows neither jobs nor results. Both are pickled, except by `Here`.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, final

from duologue.errors import EngineError

Job = TypeVar("Job")
Result = TypeVar("Result")
Ticket = TypeVar("Ticket")

AHEAD = 2
"""Jobs for each worker that are taken before they are needed."""


class Workers(Protocol):
    """Do jobs. The results do not depend on who does them."""

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """The result of `work` for each job, in the order of the jobs, which are taken as they are needed.

        `work` goes to each worker once, which keeps it; so it may load what it needs with its first job. What it raises
        is raised here in its job's turn. Closing the iterator ends all work.

        Raises:
            EngineError: a worker was killed, or the workers cannot be reached.
        """


@final
@dataclass(frozen=True, slots=True)
class Here:
    """This process alone."""

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """See `Workers.map`."""
        return map(work, jobs)


@final
@dataclass(frozen=True, slots=True)
class Processes:
    """Processes of this machine."""

    num: int

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """See `Workers.map`."""
        # forking a process that has threads is not safe; libraries have some
        pool = ProcessPoolExecutor(self.num, multiprocessing.get_context("spawn"), _set_up, (work,))
        others = set(multiprocessing.active_children())

        def submit(job: Job) -> Future[Result]:
            return pool.submit(_do, job)

        try:
            yield from in_order(jobs, submit, Future.result, num=self.num * (1 + AHEAD))
        except BaseException as error:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise EngineError(
                    "a worker process was killed, perhaps because the memory was full; repeat the command, with fewer "
                    "--workers"
                ) from None
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def in_order(
    jobs: Iterable[Job], start: Callable[[Job], Ticket], finish: Callable[[Ticket], Result], *, num: int
) -> Iterator[Result]:
    """The results of jobs of which at most `num` are started and not finished."""
    started: deque[Ticket] = deque()
    for job in jobs:
        started.append(start(job))
        if len(started) == num:
            yield finish(started.popleft())
    while started:
        yield finish(started.popleft())


_work: Callable[[Any], Any] | None = None  # of a process of a pool


def _set_up(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one


def _do(job: Any) -> Any:
    assert _work is not None, "the pool sets it up"
    return _work(job)
