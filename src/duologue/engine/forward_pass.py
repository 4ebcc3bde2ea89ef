"""One forward pass for several sessions. In asynchronous use, `ForwardPass.run` runs in the engine's worker thread."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from duologue.core.backend import Backend, Extend, Step, num_passes
from duologue.core.base_session import Phase
from duologue.core.cache import Plan
from duologue.engine.handle import Handle
from duologue.engine.sequence_map import backend_failure
from duologue.errors import CacheFull, DuologueError


@dataclass(slots=True, eq=False)
class Portion:
    """The work of one session in a pass, and its result."""

    handle: Handle
    plan: Plan
    phase: Phase
    at: float  # session time at planning
    steps: list[Step] = field(default_factory=list)
    error: DuologueError | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens to feed."""
        return sum(len(extend.tokens) for extend in self.plan.batch)

    def num_tokens_in(self, full: CacheFull) -> int:
        """Tokens to feed to the cache that is full."""
        seqs = self.handle.sequences.seqs  # empty if the session was closed since
        return sum(len(e.tokens) for e in self.plan.batch if full.seqs is None or seqs.get(e.seq) in full.seqs)


@dataclass(slots=True, eq=False)
class ForwardPass:
    """Cache operations of several sessions, and one forward pass over everything they feed.

    An error is kept in the portion that caused it; the other portions proceed.
    """

    backend: Backend
    portions: Sequence[Portion]
    seconds: float = 0.0  # taken, cache operations included
    num_passes: int = 0  # executed
    num_judged: int = 0  # channels that were judged
    num_judged_apart: int = 0  # those whose probe was computed in a pass of its own

    @property
    def num_tokens(self) -> int:
        """Tokens that were fed."""
        return sum(portion.num_tokens for portion in self.portions if portion.error is None)

    def run(self) -> None:
        """Execute the pass."""
        began = time.perf_counter()
        for portion in self.portions:
            try:
                portion.handle.sequences.apply(portion.plan.ops)
            except DuologueError as error:
                portion.error = error
        self._forward([portion for portion in self.portions if portion.plan.batch and portion.error is None])
        self.seconds = time.perf_counter() - began

    def _forward(self, portions: list[Portion]) -> None:
        """Feed `portions`. If the cache is full, the largest is left out. If the pass fails, each is run separately."""
        while portions:
            batch: list[Extend] = []
            try:
                for portion in portions:
                    batch += portion.handle.sequences.renamed(portion.plan.batch)
                steps = self.backend.forward(batch)
            except CacheFull as error:
                sizes = [portion.num_tokens_in(error) for portion in portions]
                portions.pop(sizes.index(max(sizes))).error = error
            except Exception as error:
                if len(portions) == 1:
                    portions[0].error = backend_failure(self.backend, error)
                    return
                for portion in portions:
                    self._forward([portion])
                return
            else:
                self.num_passes += num_passes(steps)
                self.num_judged += sum(bool(step.p) for step in steps)
                self.num_judged_apart += sum(step.is_apart for step in steps)
                handed_out = iter(steps)
                for portion in portions:
                    portion.steps = [next(handed_out) for _ in portion.plan.batch]
                return
