"""Batch work: whoever does it, the results are the same and in order, and errors say what they are about."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from duologue.data.ray_workers import LOCAL, RayWorkers
from duologue.data.workers import AHEAD, Here, Processes, Workers, in_order
from duologue.errors import BadData, EngineError, MissingDependency, UsageError

ANYBODY = (
    Here(),
    Processes(2),
    pytest.param(RayWorkers(LOCAL, 2), marks=[pytest.mark.ray, pytest.mark.filterwarnings("ignore")]),
)
anybody = pytest.mark.parametrize("workers", ANYBODY, ids=lambda workers: type(workers).__name__)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One cluster for all tests, where Ray is installed. Its actors find this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        try:
            with RayWorkers(LOCAL, 2).connected():
                yield
        except MissingDependency:
            yield


def halves(job: int) -> float:
    """What workers do in these tests."""
    if job == 0:
        error = BadData("line 0: nothing to halve")
        error.add_note("in row 0")
        raise error
    time.sleep(0.05 * (job % 3))  # so that later jobs are done earlier
    return job / 2


def dies_once(folder: Path, job: int) -> int:
    mark = folder / "died"
    if job == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def counting(jobs: range, taken: list[int]) -> Iterator[int]:
    for job in jobs:
        taken.append(job)
        yield job


@anybody
def test_results_are_in_the_order_of_the_jobs(workers: Workers) -> None:
    assert list(workers.map(halves, range(1, 14))) == [job / 2 for job in range(1, 14)]
    assert list(workers.map(halves, [])) == []


@anybody
def test_what_the_work_raises_is_raised_in_its_turn(workers: Workers) -> None:
    results = workers.map(halves, [2, 4, 0, 6])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(BadData, match=r"^line 0: nothing to halve") as found:
        next(results)
    assert found.value.__notes__ == ["in row 0"]


@anybody
def test_what_the_jobs_raise_ends_the_work(workers: Workers) -> None:
    def jobs() -> Iterator[int]:
        yield 2
        raise UsageError("no more sources")

    with pytest.raises(UsageError, match="no more sources"):
        list(workers.map(halves, jobs()))


@anybody
def test_jobs_are_taken_as_they_are_needed(workers: Workers) -> None:
    taken: list[int] = []
    results = workers.map(halves, counting(range(1, 1000), taken))
    assert [next(results) for _ in range(3)] == [0.5, 1, 1.5]
    assert len(taken) <= 3 + 2 * (1 + AHEAD)
    if not isinstance(workers, Here):
        results.close()  # type: ignore[attr-defined]


def test_at_most_so_many_jobs_are_under_way() -> None:
    running: list[int] = []
    most = 0

    def start(job: int) -> Callable[[], int]:
        nonlocal most
        running.append(job)
        most = max(most, len(running))
        return partial(finish, job)

    def finish(job: int) -> int:
        running.remove(job)
        return -job

    found = in_order(range(10), start, lambda ticket: ticket(), num=4)
    assert list(found) == [-job for job in range(10)]
    assert most == 4
    assert not running


def test_a_process_that_is_killed_is_explained(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"was killed.*fewer --workers"):
        list(Processes(2).map(partial(dies_once, tmp_path), range(6)))


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_job_of_an_actor_that_is_killed_is_done_again(tmp_path: Path) -> None:
    assert list(RayWorkers(LOCAL, 2).map(partial(dies_once, tmp_path), range(6))) == list(range(6))
    assert (tmp_path / "died").exists()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_too_small_is_explained() -> None:
    with pytest.raises(
        UsageError, match="has 2 CPUs, and each worker takes 2 CPUs: there is room for 1 workers, not for 2"
    ):
        list(RayWorkers(LOCAL, 2, cores=2).map(halves, [1]))


@pytest.mark.parametrize("address", ["", "nowhere", "http://127.0.0.1:80", "ray://127.0.0.1:10001", ":6379", "host:"])
def test_an_address_that_cannot_be_one_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="write local, auto or host:port"):
        RayWorkers(address)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_something_else_that_listens_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("duologue.data.ray_workers._ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # which says nothing
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"no Ray cluster answers at {address}: timed out"):
            list(RayWorkers(address).map(halves, [1]))
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(EngineError, match="no Ray cluster answers at auto: timed out"):
            list(RayWorkers("auto").map(halves, [1]))
