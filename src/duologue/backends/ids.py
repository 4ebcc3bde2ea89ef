"""Backends without KV: a sequence is a list of ids, and usage is counted as in a cache whose forks share entries."""

import itertools
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence

from duologue.backends.slots import check_room
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage, check_batch
from duologue.errors import CacheFull, UnknownSeq, UsageError, require
from duologue.types import Seq, Token


class IdBackend(Backend):
    """A backend except for `step`, which computes the result of a pass from the ids of the sequence.

    Each token is stored with an *entry*, a number that forks share as they would share a place in a KV cache. This
    bookkeeping is deliberately separate from `SlotTable`, so that each checks the other in tests.
    """

    def __init__(self, info: BackendInfo) -> None:
        require(
            info.capacity >= 1 and info.max_seqs >= 1,
            f"capacity {info.capacity} and max_seqs {info.max_seqs} must both be at least 1",
        )
        self._info = info
        self._seqs: dict[Seq, list[tuple[Token, int]]] = {}
        self._names = itertools.count(1)
        self._entries = itertools.count()
        self._holders: Counter[int] = Counter()  # sequences that hold an entry

    @abstractmethod
    def step(self, extend: Extend, tokens: list[Token]) -> Step:
        """Result for `extend`. `tokens` is the whole sequence, including the tokens that are being fed."""

    def steps(self, batch: Sequence[Extend]) -> list[Step]:
        """Results for `batch`, which is valid and is appended afterwards."""
        return [self.step(extend, [*self.tokens(extend.seq), *extend.tokens]) for extend in batch]

    @property
    def info(self) -> BackendInfo:
        return self._info

    def tokens(self, seq: Seq) -> list[Token]:
        """The ids in `seq`. Raises `UnknownSeq`."""
        return [token for token, _ in self._get(seq)]

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        held = [] if parent is None else self._get(parent)
        if not 0 <= length <= len(held):
            raise UsageError(f"cannot share {length} tokens of sequence {parent}, which has {len(held)} cached")
        if len(self._seqs) >= self._info.max_seqs:
            raise CacheFull(f"{self._info.max_seqs} sequences are open, which is the limit (max_seqs); free one first")
        seq = next(self._names)
        self._seqs[seq] = held[:length]
        self._holders.update(entry for _, entry in held[:length])
        return seq

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        self.check(batch)
        steps = self.steps(batch)
        for extend in batch:
            self.append(extend)
        return steps

    def append(self, extend: Extend) -> None:
        """Append the tokens of `extend` to its sequence."""
        new = [(token, next(self._entries)) for token in extend.tokens]
        self._get(extend.seq).extend(new)
        self._holders.update(entry for _, entry in new)

    def check(self, batch: Sequence[Extend]) -> None:
        """Raise the errors that `Backend.forward` documents for `batch`."""
        check_batch(self._info, batch)
        num_free = self._info.capacity - self.usage().kv_entries
        check_room(batch, self.length, self._info.context_length, num_free)

    def truncate(self, seq: Seq, length: int) -> None:
        held = self._get(seq)
        if not 0 <= length <= len(held):
            raise UsageError(f"cannot cut sequence {seq} to {length} tokens; it has {len(held)} cached")
        for _, entry in held[length:]:
            self._holders[entry] -= 1
            if not self._holders[entry]:
                del self._holders[entry]
        del held[length:]

    def free(self, seq: Seq) -> None:
        self.truncate(seq, 0)
        del self._seqs[seq]

    def length(self, seq: Seq) -> int:
        return len(self._get(seq))

    def usage(self) -> Usage:
        return Usage(num_seqs=len(self._seqs), kv_entries=len(self._holders), kv_bytes=0)

    def _get(self, seq: Seq) -> list[tuple[Token, int]]:
        if seq not in self._seqs:
            raise UnknownSeq(f"no sequence {seq} is open; open ones: {sorted(self._seqs)[:16]}")
        return self._seqs[seq]
