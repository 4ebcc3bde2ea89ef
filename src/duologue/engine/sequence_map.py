"""What one session holds on a backend: its sequence numbers to the backend's names. Knows nothing of other sessions."""

from collections import deque
from collections.abc import Iterable

from duologue.core.backend import Backend, Extend
from duologue.core.cache import Fork, Free, Op, Truncate
from duologue.errors import CacheFull, DuologueError, EngineError
from duologue.types import Seq


class Carrier:
    """Carries out the cache changes of a session's plans, each of them exactly once and in order."""

    def __init__(self, backend: Backend) -> None:
        self.seqs: dict[Seq, Seq] = {}
        self._backend = backend
        self._waiting: deque[Op] = deque()  # planned and not carried out yet

    @property
    def is_behind(self) -> bool:
        """Whether something that was planned waits for room."""
        return bool(self._waiting)

    def carry_out(self, ops: Iterable[Op]) -> None:
        """Change the cache as planned.

        Raises:
            CacheFull: no further sequence can be opened. What is left waits, and is tried again with the next call.
            EngineError: the backend failed; what its library raised is the cause.
        """
        self._waiting.extend(ops)
        while self._waiting:
            try:
                self._apply(self._waiting[0])
            except CacheFull:
                if not self._free_ahead():
                    raise
                continue
            except DuologueError:
                raise
            except Exception as error:
                raise failure(self._backend, error) from error
            self._waiting.popleft()

    def renamed(self, batch: Iterable[Extend]) -> list[Extend]:
        """The same work in the backend's names."""
        return [Extend(self.seqs[e.seq], e.tokens, e.draw, e.watch, e.ticket) for e in batch]

    def free_all(self) -> None:
        """Forget everything, what is planned included.

        Raises:
            EngineError: the backend failed.
        """
        self._waiting.clear()
        try:
            while self.seqs:
                self._backend.free(self.seqs.popitem()[1])
        except DuologueError:
            raise
        except Exception as error:
            raise failure(self._backend, error) from error

    def _apply(self, op: Op) -> None:
        match op:
            case Fork(seq, parent, length):
                self.seqs[seq] = self._backend.fork(None if parent is None else self.seqs[parent], length)
            case Truncate(seq, length):
                self._backend.truncate(self.seqs[seq], length)
            case Free(seq):
                self._backend.free(self.seqs.pop(seq))

    def _free_ahead(self) -> bool:
        """Carry out one `Free` that nothing planned before it depends on. Returns whether there was one."""
        needed: set[Seq | None] = set()
        for op in self._waiting:
            if isinstance(op, Free) and op.seq in self.seqs and op.seq not in needed:
                self._apply(op)
                self._waiting.remove(op)
                return True
            needed |= {op.seq, op.parent} if isinstance(op, Fork) else {op.seq}
        return False


def failure(backend: Backend, error: Exception) -> EngineError:
    """What a backend's library raised, as an error of ours; to be raised from it."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return EngineError(f"the {backend.info.name} backend failed: {said}")
