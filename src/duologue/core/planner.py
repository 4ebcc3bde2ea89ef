"""Bookkeeping between a session and its KV cache: sequence numbers, tickets, and what is to be done next.

Knows channels and work; not what the channels mean.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from duologue.core.backend import Draw, Extend
from duologue.core.channel import Channel
from duologue.core.plan import Fork, Free, Op, Plan, Truncate
from duologue.types import Token


@dataclass(slots=True)
class Work:
    """What a ticket stands for: tokens of a channel, and for whom the result is."""

    channel: Channel
    owner: object = None  # the answer or the input that waits for the result
    version: int = 0  # what the owner was at when it asked; the result counts only if it still is


class Planner:
    """Collects changes to the cache and tokens to feed, until `flush` turns them into a plan."""

    def __init__(self, chunk: int) -> None:
        self.room: int | None = None  # tokens that may still be fed in the plan being made; None: any number
        self._chunk = chunk  # most tokens of one channel in a pass
        self._num_seqs = 0
        self._num_tickets = 0
        self._ops: list[Op] = []
        self._batch: list[Extend] = []
        self._work: dict[int, Work] = {}

    def open(self, items: Sequence[Token]) -> Channel:
        """A new channel with nothing in the cache yet."""
        channel = Channel(self._next_seq(), items)
        self._ops.append(Fork(channel.seq, None, 0))
        return channel

    def fork(self, parent: Channel, length: int) -> Channel:
        """A channel that shares the first `length` items of `parent`."""
        child = parent.fork(self._next_seq(), length)
        self._ops.append(Fork(child.seq, parent.seq, child.cached))
        return child

    def free(self, channel: Channel) -> None:
        """Forget `channel`. A result that is still under way for it changes nothing."""
        self._ops.append(Free(channel.seq))

    def roll_back(self, channel: Channel) -> None:
        """Take what the channel no longer wants out of the cache."""
        if channel.fed is None and channel.num_surplus:
            self._ops.append(Truncate(channel.seq, channel.cached))
            channel.kv_length = channel.cached

    def portion(self, channel: Channel) -> int:
        """How many of the pending items of `channel` this plan can take."""
        return min(channel.num_pending, self._chunk, channel.num_pending if self.room is None else self.room)

    def has_room(self, num_tokens: int) -> bool:
        """Whether this plan can take so many."""
        return self.room is None or num_tokens <= self.room

    def feed(
        self,
        channel: Channel,
        num_tokens: int,
        *,
        probe: tuple[Token, ...] = (),
        watch: tuple[Token, ...] = (),
        draw: Draw | None = None,
        owner: object = None,
        version: int = 0,
    ) -> None:
        """Feed the next `num_tokens` pending items of `channel`, and `probe` behind them."""
        self.roll_back(channel)
        tokens = (*channel.items[channel.cached : channel.cached + num_tokens], *probe)
        channel.feed(tokens)
        if self.room is not None:
            self.room -= len(tokens)
        self._num_tickets += 1
        self._work[self._num_tickets] = Work(channel, owner, version)
        self._batch.append(Extend(channel.seq, tokens, draw=draw, watch=watch, ticket=self._num_tickets))

    def flush(self) -> Plan:
        """Everything collected since the last time."""
        plan = Plan(tuple(self._ops), tuple(self._batch))
        self._ops, self._batch, self.room = [], [], None
        return plan

    def land(self, ticket: int) -> Work | None:
        """The pass of `ticket` took place. None if there is no such work."""
        work = self._work.pop(ticket, None)
        if work is not None:
            work.channel.land()
        return work

    def lose(self, batch: Iterable[Extend]) -> None:
        """The pass of `batch` did not take place."""
        for extend in batch:
            work = self._work.pop(extend.ticket, None)
            if work is not None:
                work.channel.fed = None

    def _next_seq(self) -> int:
        self._num_seqs += 1
        return self._num_seqs
