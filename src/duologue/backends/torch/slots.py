"""Which slot of a KV pool holds which token of which sequence. Knows counts and positions, not keys or models."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from duologue.errors import CacheFull, UnknownSeq, UsageError
from duologue.types import Seq

IntArray = npt.NDArray[np.int64]

_EMPTY: IntArray = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class _Held:
    """One open sequence."""

    slots: IntArray  # slot of each token, in the order of the tokens
    conversation: int  # sequences that came from one another by forking have the same


class SlotTable:
    """Slot lists of sequences over a pool of `capacity` slots, with a count of owners per slot.

    Forking copies a list of numbers, never KV. A token's slot also keeps its position, which is the same in every
    sequence that shares it.
    """

    def __init__(self, capacity: int, max_seqs: int) -> None:
        if capacity < 1 or max_seqs < 1:
            raise UsageError(f"capacity {capacity} and max_seqs {max_seqs} must both be at least 1")
        self.capacity = capacity
        self.max_seqs = max_seqs
        self.positions: IntArray = np.zeros(capacity, dtype=np.int64)
        self._owners = np.zeros(capacity, dtype=np.int32)
        self._held: dict[Seq, _Held] = {}
        self._names = itertools.count(1)
        self._conversations = itertools.count(1)

    @property
    def num_seqs(self) -> int:
        """Open sequences."""
        return len(self._held)

    @property
    def num_used(self) -> int:
        """Slots that hold a token of at least one sequence."""
        return int(np.count_nonzero(self._owners))

    def slots(self, seq: Seq) -> IntArray:
        """Slots of `seq`, one per token. Raises `UnknownSeq`."""
        return self._get(seq).slots

    def length(self, seq: Seq) -> int:
        """Tokens in `seq`. Raises `UnknownSeq`."""
        return len(self._get(seq).slots)

    def conversation(self, seq: Seq) -> int:
        """A number that sequences which may share slots have in common. Raises `UnknownSeq`."""
        return self._get(seq).conversation

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        """See `Backend.fork`."""
        held = None if parent is None else self._get(parent)
        available = 0 if held is None else len(held.slots)
        if not 0 <= length <= available:
            raise UsageError(f"cannot share {length} tokens of sequence {parent}, which has {available} cached")
        if len(self._held) >= self.max_seqs:
            raise CacheFull(f"{self.max_seqs} sequences are open, which is the limit (max_seqs); free one first")
        if held is None or length == 0:
            child = _Held(_EMPTY, next(self._conversations))
        else:
            child = _Held(held.slots[:length].copy(), held.conversation)
        self._owners[child.slots] += 1
        seq = next(self._names)
        self._held[seq] = child
        return seq

    def extend(self, wanted: Sequence[tuple[Seq, int]]) -> list[IntArray]:
        """Give each (sequence, number of tokens) that many new slots, all or none.

        Raises:
            UnknownSeq: no such sequence.
            CacheFull: the pool has fewer free slots than wanted in all.
        """
        helds = [self._get(seq) for seq, _ in wanted]
        num_free = self.capacity - self.num_used
        num_wanted = sum(number for _, number in wanted)
        if num_wanted > num_free:
            raise CacheFull(
                f"the pass feeds {num_wanted} tokens, but only {num_free} of {self.capacity} KV entries are free; "
                "free or truncate a sequence, or open the backend with a larger capacity"
            )
        return [self._grow(held, number) for held, (_, number) in zip(helds, wanted, strict=True)]

    def truncate(self, seq: Seq, length: int) -> None:
        """See `Backend.truncate`."""
        held = self._get(seq)
        if not 0 <= length <= len(held.slots):
            raise UsageError(f"cannot cut sequence {seq} to {length} tokens; it has {len(held.slots)} cached")
        self._owners[held.slots[length:]] -= 1
        held.slots = held.slots[:length]

    def free(self, seq: Seq) -> None:
        """See `Backend.free`."""
        self.truncate(seq, 0)
        del self._held[seq]

    def _get(self, seq: Seq) -> _Held:
        held = self._held.get(seq)
        if held is None:
            raise UnknownSeq(f"no sequence {seq} is open; open ones: {sorted(self._held)[:16]}")
        return held

    def _grow(self, held: _Held, number: int) -> IntArray:
        free = np.flatnonzero(self._owners == 0)
        start = int(np.searchsorted(free, self._hint(held, free)))
        # From the hint on, and round the end of the pool: the tokens of a conversation lie side by side while there is
        # room, so that attention reads a range instead of gathering.
        new = free[start : start + number]
        if len(new) < number:
            new = np.concatenate([new, free[: number - len(new)]])
        self._owners[new] = 1
        self.positions[new] = np.arange(len(held.slots), len(held.slots) + number)
        held.slots = np.concatenate([held.slots, new])
        return new

    def _hint(self, held: _Held, free: IntArray) -> int:
        if len(held.slots):
            return int(held.slots[-1]) + 1
        if len(free) == self.capacity:
            return 0
        # A new conversation starts in the middle of the widest gap, so that its neighbour and itself can both grow.
        ends = np.flatnonzero(np.diff(free) != 1)
        starts = np.concatenate([[0], ends + 1])
        lengths = np.diff(np.concatenate([starts, [len(free)]]))
        widest = int(np.argmax(lengths))
        return int(free[starts[widest] + lengths[widest] // 2])
