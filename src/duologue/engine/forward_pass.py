"""One forward pass for several sessions, as it is carried out in the thread that owns the backend."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from duologue.core.backend import Backend, Extend, Step
from duologue.core.cache import Plan
from duologue.core.session import Phase
from duologue.engine.scheduled_session import Member
from duologue.engine.sequence_map import failure
from duologue.errors import CacheFull, DuologueError


@dataclass(slots=True, eq=False)
class Part:
    """What one session has in a pass, and what came of it."""

    member: Member
    plan: Plan
    phase: Phase
    at: float  # session time when it was planned
    steps: list[Step] = field(default_factory=list)
    num_passes: int = 0  # that it takes
    error: DuologueError | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens to feed."""
        return sum(len(extend.tokens) for extend in self.plan.batch)

    def num_tokens_in(self, full: CacheFull) -> int:
        """Tokens to feed to the cache that is full."""
        seqs = self.member.carrier.seqs  # nothing, if it has been closed since
        return sum(len(e.tokens) for e in self.plan.batch if full.seqs is None or seqs.get(e.seq) in full.seqs)


class Job:
    """Cache changes of several sessions and one forward pass over all they feed.

    What goes wrong is kept for the part it belongs to; the others go on.
    """

    def __init__(self, backend: Backend, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.seconds = 0.0
        self.num_passes = 0  # that were made
        self._backend = backend

    @property
    def num_tokens(self) -> int:
        """Tokens that were fed."""
        return sum(part.num_tokens for part in self.parts if part.error is None)

    def run(self) -> None:
        """Do it."""
        began = time.perf_counter()
        ready = []
        for part in self.parts:
            try:
                part.member.carrier.carry_out(part.plan.ops)
            except DuologueError as error:
                part.error = error
            else:
                if part.plan.batch:
                    ready.append(part)
        self._forward(ready)
        self.seconds = time.perf_counter() - began

    def _forward(self, parts: list[Part]) -> None:
        """Feed `parts`. Where the cache is too full, those with most to feed wait; if it fails, each is tried alone."""
        while parts:
            batch: list[Extend] = []
            try:
                for part in parts:
                    own = part.member.carrier.renamed(part.plan.batch)
                    part.num_passes = self._backend.num_passes(own)
                    batch += own
                num_passes = self._backend.num_passes(batch)
                steps = iter(self._backend.forward(batch))
            except CacheFull as error:
                greediest = max(parts, key=lambda part, full=error: part.num_tokens_in(full))  # type: ignore[misc]
                greediest.error = error
                parts.remove(greediest)
            except Exception as error:
                if len(parts) == 1:
                    parts[0].error = self._translated(error)
                    return
                for part in parts:
                    self._forward([part])
                return
            else:
                self.num_passes += num_passes
                for part in parts:
                    part.steps = [next(steps) for _ in part.plan.batch]
                return

    def _translated(self, error: Exception) -> DuologueError:
        if isinstance(error, DuologueError):
            return error
        translated = failure(self._backend, error)
        translated.__cause__ = error
        return translated
