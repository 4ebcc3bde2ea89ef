"""What happened in a conversation by voice, in the order in which it happened, as rows for JSON.

Times are seconds since the first sample that was pushed: the clock of the recording.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
"""`at`, `type`, and what belongs to the type; docs/voice.md lists them."""

KINDS = frozenset(
    (
        "speech_started", "speech_ended", "recognised", "ducked", "yielded", "came_back", "cut", "synthesised",
        "sound_begins", "sound_ends", "recogniser_failed", "synthesiser_failed",
    )
)  # fmt: skip
"""Types of rows that are the voice's own; the others are those of the conversation's events."""


class Timeline:
    """Collects rows if it `keeps` them, and tells `listener` each one."""

    def __init__(self, listener: Callable[[Row], None] | None = None, *, keeps: bool = True) -> None:
        self.rows: list[Row] = []
        self._listener = listener
        self._keeps = keeps

    def add(self, at: float, kind: str, **more: Any) -> None:
        """It happened."""
        row = {"at": round(at, 4), "type": kind, **more}
        if self._keeps:
            self.rows.append(row)
        if self._listener is not None:
            self._listener(row)
