"""Divides each forward pass among the open sessions. Knows no backend, no clock and no thread.

Work is in one of two queues:

* *Urgent*: the next token of an answer, words to be judged, short texts. This queue goes first, longest waiting first,
  so that speech continues and decisions are made whatever else is pending. Its work is small, so passes stay short.
* *Deferrable*: long texts, context compaction, and answers well ahead of their listener. It gets the rest of the pass.
  Among long texts, the shortest remaining one goes first: one after another, they finish sooner on average than in
  parallel, and a turn does not wait for a history. No work starves: each long text gets `SHARE` tokens of every pass,
  and after `AGEING` passes the one that has waited longest is guaranteed half of the pass.

Two kinds of deferrable work have additional rules. Compaction gets half of the pass while somebody speaks, all of it
in silence, and nothing while words wait, except for a quarter every `AGEING` passes. An answer well ahead of its
listener joins passes that are made for other answers, since one more token in a pass costs little. Passes with words to
be judged, and passes for nothing else, include it only every `MAX_WAIT_S` seconds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

from duologue.core.base_session import Phase
from duologue.engine.handle import Handle
from duologue.errors import UsageError

MAX_TOKENS_PER_PASS = 128
MAX_PASS_S = 0.1
"""How long new words may have to wait for the end of the running pass. They are judged in the next one, which may be as
long, so a decision beside a long text takes twice this time."""
MAX_WAIT_S = 0.15
"""How long an answer that is well ahead may be deferred. Listeners take longer than this for one token; otherwise the
answer would fall behind."""
SMALL = 32  # tokens: the most urgent work of one session, and the least to which slow passes are narrowed
SHARE = 8  # tokens of each pass for every long text, since it may contain the next token of an answer
AGEING = 4  # passes after which deferrable work is guaranteed its share

Feed: TypeAlias = Callable[[Handle, int | None, int | None], int]
"""Plans the work of a session within two limits in tokens, the second in addition and for a compaction only. Returns
how much of the first limit it uses. None is no limit."""


@dataclass(slots=True)
class _Recent:
    """The mean of recent passes; the last one is half of it."""

    num_tokens: float = 0.0
    seconds: float = 0.0

    def count(self, num_tokens: int, seconds: float) -> None:
        share = 0.5 if self.num_tokens else 1.0
        self.num_tokens += share * (num_tokens - self.num_tokens)
        self.seconds += share * (seconds - self.seconds)


@final
class _PassCost:
    """What a pass costs at present: a fixed time, and a time for each token, from recent narrow and wide passes."""

    def __init__(self) -> None:
        self._narrow, self._wide = _Recent(), _Recent()

    def count(self, num_tokens: int, seconds: float) -> None:
        """Record a pass over `num_tokens` tokens that took `seconds`."""
        (self._wide if num_tokens >= SMALL // 2 else self._narrow).count(num_tokens, seconds)

    def tokens_in(self, seconds: float) -> float:
        """How many tokens take so long, or as long as the fixed time if that is longer."""
        narrow, wide = self._narrow, self._wide
        if not wide.seconds:
            return math.inf
        per_token = (wide.seconds - narrow.seconds) / (wide.num_tokens - narrow.num_tokens)
        fixed = max(0.0, narrow.seconds - per_token * narrow.num_tokens)
        return max(seconds - fixed, fixed) / per_token if per_token > 0 else math.inf


@final
class Scheduler:
    """Decides who feeds how many tokens in each pass.

    Args:
        max_tokens: the most tokens of a pass; None: every session feeds all it has, and nothing is deferred. It is
            raised to twice the longest probe of a session, since a probe cannot be split.
        max_seconds: how long a pass should take. If wide passes take longer, they are narrowed, but not below `SMALL`
            tokens or twice the longest probe, and not so far that most of a pass is its fixed cost: narrower passes
            would hardly be shorter, and long texts would take several times as long.

    Raises:
        UsageError: a number is not positive.
    """

    def __init__(self, max_tokens: int | None, max_seconds: float) -> None:
        if (max_tokens is not None and max_tokens < 1) or not max_seconds > 0:
            raise UsageError(
                f"max_tokens_per_pass is {max_tokens} and max_seconds_per_pass {max_seconds}; both must be positive"
            )
        self.max_tokens = max_tokens
        self._max_seconds = max_seconds
        self._cost = _PassCost()
        self._least = SMALL
        self._num_passes = 0
        self._deferred_until = 0.0  # when answers that are well ahead continue
        self._compacted_at = 0  # number of the last pass that took part in a compaction

    def make_room_for_probe(self, length: int) -> None:
        """Widen passes so that a probe of `length` tokens fits beside other work."""
        self._least = max(self._least, 2 * length)
        if self.max_tokens is not None:
            self.max_tokens = max(self.max_tokens, 2 * length)

    def count(self, num_tokens: int, seconds: float) -> None:
        """Record a pass over `num_tokens` tokens that took `seconds`."""
        self._num_passes += 1
        self._cost.count(num_tokens, seconds)

    def due(self, handles: Sequence[Handle]) -> float | None:
        """When answers that were put off continue; None if there are none."""
        is_deferring = self.max_tokens is not None and any(handle.session.deferrable_backlog for handle in handles)
        return self._deferred_until if is_deferring else None

    def divide(self, handles: Sequence[Handle], now: float, feed: Feed) -> None:
        """Call `feed` for each session that takes part in the next pass, in order of priority."""

        def feed_counted(handle: Handle, limit: int) -> int:
            num_tokens = feed(handle, limit, compaction.get(handle, 0))
            self._note_progress(handle)
            return num_tokens

        if self.max_tokens is None:
            for handle in handles:
                feed(handle, None, None)
            return
        compaction = self._compaction(handles)
        left = self._limit - sum(compaction.values())
        urgent, long = self._queues(handles, now, compaction)
        if long and self._num_passes - self._waiting_since(long[0]) >= AGEING:
            needed = sum(handle.session.backlog for handle in urgent)
            left -= feed_counted(long.pop(0), max(left // 2, left - needed))
        for handle in urgent:
            left -= feed_counted(handle, left)
        long.sort(key=lambda handle: handle.session.backlog)
        for num_behind, handle in zip(reversed(range(len(long))), long, strict=True):
            left -= feed_counted(handle, max(left - num_behind * SHARE, min(left, SHARE)))

    @property
    def _limit(self) -> int:
        """The most tokens of the next pass."""
        assert self.max_tokens is not None
        return round(min(self.max_tokens, max(self._least, self._cost.tokens_in(self._max_seconds))))

    def _queues(
        self, handles: Sequence[Handle], now: float, compaction: dict[Handle, int]
    ) -> tuple[list[Handle], list[Handle]]:
        """Sessions with urgent work and those with long texts, longest waiting first."""
        most = max((handle.session.backlog for handle in handles), default=0)
        takes_answers_along = most == 1 or now >= self._deferred_until
        if takes_answers_along:
            self._deferred_until = now + MAX_WAIT_S
        urgent: list[Handle] = []
        long: list[Handle] = []
        for handle in sorted(handles, key=self._waiting_since):
            session = handle.session
            is_put_off = session.deferrable_backlog and not (session.backlog or handle in compaction)
            if takes_answers_along or not is_put_off:
                (long if session.backlog > SMALL else urgent).append(handle)
        return urgent, long

    def _compaction(self, handles: Sequence[Handle]) -> dict[Handle, int]:
        """Tokens of a compaction that each session may feed in the next pass. They are compacted one after another."""
        waiting = sorted(
            (handle for handle in handles if handle.session.compaction_backlog),
            key=lambda handle: handle.session.compaction_backlog,
        )
        if not waiting:
            self._compacted_at = self._num_passes
        left = self._limit
        if any(handle.session.backlog > 1 for handle in handles):
            left = max(1, left // 4) if self._num_passes - self._compacted_at >= AGEING else 0
        elif any(handle.session.phase is not Phase.SILENCE for handle in handles):
            left = max(1, left // 2)
        sizes: dict[Handle, int] = {}
        for handle in waiting:
            if size := min(left, handle.session.compaction_backlog):
                sizes[handle] = size
                left -= size
                self._compacted_at = self._num_passes
        return sizes

    def _waiting_since(self, handle: Handle) -> int:
        return self._num_passes if handle.waiting_since is None else handle.waiting_since

    def _note_progress(self, handle: Handle) -> None:
        """Record whether any work of `handle`, which has been planned, still waits."""
        if not handle.session.backlog:
            handle.waiting_since = None
        elif handle.waiting_since is None:
            handle.waiting_since = self._num_passes
