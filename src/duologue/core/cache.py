"""What a session does to its KV cache: token sequences, the operations on them, and the plan of the next pass.

A session numbers its own sequences; the engine maps them to those of the backend. Knows ids and lengths, not what the
sequences mean.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import TypeAlias, final

from duologue.core.backend import Draw, Extend
from duologue.types import Seq, Token


class Place(Enum):
    """Where the KV of a sequence is. Forks are where their parent is."""

    SPEAKER = "speaker"  # with the model that answers
    LISTENER = "listener"  # with the model that judges the words, if that is another one
    ELSEWHERE = "elsewhere"  # not on this machine: answers come as text, and nothing is fed


@dataclass(frozen=True, slots=True)
class Fork:
    """Open `seq` with the first `length` cached tokens of `parent`; without a parent it is empty."""

    seq: Seq
    parent: Seq | None
    length: int
    listens: bool = False  # without a parent: it is opened with the listener


@dataclass(frozen=True, slots=True)
class Truncate:
    """Roll `seq` back to its first `length` tokens."""

    seq: Seq
    length: int


@dataclass(frozen=True, slots=True)
class Free:
    """Release `seq`."""

    seq: Seq


Op: TypeAlias = Fork | Truncate | Free


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of one cycle: `ops` in order, then one forward pass over `batch` (no pass if it is empty).

    Every plan must be carried out.
    """

    ops: tuple[Op, ...]
    batch: tuple[Extend, ...]


@final
@dataclass(slots=True, eq=False)
class TokenSequence:
    """The tokens that one sequence should hold (`items`), and what the KV cache holds of them.

    `items[:cached]` is in the cache; the rest is *pending*. `fed` holds the tokens in flight, between a plan and
    its result; `items` may change meanwhile, and `land` determines which of the tokens still count.

    Rollback is lazy. When a probe has been read, or words are revised, `items` and `cached` change at once, but the
    cache keeps the surplus (`kv_length` exceeds `cached`) until something is fed next. A rollback that nothing follows
    therefore costs nothing, and several are carried out as one truncation.
    """

    seq: Seq
    items: list[Token]
    cached: int = 0
    kv_length: int = 0
    fed: tuple[Token, ...] | None = None
    place: Place = Place.SPEAKER

    @property
    def num_pending(self) -> int:
        """Tokens that still have to be fed."""
        return 0 if self.place is Place.ELSEWHERE else len(self.items) - self.cached

    @property
    def num_waiting(self) -> int:
        """Pending tokens that are not in flight."""
        return max(0, self.num_pending - len(self.fed or ()))

    @property
    def num_surplus(self) -> int:
        """Tokens in the cache that have to be rolled back before anything is fed."""
        return self.kv_length - self.cached

    def shorten(self, length: int) -> None:
        """Roll back to the first `length` items."""
        del self.items[length:]
        self.cached = min(self.cached, length)

    def replace_tail(self, start: int, tail: Sequence[Token]) -> None:
        """Replace the items from `start` on by `tail`. Cached tokens are kept up to the first id that differs."""
        num_same = _num_same(self.items[start:], tail)
        self.items[start + num_same :] = tail[num_same:]
        self.cached = min(self.cached, start + num_same)

    def land(self) -> None:
        """Record that the tokens in flight are cached. Those that `items` no longer holds become surplus."""
        assert self.fed is not None, "nothing was in flight"
        start, fed, self.fed = self.kv_length, self.fed, None
        self.kv_length += len(fed)
        if self.cached == start:  # not rolled back meanwhile to before what was fed
            self.cached += _num_same(self.items[start : self.kv_length], fed)


def _num_same(old: Sequence[Token], new: Sequence[Token]) -> int:
    """How many tokens both begin with."""
    for i, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b:
            return i
    return min(len(old), len(new))


@dataclass(frozen=True, slots=True)
class Work:
    """What a ticket stands for: the tokens in flight of one sequence, and who waits for the result."""

    sequence: TokenSequence
    owner: object = None  # the answer or the input that waits for the result
    version: int = 0  # of the owner when it asked; the result counts only if the owner has not changed since


@final
class CacheOperations:
    """Collects operations on the cache and tokens to feed, until `flush` turns them into a plan."""

    def __init__(self, chunk: int) -> None:
        self.room: int | None = None  # tokens that the current plan can still take; None: no limit
        self.room_to_compact: int | None = None  # in addition, for compactions that nothing waits for; None: none apart
        self._chunk = chunk  # most tokens of one sequence in a pass
        self._seqs = count(1)
        self._tickets = count(1)
        self._ops: list[Op] = []
        self._batch: list[Extend] = []
        self._work: dict[int, Work] = {}

    @property
    def is_in_flight(self) -> bool:
        """Whether results of a pass are still to come."""
        return bool(self._work)

    def open(self, items: Sequence[Token], place: Place = Place.SPEAKER) -> TokenSequence:
        """A new sequence of which nothing is cached yet."""
        sequence = TokenSequence(next(self._seqs), list(items), place=place)
        if place is not Place.ELSEWHERE:
            self._ops.append(Fork(sequence.seq, None, 0, listens=place is Place.LISTENER))
        return sequence

    def fork(self, parent: TokenSequence, length: int) -> TokenSequence:
        """A new sequence of the first `length` items of `parent`: cached ones are shared, the others are pending."""
        cached = min(parent.cached, length)
        child = TokenSequence(next(self._seqs), parent.items[:length], cached, kv_length=cached, place=parent.place)
        if child.place is not Place.ELSEWHERE:
            self._ops.append(Fork(child.seq, parent.seq, cached))
        return child

    def free(self, sequence: TokenSequence) -> None:
        """Release `sequence`. If a result is still in flight for it, that result is discarded."""
        if sequence.place is not Place.ELSEWHERE:
            self._ops.append(Free(sequence.seq))

    def roll_back(self, sequence: TokenSequence) -> None:
        """Carry out the rollbacks of `sequence`: remove its surplus from the cache."""
        if sequence.fed is None and sequence.num_surplus:
            self._ops.append(Truncate(sequence.seq, sequence.cached))
            sequence.kv_length = sequence.cached

    def portion(self, sequence: TokenSequence) -> int:
        """How many pending items of `sequence` this plan can take."""
        return min(sequence.num_pending, self._chunk, sequence.num_pending if self.room is None else self.room)

    def has_room(self, num_tokens: int) -> bool:
        """Whether this plan can take `num_tokens` more tokens."""
        return self.room is None or num_tokens <= self.room

    def feed(
        self,
        sequence: TokenSequence,
        num_tokens: int,
        *,
        probe: tuple[Token, ...] = (),
        watch: tuple[tuple[Token, ...], ...] = (),
        draw: Draw | None = None,
        owner: object = None,
        version: int = 0,
    ) -> None:
        """Feed the next `num_tokens` pending items of `sequence`, then `probe`."""
        self.roll_back(sequence)
        assert sequence.fed is None, "a sequence has one forward pass in flight at most"
        tokens = (*sequence.items[sequence.cached : sequence.cached + num_tokens], *probe)
        sequence.fed = tokens
        if self.room is not None:
            self.room -= len(tokens)
        ticket = next(self._tickets)
        self._work[ticket] = Work(sequence, owner, version)
        self._batch.append(Extend(sequence.seq, tokens, draw=draw, watch=watch, ticket=ticket))

    def feed_compaction(self, sequence: TokenSequence, *, is_awaited: bool) -> None:
        """Feed a part of `sequence`, a shorter context, from the room of its own if nothing waits for it."""
        if sequence.fed is not None:
            return
        has_own_room = self.room_to_compact is not None and not is_awaited
        if has_own_room:
            self.room, self.room_to_compact = self.room_to_compact, self.room
        if size := self.portion(sequence):
            self.feed(sequence, size)
        if has_own_room:
            self.room, self.room_to_compact = self.room_to_compact, self.room

    def flush(self) -> Plan:
        """The plan of everything collected since the last call."""
        plan = Plan(tuple(self._ops), tuple(self._batch))
        self._ops, self._batch, self.room, self.room_to_compact = [], [], None, None
        return plan

    def work(self, ticket: int) -> Work | None:
        """The work in flight with `ticket`, if there is such work."""
        return self._work.get(ticket)

    def land(self, ticket: int) -> Work | None:
        """Record that the work with `ticket` was done, and return it. None if there is no such work."""
        work = self._work.pop(ticket, None)
        if work is not None:
            work.sequence.land()
        return work

    def lose(self, batch: Iterable[Extend]) -> None:
        """Record that the pass over `batch` did not take place."""
        for extend in batch:
            work = self._work.pop(extend.ticket, None)
            if work is not None:
                work.sequence.fed = None
