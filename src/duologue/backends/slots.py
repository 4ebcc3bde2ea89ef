"""Which KV entry ("slot") holds which token of which sequence. Knows counts and positions, not keys or models."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from duologue.core.backend import Extend
from duologue.errors import CacheFull, ContextOverflow, UnknownSeq, UsageError, require
from duologue.types import Seq

IntArray = npt.NDArray[np.int64]

_EMPTY: IntArray = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class _Sequence:
    """One open sequence of N tokens."""

    slots: IntArray  # [N], the slot of each token, in token order
    conversation: int  # shared by all sequences that descend from one another by forking


@final
class SlotTable:
    """Slot lists of sequences over a pool of C = `capacity` slots, with an owner count for each slot.

    Forking copies a list of numbers, never KV. Each slot also records the position of its token, which is the same in
    every sequence that shares it.
    """

    def __init__(self, capacity: int, max_seqs: int) -> None:
        require(capacity >= 1 and max_seqs >= 1, f"capacity {capacity} and max_seqs {max_seqs} must both be at least 1")
        self.capacity = capacity
        self.max_seqs = max_seqs
        self.positions: IntArray = np.zeros(capacity, dtype=np.int64)  # [C]
        self.num_used = 0  # slots that hold a token of at least one sequence
        self._owners = np.zeros(capacity, dtype=np.int32)  # [C]
        self._seqs: dict[Seq, _Sequence] = {}
        self._names = itertools.count(1)
        self._conversations = itertools.count(1)

    @property
    def num_seqs(self) -> int:
        """The number of open sequences."""
        return len(self._seqs)

    def slots(self, seq: Seq) -> IntArray:
        """The slots of `seq`: [N], one per token. Raises `UnknownSeq`."""
        return self._get(seq).slots

    def length(self, seq: Seq) -> int:
        """The number of tokens in `seq`. Raises `UnknownSeq`."""
        return len(self._get(seq).slots)

    def conversation(self, seq: Seq) -> int:
        """A number shared by all sequences that may share slots with `seq`. Raises `UnknownSeq`."""
        return self._get(seq).conversation

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        """See `Backend.fork`."""
        source = None if parent is None else self._get(parent)
        available = 0 if source is None else len(source.slots)
        if not 0 <= length <= available:
            raise UsageError(f"cannot share {length} tokens of sequence {parent}, which has {available} cached")
        if len(self._seqs) >= self.max_seqs:
            raise CacheFull(f"{self.max_seqs} sequences are open, which is the limit (max_seqs); free one first")
        if source is None or length == 0:
            child = _Sequence(_EMPTY, next(self._conversations))
        else:
            child = _Sequence(source.slots[:length].copy(), source.conversation)
        self._owners[child.slots] += 1
        seq = next(self._names)
        self._seqs[seq] = child
        return seq

    def check(self, batch: Sequence[Extend], context_length: int) -> None:
        """Raise what `check_room` raises unless there is room for the tokens of `batch`."""
        check_room(batch, self.length, context_length, self.capacity - self.num_used)

    def extend(self, seq: Seq, number: int) -> None:
        """Give `seq` so many new slots, which `check` has found to be free."""
        sequence = self._get(seq)
        new = self._free_slots(sequence, number)
        self._owners[new] = 1
        self.num_used += number
        self.positions[new] = np.arange(len(sequence.slots), len(sequence.slots) + number)
        sequence.slots = np.concatenate([sequence.slots, new])

    def truncate(self, seq: Seq, length: int) -> None:
        """See `Backend.truncate`."""
        sequence = self._get(seq)
        if not 0 <= length <= len(sequence.slots):
            raise UsageError(f"cannot cut sequence {seq} to {length} tokens; it has {len(sequence.slots)} cached")
        removed = sequence.slots[length:]
        self._owners[removed] -= 1
        self.num_used -= int(np.count_nonzero(self._owners[removed] == 0))
        sequence.slots = sequence.slots[:length]

    def free(self, seq: Seq) -> None:
        """See `Backend.free`."""
        self.truncate(seq, 0)
        del self._seqs[seq]

    def _get(self, seq: Seq) -> _Sequence:
        try:
            return self._seqs[seq]
        except (KeyError, TypeError):
            raise UnknownSeq(f"no sequence {seq!r} is open; open ones: {sorted(self._seqs)[:16]}") from None

    def _free_slots(self, sequence: _Sequence, number: int) -> IntArray:
        """So many free slots, [number].

        They follow the sequence's last slot and wrap around the end of the pool. While there is room, the tokens of a
        conversation are therefore adjacent, and attention reads a range instead of gathering.
        """
        if len(sequence.slots) or not self.num_used:
            start = int(sequence.slots[-1]) + 1 if len(sequence.slots) else 0
            following = self._owners[start : start + number]
            if len(following) == number and not following.any():  # the common case: no search over the pool
                return np.arange(start, start + number)
            free = np.flatnonzero(self._owners == 0)
        else:
            free = np.flatnonzero(self._owners == 0)
            start = _middle_of_widest_gap(free)
        first = int(np.searchsorted(free, start))
        return np.concatenate([free[first:], free[:first]])[:number]


def _middle_of_widest_gap(free: IntArray) -> int:
    """Where a new conversation starts, so that both it and its neighbour can grow. free: [F], ascending."""
    ends = np.flatnonzero(np.diff(free) != 1)
    starts = np.concatenate([[0], ends + 1])
    lengths = np.diff(np.concatenate([starts, [len(free)]]))
    widest = int(np.argmax(lengths))
    return int(free[starts[widest] + lengths[widest] // 2])


def check_room(batch: Sequence[Extend], length: Callable[[Seq], int], context_length: int, num_free: int) -> None:
    """Check that `num_free` KV entries hold the tokens of `batch`, added to sequences with these lengths.

    Raises:
        UnknownSeq: a sequence is not open.
        ContextOverflow: a sequence would become longer than `context_length`.
        CacheFull: there are too few free entries.
    """
    for extend in batch:
        longer = length(extend.seq) + len(extend.tokens)
        if longer > context_length:
            raise ContextOverflow(
                f"sequence {extend.seq} would have {longer} tokens; the context holds {context_length}"
            )
    num_wanted = sum(len(extend.tokens) for extend in batch)
    if num_wanted > num_free:
        raise CacheFull(
            f"the pass feeds {num_wanted} tokens, but only {num_free} KV entries are free; free or truncate a "
            "sequence, or open the backend with a larger capacity"
        )
