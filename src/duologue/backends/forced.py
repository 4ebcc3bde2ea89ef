"""A backend that computes every pass for real, and whose results are then replaced from outside."""

from collections.abc import Callable, Sequence

from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage
from duologue.types import Seq


class Forced(Backend):
    """`backend` with what `outcome` makes of each result: same passes, same KV, chosen tokens and verdicts."""

    def __init__(self, backend: Backend, outcome: Callable[[Step], Step]) -> None:
        self._backend = backend
        self._outcome = outcome

    @property
    def info(self) -> BackendInfo:
        return self._backend.info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._backend.fork(parent, length)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        return [self._outcome(step) for step in self._backend.forward(batch)]

    def num_passes(self, batch: Sequence[Extend]) -> int:
        return self._backend.num_passes(batch)

    def truncate(self, seq: Seq, length: int) -> None:
        self._backend.truncate(seq, length)

    def free(self, seq: Seq) -> None:
        self._backend.free(seq)

    def length(self, seq: Seq) -> int:
        return self._backend.length(seq)

    def usage(self) -> Usage:
        return self._backend.usage()
