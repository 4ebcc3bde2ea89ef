"""Which work of which session goes into the next forward pass, who is let in, and who has to give way.

    admit ─▶ prepare ─▶ Job.run (in the thread that owns the backend) ─▶ finish ─▶ prepare …

No clock, no threads, no asyncio: time is handed in. Between `prepare` and `finish` the sessions may be told anything;
nothing but `Job.run` touches the backend meanwhile.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from duologue.core.backend import Backend
from duologue.core.session import BaseSession, Phase
from duologue.core.trace import Pass, Sink
from duologue.engine.forward_pass import Job, Part
from duologue.engine.playback_clock import Pace
from duologue.engine.scheduled_session import Member
from duologue.errors import CacheFull, ContextOverflow, DuologueError, EngineError, EngineFull, UsageError

MAX_TOKENS_PER_PASS = 128
MAX_SECONDS_PER_PASS = 0.15  # in real time: so long new words may have to wait before they are fed
SEQS_PER_SESSION = 2  # the live branch and an input; suspended answers and rebuilds share the spare ones
_SPARE_SEQS = 2
_SHORT = 32  # tokens: who has no more to feed goes before those who have
_WIDE = 32  # tokens: a slow pass is not made narrower than that, and what one takes is learned from half as wide ones
_SHARE = 8  # tokens of each pass that everybody with more gets, so that no answer stands still
_PATIENCE = 4  # passes after which the one that has waited longest goes first
_UPKEEP = 4  # contexts that are made shorter get the fourth part of a pass, when words have kept them waiting
LEISURE_S = 0.15
"""After which answers well ahead go on in any case: more often than they are heard, or they would fall behind."""


@dataclass(slots=True)
class Totals:
    """What a scheduler has done so far."""

    passes: int = 0  # forward passes; where probes have one of their own, both count
    tokens: int = 0  # fed
    seconds: float = 0.0  # in passes
    admitted: int = 0  # sessions
    refused: int = 0
    failed: int = 0
    evicted: int = 0  # suspended answers whose KV was given up for others


class Scheduler:
    """Puts what all its sessions have to feed into one forward pass after another.

    Args:
        max_tokens_per_pass: most tokens of a pass, which bounds how long words can wait for it to end. It is raised to
            twice the longest probe of a session, since a probe cannot be cut.
        max_seconds_per_pass: how long a pass should take. Where wide ones take longer, since much is in the cache or
            the machine is busy, they are made narrower, but never so that a probe does not fit.
        overcommit: sessions are let in while all of them together could fill the KV this many times. At 1 every
            session can always have its whole `SessionConfig.max_length`.

    Raises:
        UsageError: a number that makes no sense.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_tokens_per_pass: int = MAX_TOKENS_PER_PASS,
        max_seconds_per_pass: float = math.inf,
        overcommit: float = 1.0,
    ) -> None:
        if max_tokens_per_pass < 1 or not overcommit > 0 or not max_seconds_per_pass > 0:
            raise UsageError(
                f"max_tokens_per_pass {max_tokens_per_pass} must be at least 1, max_seconds_per_pass "
                f"{max_seconds_per_pass} and overcommit {overcommit} positive"
            )
        self.backend = backend
        self.budget = max_tokens_per_pass
        self.totals = Totals()
        self.trouble: DuologueError | None = None  # the first failure to free what a session held
        self._overcommit = overcommit
        self._max_seconds = max_seconds_per_pass
        self._token_seconds = 0.0  # what one of a wide pass takes, lately
        self._least = _WIDE  # tokens that a pass may always have
        self._members: list[Member] = []
        self._leaving: list[Member] = []  # closed while a pass was running
        self._running: Job | None = None
        self._num_ticks = 0
        self._leisure_at = 0.0  # when answers that are well ahead go on
        self._upkeep_at = 0  # the pass in which contexts were made shorter last

    @property
    def members(self) -> tuple[Member, ...]:
        """The sessions, oldest first."""
        return tuple(self._members)

    # ------------------------------------------------------------------ coming and going

    def admit(
        self,
        session: BaseSession,
        *,
        sink: Sink,
        failed: Callable[[DuologueError], None],
        pace: Pace | None = None,
        now: float = 0.0,
    ) -> Member:
        """Let a session in; see `Member` for the arguments.

        Raises:
            EngineFull: there is no room for it beside the others.
            ContextOverflow: it may grow longer than the backend's sequences.
            UsageError: it is in already.
        """
        self._check_room(session)
        member = Member(session, self.backend, sink=sink, failed=failed, pace=pace, now=now)
        self._least = max(self._least, 2 * len(session.probe.tokens))
        self.budget = max(self.budget, 2 * len(session.probe.tokens))
        self._members.append(member)
        self.totals.admitted += 1
        return member

    def remove(self, member: Member) -> None:
        """Let a session go, at once; what it holds is freed now, or when the pass under way has ended."""
        if not member.is_open:
            return
        member.is_open = False
        self._members.remove(member)
        self._leaving.append(member)
        if self._running is None:
            self._free_leaving()

    def close(self) -> None:
        """Free what all sessions hold. To be called in the thread that owns the backend, after its last pass."""
        self._running = None
        for member in self.members:
            self.remove(member)
        self._free_leaving()

    def _check_room(self, session: BaseSession) -> None:
        info, wanted = self.backend.info, session.config.max_length
        if any(member.session is session for member in self._members):
            raise UsageError("this session is open already; make another one")
        if wanted > info.context_length:
            raise ContextOverflow(
                f"the session may grow to {wanted} tokens, and sequences of this backend hold {info.context_length}; "
                f"make it with SessionConfig(max_length={info.context_length}), or by Model.session, which sees to it"
            )
        if not self._members:
            return  # alone, it can make do with whatever there is
        promised = sum(member.session.config.max_length for member in self._members)
        num_seqs = (len(self._members) + 1) * SEQS_PER_SESSION + _SPARE_SEQS
        if promised + wanted <= info.capacity * self._overcommit and num_seqs <= info.max_seqs:
            return
        self.totals.refused += 1
        raise EngineFull(
            f"{len(self._members)} sessions are open, which were promised {promised} of {info.capacity} KV entries "
            f"(overcommit {self._overcommit:g}), and one more needs {wanted}; with it, {num_seqs} sequences of "
            f"{info.max_seqs}. Close a session, give sessions a smaller SessionConfig.max_length, or load the model "
            "for more sessions: load(sessions=…)"
        )

    def _free_leaving(self) -> None:
        while self._leaving:
            try:
                self._leaving.pop().carrier.free_all()
            except DuologueError as error:
                self.trouble = self.trouble or error

    # ------------------------------------------------------------------ passes

    def due(self, now: float) -> float | None:
        """When there will be something to do if nobody says anything; None if there will not."""
        dues = [due for member in self._members if (due := member.due(now)) is not None]
        if any(member.session.deferrable_backlog for member in self._members):
            dues.append(self._leisure_at)
        return min(dues, default=None)

    def tick(self, now: float) -> bool:
        """One pass, in the caller's thread. Returns whether there was anything to feed."""
        job = self.prepare(now)
        if job is not None:
            job.run()
            self.finish(job, now)
        return job is not None

    def prepare(self, now: float) -> Job | None:
        """The next pass, or None when there is nothing to feed. Cache changes alone are carried out at once."""
        assert self._running is None, "one pass at a time"
        for member in self.members:
            with self._guarded(member):
                member.advance(now)
        while parts := self._parts(now):
            job = Job(self.backend, parts)
            if any(part.plan.batch for part in parts):
                self._running = job
                return job
            job.run()
            self._hand_out(job, now)
        return None

    def finish(self, job: Job, now: float) -> None:
        """Hand the results of a pass to its sessions, and free what was closed meanwhile."""
        self._running = None
        self._num_ticks += 1
        self._hand_out(job, now)
        self._free_leaving()
        if job.num_tokens >= _WIDE // 2:
            self._token_seconds = (self._token_seconds + job.seconds / job.num_tokens) / 2

    @property
    def _limit(self) -> int:
        """Most tokens of the next pass."""
        in_time = self._max_seconds / self._token_seconds if self._token_seconds else math.inf
        return int(min(self.budget, max(self._least, in_time)))

    def _parts(self, now: float) -> list[Part]:
        """What each session feeds in this pass.

        Those with little to feed come first, so that answers go on and words are judged whatever else there is. What
        is left goes to long texts, the shortest first: one after the other they end sooner than side by side, and a
        turn is not to wait for a history. After a while the one that has waited longest is sure of half of the pass.

        Contexts that are made shorter, for which nobody waits yet, have a part of each pass to themselves. Answers that
        are well ahead of their listeners go along with others that are not, since a token of each of several takes
        little longer than one of one; passes with words to be judged, or for nothing but them, have them now and then.
        """
        upkeep = self._upkeep()
        most = max((member.session.backlog for member in self._members), default=0)
        is_leisurely = now >= self._leisure_at or most == 1
        if is_leisurely:
            self._leisure_at = now + LEISURE_S
        short: list[Member] = []
        long: list[Member] = []
        for member in sorted(self._members, key=self._waiting_since):
            session = member.session
            if session.deferrable_backlog and not (is_leisurely or session.backlog or member in upkeep):
                continue
            (long if session.backlog > _SHORT else short).append(member)
        parts: list[Part] = []
        left = self._limit - sum(upkeep.values())

        def plan(member: Member, limit: int) -> int:
            return self._plan(member, limit, upkeep.get(member, 0), parts)

        if long and self._num_ticks - self._waiting_since(long[0]) >= _PATIENCE:
            needed = sum(member.session.backlog for member in short)
            left -= plan(long.pop(0), max(left // 2, left - needed))
        long.sort(key=lambda member: member.session.backlog)
        for member in short:
            left -= plan(member, left)
        for num_behind, member in zip(reversed(range(len(long))), long, strict=True):
            left -= plan(member, max(left - num_behind * _SHARE, min(left, _SHARE)))
        return parts

    def _upkeep(self) -> dict[Member, int]:
        """How many tokens of a shorter context each session may feed in this pass; one is finished after the other.

        None while anybody waits for more than the next token of an answer, but now and then a few.
        """
        found: dict[Member, int] = {}
        wanting = sorted(
            (m for m in self._members if m.session.compaction_backlog),
            key=lambda member: member.session.compaction_backlog,
        )
        if not wanting:
            self._upkeep_at = self._num_ticks
            return found
        left = self._limit
        if any(member.session.backlog > 1 for member in self._members):
            left = max(1, left // _UPKEEP) if self._num_ticks - self._upkeep_at >= _PATIENCE else 0
        elif any(member.session.phase is not Phase.SILENCE for member in self._members):
            left = max(1, left // 2)
        for member in wanting:
            if left and (size := min(left, member.session.compaction_backlog)):
                found[member] = size
                left -= size
                self._upkeep_at = self._num_ticks
        return found

    def _waiting_since(self, member: Member) -> int:
        return self._num_ticks if member.waiting_since is None else member.waiting_since

    def _plan(self, member: Member, limit: int, upkeep: int, parts: list[Part]) -> int:
        """Add what `member` feeds to `parts`: at most `limit` tokens, and `upkeep` of a shorter context.

        Returns how many of `limit` it feeds.
        """
        session = member.session
        with self._guarded(member):
            phase, plan = session.phase, session.plan(limit, upkeep)
            if not session.backlog:
                member.waiting_since = None
            elif member.waiting_since is None:
                member.waiting_since = self._num_ticks
            if plan.batch:
                member.last_fed = self._num_ticks
            if plan.batch or plan.ops or member.carrier.is_behind:
                parts.append(Part(member, plan, phase, session.now))
            return max(0, sum(len(extend.tokens) for extend in plan.batch) - upkeep)
        return 0

    def _hand_out(self, job: Job, now: float) -> None:
        usage = self.backend.usage()
        self.totals.tokens += job.num_tokens
        self.totals.passes += job.num_passes
        self.totals.seconds += job.seconds
        for part in job.parts:
            member, batch = part.member, part.plan.batch
            if not member.is_open:
                continue
            with self._guarded(member):
                member.advance(now)
                if part.error is not None:
                    self._make_do(part, part.error, job)
                elif batch:
                    events = member.session.take(part.steps)
                    member.sink(Pass.of(part.at, part.phase, batch, job.seconds, usage, part.num_passes))
                    member.report(events)

    def _make_do(self, part: Part, error: DuologueError, job: Job) -> None:
        """A session's part of a pass did not take place. If that was for want of room, room is made.

        If it has nothing to give up, it waits until the others hold less: what they all were promised fits.
        """
        session = part.member.session
        session.lose(part.plan.batch)
        if not isinstance(error, CacheFull):
            raise error
        others_went_on = any(other.error is None and other.num_tokens_in(error) for other in job.parts)
        if not (self._evict(error) or session.make_room() or others_went_on):
            raise error

    def _evict(self, full: CacheFull) -> bool:
        """Give up one suspended answer, of the session that has been quiet for longest. Returns whether there was one.

        Nothing that is running is ever given up for another session, and nothing of one that holds nothing in the cache
        that is full.
        """
        for member in sorted(self._members, key=lambda member: member.last_fed):
            if full.is_about(member.carrier.seqs.values()) and member.session.evict():
                self.totals.evicted += 1
                return True
        return False

    @contextmanager
    def _guarded(self, member: Member) -> Iterator[None]:
        """What goes wrong inside is the end of this session, and of no other."""
        try:
            yield
        except Exception as error:
            if not member.is_open:
                return
            self.totals.failed += 1
            self.remove(member)
            member.failed(_translated(error))


def _translated(error: Exception) -> DuologueError:
    """An error that nobody put into words yet, as one of ours; the original is its cause."""
    if isinstance(error, DuologueError):
        return error
    failure = EngineError(f"the conversation failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
