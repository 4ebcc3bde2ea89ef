"""The cost of a conversation: one record per forward pass, streamed to a sink. All measurements use these records."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from duologue.core.backend import Extend, Usage
from duologue.core.events import Decided, Event
from duologue.core.session import Phase


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
    num_passes: int = 1  # forward passes of the model: 2 if the backend computes probes in a pass of their own

    @classmethod
    def of(
        cls, at: float, phase: Phase, batch: Sequence[Extend], seconds: float, usage: Usage, num_passes: int = 1
    ) -> "Pass":
        """The record of a pass over `batch`."""
        output = sum(len(extend.tokens) for extend in batch if extend.draw is not None)
        judged = sum(len(extend.tokens) for extend in batch if extend.watch)
        rest = sum(len(extend.tokens) for extend in batch) - output - judged
        return cls(at, phase, len(batch), output, judged, rest, seconds, usage.kv_entries, usage.kv_bytes, num_passes)


Sink: TypeAlias = Callable[[Pass | Event], None]
"""Takes every record as it is made."""


@dataclass(slots=True, eq=False)
class Trace:
    """A sink that keeps sums, in constant memory."""

    passes: Counter[Phase] = field(default_factory=Counter)
    tokens_fed: Counter[Phase] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
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
            "decisions": dict(sorted(self.decisions.items())),
            "seconds": round(self.seconds, 6),
            "kv_entries_peak": self.kv_entries_peak,
            "kv_bytes_peak": self.kv_bytes_peak,
        }
