"""The cost of a conversation: one record per forward pass, streamed to a sink. All measurements use these records."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from duologue.core.backend import Extend, Step, Usage, num_passes
from duologue.core.base_session import Phase
from duologue.core.events import Decided, Event


@dataclass(frozen=True, slots=True)
class Pass:
    """What one call of `Backend.forward` cost for one session: one forward pass, on most backends."""

    at: float  # session time in seconds when it was planned
    phase: Phase
    num_channels: int
    output_tokens: int  # fed to a channel that draws: the running answer
    input_tokens: int  # fed to a channel that is judged, the probe included
    prefill_tokens: int  # fed to be cached only: openers, prefixes, parts of long texts
    seconds: float  # of the pass, operations on the cache included
    kv_entries: int  # held by the backend after it; a shared entry counts once
    kv_bytes: int
    num_passes: int = 1  # forward passes of the model: 2 if the backend computed probes in a pass of their own
    num_judged: int = 0  # channels that were judged
    num_judged_apart: int = 0  # those whose probe was computed in a pass of its own

    @classmethod
    def of(
        cls, at: float, phase: Phase, batch: Sequence[Extend], steps: Sequence[Step], seconds: float, usage: Usage
    ) -> "Pass":
        """The record of a pass over `batch`, which gave `steps`."""
        output = sum(len(extend.tokens) for extend in batch if extend.draw is not None)
        judged = sum(len(extend.tokens) for extend in batch if extend.watch)
        return cls(
            at=at,
            phase=phase,
            num_channels=len(batch),
            output_tokens=output,
            input_tokens=judged,
            prefill_tokens=sum(len(extend.tokens) for extend in batch) - output - judged,
            seconds=seconds,
            kv_entries=usage.kv_entries,
            kv_bytes=usage.kv_bytes,
            num_passes=num_passes(steps),
            num_judged=sum(bool(step.p) for step in steps),
            num_judged_apart=sum(step.is_apart for step in steps),
        )


Sink: TypeAlias = Callable[[Pass | Event], None]
"""Takes every record as it is made."""


@dataclass(slots=True, eq=False)
class Trace:
    """A sink that keeps sums, in constant memory."""

    passes: Counter[Phase] = field(default_factory=Counter)
    tokens_fed: Counter[Phase] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    num_judged: int = 0
    num_judged_apart: int = 0
    seconds: float = 0.0
    kv_entries_peak: int = 0
    kv_bytes_peak: int = 0

    @property
    def num_passes(self) -> int:
        """Forward passes so far."""
        return self.passes.total()

    def __call__(self, record: Pass | Event) -> None:
        """Take a record."""
        if isinstance(record, Pass):
            self.passes[record.phase] += record.num_passes
            self.tokens_fed[record.phase] += record.output_tokens + record.input_tokens + record.prefill_tokens
            self.num_judged += record.num_judged
            self.num_judged_apart += record.num_judged_apart
            self.seconds += record.seconds
            self.kv_entries_peak = max(self.kv_entries_peak, record.kv_entries)
            self.kv_bytes_peak = max(self.kv_bytes_peak, record.kv_bytes)
        elif isinstance(record, Decided):
            self.decisions[record.decision.state.value] += 1

    def as_dict(self) -> dict[str, Any]:
        """The sums as JSON values."""
        return {
            "passes": self.num_passes,
            "passes_by_phase": {str(phase): count for phase, count in sorted(self.passes.items())},
            "tokens_fed": self.tokens_fed.total(),
            "judged": self.num_judged,
            "judged_apart": self.num_judged_apart,
            "decisions": dict(sorted(self.decisions.items())),
            "seconds": round(self.seconds, 6),
            "kv_entries_peak": self.kv_entries_peak,
            "kv_bytes_peak": self.kv_bytes_peak,
        }
