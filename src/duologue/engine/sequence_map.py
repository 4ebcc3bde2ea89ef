"""Maps one session's sequence numbers to the backend's."""

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from duologue.core.backend import Backend, Extend
from duologue.core.cache import Fork, Free, Op, Truncate
from duologue.errors import CacheFull, DuologueError, EngineError
from duologue.types import Seq


class SequenceMap:
    """Applies the cache operations of a session's plans, each exactly once and in order.

    `seqs` maps the session's numbers to the backend's.
    """

    def __init__(self, backend: Backend) -> None:
        self.seqs: dict[Seq, Seq] = {}
        self._backend = backend
        self._waiting: deque[Op] = deque()  # planned, not yet applied

    @property
    def is_behind(self) -> bool:
        """Whether planned operations still wait for room in the cache."""
        return bool(self._waiting)

    def apply(self, ops: Iterable[Op]) -> None:
        """Apply `ops` after those that still wait.

        Raises:
            CacheFull: no further sequence can be opened. The remaining operations wait for the next call.
            EngineError: the backend failed; the library's exception is the cause.
        """
        self._waiting.extend(ops)
        while self._waiting:
            try:
                self._apply(self._waiting[0])
            except CacheFull:
                if not self._free_ahead():
                    raise
                continue
            except Exception as error:
                raise backend_failure(self._backend, error)  # noqa: B904  # it has its cause
            self._waiting.popleft()

    def renamed(self, batch: Iterable[Extend]) -> list[Extend]:
        """`batch` with the backend's sequence numbers."""
        return [replace(extend, seq=self.seqs[extend.seq]) for extend in batch]

    def named(self, seqs: frozenset[Seq] | None) -> frozenset[Seq]:
        """The session's numbers of those of the backend's `seqs` that are its own (None: of all its own)."""
        return frozenset(own for own, seq in self.seqs.items() if seqs is None or seq in seqs)

    def free_all(self) -> None:
        """Free every sequence and discard waiting operations.

        Raises:
            EngineError: the backend failed.
        """
        self._waiting.clear()
        try:
            while self.seqs:
                self._backend.free(self.seqs.popitem()[1])
        except Exception as error:
            raise backend_failure(self._backend, error)  # noqa: B904  # it has its cause

    def _apply(self, op: Op) -> None:
        match op:
            case Fork(seq, None, _, listens):
                self.seqs[seq] = self._backend.fork_listening() if listens else self._backend.fork(None)
            case Fork(seq, int(parent), length):
                self.seqs[seq] = self._backend.fork(self.seqs[parent], length)
            case Truncate(seq, length):
                self._backend.truncate(self.seqs[seq], length)
            case Free(seq):
                self._backend.free(self.seqs.pop(seq))

    def _free_ahead(self) -> bool:
        """Apply one waiting `Free` on which no earlier operation depends. Returns whether there was one."""
        needed: set[Seq | None] = set()
        for op in self._waiting:
            if isinstance(op, Free) and op.seq in self.seqs and op.seq not in needed:
                self._apply(op)
                self._waiting.remove(op)
                return True
            needed |= {op.seq, op.parent} if isinstance(op, Fork) else {op.seq}
        return False


def as_failure(error: Exception, what: str, advice: str = "") -> DuologueError:
    """`error` itself if it is one of Duologue's, else an `EngineError` that describes it and has it as its cause."""
    if isinstance(error, DuologueError):
        return error
    failure = EngineError(": ".join(filter(None, (what, type(error).__name__, str(error)))) + advice)
    failure.__cause__ = error
    return failure


def backend_failure(backend: Backend, error: Exception) -> DuologueError:
    """The same for an exception of the backend."""
    return as_failure(error, f"the {backend.info.name} backend failed")
