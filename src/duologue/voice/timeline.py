"""The events of a spoken conversation, in order, as rows for JSON.

Times are seconds since the first input sample, the clock of the recording.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
"""`at`, `type`, and the fields of the type; see docs/voice.md."""

KINDS = frozenset(
    (
        "speech_started", "speech_ended", "recognised", "ducked", "yielded", "came_back", "cut", "synthesised",
        "sound_begins", "sound_ends", "recogniser_failed", "synthesiser_failed",
    )
)  # fmt: skip
"""Types of rows that the voice adds; the others are those of the session's events."""


@dataclass(slots=True)
class Timeline:
    """Collects rows if it `keeps` them, and passes each one to `listener`."""

    listener: Callable[[Row], None] | None = None
    keeps: bool = field(default=True, kw_only=True)
    rows: list[Row] = field(default_factory=list)

    def add(self, at: float, kind: str, **more: Any) -> None:
        """Add a row."""
        row = {"at": round(at, 4), "type": kind, **more}
        if self.keeps:
            self.rows.append(row)
        if self.listener is not None:
            self.listener(row)
