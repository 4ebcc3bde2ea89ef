"""Workers of a Ray cluster, by Ray Data: a source that gives out jobs, and a pool of actors that do them."""

import logging
import os
import pickle
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

from duologue import __version__
from duologue.data.workers import AHEAD, Job, Result, in_order
from duologue.errors import EngineError, MissingDependency, UsageError, require

LOCAL, RUNNING = "local", "auto"
"""Addresses: a cluster of this machine that lasts as long as the work; the one that runs on this machine."""

_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How HTTP/2 begins, which Ray speaks (RFC 9113, 3.4): what every client says, and settings without any."""
_SETTINGS = 4  # type of a frame, in its fourth byte; a server's first one has it

_ANSWER_S = 5.0  # that a cluster has to answer
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody's use is counted
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # which Ray warns about otherwise
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # it reports to its log files, not to the terminal
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine takes more than Ray's 30 seconds
}


@final
@dataclass(frozen=True, slots=True)
class RayWorkers:
    """Actors on the machines of a Ray cluster. Each machine needs this version of the package; no files are shared."""

    address: str
    """`LOCAL`, `RUNNING`, or host:port of a cluster that this machine belongs to."""
    num: int | None = None
    """Actors; None: as many as the cluster has room for."""
    cores: int = 1
    """Of each actor."""
    gpus: int = 0
    """Of each actor."""

    def __post_init__(self) -> None:
        is_known = self.address in (LOCAL, RUNNING) or _place(self.address) is not None
        require(is_known, f"no Ray cluster has the address {self.address!r}; write {LOCAL}, {RUNNING} or host:port")

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """See `Workers.map`.

        Raises:
            MissingDependency: Ray is not installed.
            UsageError: the cluster is too small.
            EngineError: nobody answers at the address, or a machine of the cluster lacks this version of the package.
        """
        with self.connected() as ray:
            from ray.util.queue import Queue

            num = self._room(ray.cluster_resources())
            queue = Queue(actor_options={"num_cpus": 0})
            done = self._done(queue, pickle.dumps(work), num)
            try:
                given = _ended(map(pickle.dumps, jobs), queue.put)
                yield from in_order(given, queue.put, lambda _: _unpacked(next(done)), num=num * (1 + AHEAD))
            except ray.exceptions.RayError as error:
                raise EngineError(
                    f"the Ray cluster failed: {str(error).strip().splitlines()[-1]}. Each of its machines needs "
                    f"duologue {__version__}; repeat the command when it is mended"
                ) from None
            finally:
                with _quiet():
                    done.close()
                    queue.shutdown(force=True)

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """The library, connected to the cluster, for several calls of `map`; to that of this process, if it has one.

        Raises what `map` raises.
        """
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import pyarrow  # noqa: F401 - of Ray Data
            import ray
            import ray.data
        except ImportError as error:
            raise MissingDependency(
                f"a Ray cluster needs {error.name}; install it with: pip install 'duologue[ray]'"
            ) from error
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        if ray.is_initialized():
            yield ray
            return
        options: dict[str, Any] = {}
        if self.address == LOCAL:
            cores = self.num and self.num * self.cores
            options = {"include_dashboard": False, "num_cpus": cores, "_node_ip_address": "127.0.0.1"}
        try:
            _check_answer(os.environ.get("RAY_ADDRESS", "") if self.address == RUNNING else self.address)
            with _quiet():
                ray.init(self.address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
        except Exception as error:
            raise EngineError(f"no Ray cluster answers at {self.address}: {error}") from None
        try:
            yield ray
        finally:
            with _quiet():
                ray.shutdown()

    def _room(self, resources: dict[str, float]) -> int:
        """How many actors there are to be, in a cluster with so much of everything."""
        need = {name: num for name, num in (("CPU", self.cores), ("GPU", self.gpus)) if num}
        num = min(int(resources.get(name, 0) / each) for name, each in need.items())
        if num < (self.num or 1):
            has, takes = (" and ".join(f"{of.get(name, 0):g} {name}s" for name in need) for of in (resources, need))
            raise UsageError(
                f"the Ray cluster at {self.address} has {has}, and each worker takes {takes}: there is room for {num} "
                f"workers, not for {self.num or 1}"
            )
        return self.num or num

    def _done(self, queue: Any, work: bytes, num: int) -> Generator[bytes, None, None]:
        """What the actors make of the jobs in the queue, in their order."""
        import ray.data

        given = ray.data.from_items([{"queue": 0}], override_num_blocks=1).map_batches(
            _Source(queue), batch_size=None, batch_format="pyarrow", num_cpus=0
        )
        done = given.map_batches(
            _Actor,
            fn_constructor_args=(work, __version__),
            compute=ray.data.ActorPoolStrategy(size=num),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=self.cores,
            num_gpus=self.gpus,
        )
        done.context.execution_options.preserve_order = True
        done.context.enable_progress_bars = False
        done.context.execution_no_progress_timeout_s = -1  # a job may take any time
        done.context.target_max_block_size = 1  # every job is a block of its own, which waits for no other
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for each in batch["bytes"]:
                yield each.as_py()


@final
class _Source:
    """Takes pickled jobs out of the queue, as they come, up to a None."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def __call__(self, _: Any) -> Iterator[Any]:
        yield from map(_table, iter(self._queue.get, None))


@final
class _Actor:
    """Does pickled jobs. An error is a result, too: Ray would add its own words to it."""

    def __init__(self, work: bytes, version: str) -> None:
        self._pickled, self._version = work, version
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, batch: Any) -> Any:
        try:
            if self._version != __version__:
                raise EngineError(f"{socket.gethostname()} has duologue {__version__}, not {self._version}")
            self._work = self._work or pickle.loads(self._pickled)
            return _table(pickle.dumps((self._work(pickle.loads(batch["bytes"][0].as_py())), None)))
        except Exception as error:
            return _table(pickle.dumps((None, error)))


def _table(content: bytes) -> Any:
    """A row of bytes, as Ray Data has it."""
    import pyarrow

    return pyarrow.table({"bytes": pyarrow.array([content], pyarrow.binary())})


def _unpacked(done: bytes) -> Any:
    result, error = pickle.loads(done)
    if error is not None:
        raise error
    return result


def _ended(jobs: Iterable[bytes], put: Callable[[None], None]) -> Iterator[bytes]:
    """The jobs; then the source is told that there are no more."""
    yield from jobs
    put(None)


def _check_answer(address: str) -> None:
    """Raise `OSError` unless something like a cluster answers at a host and port. Ray itself waits for minutes."""
    place = _place(address)
    if place is None or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    with socket.create_connection(place, _ANSWER_S) as connection:
        connection.sendall(_HELLO)
        if connection.recv(9)[3:4] != bytes((_SETTINGS,)):
            raise OSError("what listens there is not Ray")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the standard error of this process, where Ray says that it is quiet, and that it ends what is ended."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _place(address: str) -> tuple[str, int] | None:
    """The host and the port of an address that has them."""
    host, _, port = address.rpartition(":")
    return (host.strip("[]"), int(port)) if host and "/" not in host and port.isdigit() else None
