"""One forward pass for several sessions, as it is carried out in the thread that owns the backend."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from duologue.core.backend import Backend, Step
from duologue.core.plan import Plan
from duologue.core.session import Phase
from duologue.engines.carrier import failure
from duologue.engines.member import Member
from duologue.errors import CacheFull, DuologueError


@dataclass(slots=True)
class Part:
    """What one session has in a pass, and what came of it."""

    member: Member
    plan: Plan
    phase: Phase
    at: float  # session time when it was planned
    steps: list[Step] = field(default_factory=list)
    error: DuologueError | None = None


class Job:
    """Cache changes of several sessions and one forward pass over all they feed.

    What goes wrong is kept for the part it belongs to; the others go on.
    """

    def __init__(self, backend: Backend, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.seconds = 0.0
        self.num_calls = 0  # of `Backend.forward`: one, unless it failed
        self._backend = backend

    @property
    def num_tokens(self) -> int:
        """Tokens fed."""
        return sum(len(extend.tokens) for part in self.parts for extend in part.plan.batch)

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
        """Feed `parts`. Where the cache is too full, the last ones have to wait; where all fail, each has its turn."""
        while parts:
            batch = [extend for part in parts for extend in part.member.carrier.renamed(part.plan.batch)]
            try:
                self.num_calls += 1
                steps = iter(self._backend.forward(batch))
            except CacheFull as error:
                parts.pop().error = error
            except Exception as error:
                if len(parts) == 1:
                    parts[0].error = self._translated(error)
                    return
                for part in parts:
                    self._forward([part])
                return
            else:
                for part in parts:
                    part.steps = [next(steps) for _ in part.plan.batch]
                return

    def _translated(self, error: Exception) -> DuologueError:
        if isinstance(error, DuologueError):
            return error
        translated = failure(self._backend, error)
        translated.__cause__ = error
        return translated
