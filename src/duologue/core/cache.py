"""What a session does to its KV cache: token sequences, operations on them, tickets, and the plan of the next pass.

Sequences are numbered by the session itself; whoever drives it maps them to the backend's. Knows ids and lengths; not
what they mean.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from duologue.core.backend import Draw, Extend
from duologue.types import Seq, Token


@dataclass(frozen=True, slots=True)
class Fork:
    """Open `seq` with the first `length` cached tokens of `parent`; without a parent it is empty."""

    seq: Seq
    parent: Seq | None
    length: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Roll `seq` back to its first `length` tokens."""

    seq: Seq
    length: int


@dataclass(frozen=True, slots=True)
class Free:
    """Forget `seq`."""

    seq: Seq


Op: TypeAlias = Fork | Truncate | Free


@dataclass(frozen=True, slots=True)
class Plan:
    """First `ops` in order, then one pass over `batch` (none if it is empty). Every plan must be carried out."""

    ops: tuple[Op, ...]
    batch: tuple[Extend, ...]


class TokenSequence:
    """What a sequence should hold (`items`), and what the cache holds of it.

    `items[:cached]` is in the KV cache; the rest is *pending*. `kv_length` may be larger than `cached`: a probe, or
    words that have been revised since. Those are rolled back before the next pass. Between a plan and its result `fed`
    are under way, and `items` may change meanwhile: `land` sorts out what of them is still wanted.
    """

    __slots__ = ("cached", "fed", "items", "kv_length", "seq")

    def __init__(self, seq: Seq, items: Sequence[Token] = (), cached: int = 0) -> None:
        self.seq = seq
        self.items: list[Token] = list(items)
        self.cached = cached
        self.kv_length = cached
        self.fed: tuple[Token, ...] | None = None

    @property
    def num_pending(self) -> int:
        """Tokens that still have to be fed."""
        return len(self.items) - self.cached

    @property
    def num_waiting(self) -> int:
        """Pending tokens that are not under way."""
        return max(0, self.num_pending - len(self.fed or ()))

    @property
    def num_surplus(self) -> int:
        """Tokens in the cache that have to be rolled back before anything is fed."""
        return self.kv_length - self.cached

    def fork(self, seq: Seq, length: int) -> "TokenSequence":
        """A channel that starts as the first `length` items; what is cached of these is shared, the rest is pending."""
        return TokenSequence(seq, self.items[:length], min(self.cached, length))

    def shorten(self, length: int) -> None:
        """Roll back to the first `length` items."""
        del self.items[length:]
        self.cached = min(self.cached, length)

    def forget_last(self) -> None:
        """Take the last item out of the cache, to feed it again."""
        self.cached = min(self.cached, len(self.items) - 1)

    def replace_tail(self, start: int, tail: Sequence[Token]) -> None:
        """Make the items from `start` on `tail`, keeping what is cached up to the first id that differs."""
        same = start
        for old, new in zip(self.items[start:], tail, strict=False):
            if old != new:
                break
            same += 1
        self.items[same:] = tail[same - start :]
        self.cached = min(self.cached, same)

    def feed(self, tokens: tuple[Token, ...]) -> None:
        """`tokens` are on their way, to land behind the cached items."""
        assert self.fed is None, "a sequence has one forward pass under way at most"
        assert self.num_surplus == 0, "surplus is rolled back before anything is fed"
        self.fed = tokens

    def land(self) -> None:
        """The tokens on their way are in the cache; those that `items` no longer has become surplus."""
        assert self.fed is not None, "nothing was under way"
        start, fed, self.fed = self.kv_length, self.fed, None
        self.kv_length = start + len(fed)
        if self.cached < start:  # rolled back meanwhile to before what was fed
            return
        for old, new in zip(self.items[start:], fed, strict=False):
            if old != new:
                break
            self.cached += 1


@dataclass(slots=True)
class Work:
    """What a ticket stands for: tokens of a sequence, and for whom the result is."""

    sequence: TokenSequence
    owner: object = None  # the answer or the input that waits for the result
    version: int = 0  # what the owner was at when it asked; the result counts only if it still is


class CacheOperations:
    """Collects changes to the cache and tokens to feed, until `flush` turns them into a plan."""

    def __init__(self, chunk: int) -> None:
        self.room: int | None = None  # tokens that may still be fed in the plan being made; None: any number
        self._chunk = chunk  # most tokens of one sequence in a pass
        self._num_seqs = 0
        self._num_tickets = 0
        self._ops: list[Op] = []
        self._batch: list[Extend] = []
        self._work: dict[int, Work] = {}

    def open(self, items: Sequence[Token]) -> TokenSequence:
        """A new sequence with nothing in the cache yet."""
        sequence = TokenSequence(self._next_seq(), items)
        self._ops.append(Fork(sequence.seq, None, 0))
        return sequence

    def fork(self, parent: TokenSequence, length: int) -> TokenSequence:
        """A sequence that shares the first `length` items of `parent`."""
        child = parent.fork(self._next_seq(), length)
        self._ops.append(Fork(child.seq, parent.seq, child.cached))
        return child

    def free(self, sequence: TokenSequence) -> None:
        """Forget `sequence`. A result that is still under way for it changes nothing."""
        self._ops.append(Free(sequence.seq))

    def roll_back(self, sequence: TokenSequence) -> None:
        """Take what the sequence no longer wants out of the cache."""
        if sequence.fed is None and sequence.num_surplus:
            self._ops.append(Truncate(sequence.seq, sequence.cached))
            sequence.kv_length = sequence.cached

    def portion(self, sequence: TokenSequence) -> int:
        """How many of the pending items of `sequence` this plan can take."""
        return min(sequence.num_pending, self._chunk, sequence.num_pending if self.room is None else self.room)

    def has_room(self, num_tokens: int) -> bool:
        """Whether this plan can take so many."""
        return self.room is None or num_tokens <= self.room

    def feed(
        self,
        sequence: TokenSequence,
        num_tokens: int,
        *,
        probe: tuple[Token, ...] = (),
        watch: tuple[Token, ...] = (),
        draw: Draw | None = None,
        owner: object = None,
        version: int = 0,
    ) -> None:
        """Feed the next `num_tokens` pending items of `sequence`, and `probe` behind them."""
        self.roll_back(sequence)
        tokens = (*sequence.items[sequence.cached : sequence.cached + num_tokens], *probe)
        sequence.feed(tokens)
        if self.room is not None:
            self.room -= len(tokens)
        self._num_tickets += 1
        self._work[self._num_tickets] = Work(sequence, owner, version)
        self._batch.append(Extend(sequence.seq, tokens, draw=draw, watch=watch, ticket=self._num_tickets))

    def flush(self) -> Plan:
        """Everything collected since the last time."""
        plan = Plan(tuple(self._ops), tuple(self._batch))
        self._ops, self._batch, self.room = [], [], None
        return plan

    def land(self, ticket: int) -> Work | None:
        """The pass of `ticket` took place. None if there is no such work."""
        work = self._work.pop(ticket, None)
        if work is not None:
            work.sequence.land()
        return work

    def lose(self, batch: Iterable[Extend]) -> None:
        """The pass of `batch` did not take place."""
        for extend in batch:
            work = self._work.pop(extend.ticket, None)
            if work is not None:
                work.sequence.fed = None

    def _next_seq(self) -> int:
        self._num_seqs += 1
        return self._num_seqs
