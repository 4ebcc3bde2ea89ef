"""What happened in a conversation by voice, in the order in which it happened, as rows for JSON.

Times are seconds since the first sample that was pushed: the clock of the recording.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
"""`at`, `type`, and what belongs to the type; docs/voice.md lists them."""


class Timeline:
    """Collects rows, and tells `listener` each one."""

    def __init__(self, listener: Callable[[Row], None] | None = None) -> None:
        self.rows: list[Row] = []
        self._listener = listener

    def add(self, at: float, kind: str, **more: Any) -> None:
        """It happened."""
        row = {"at": round(at, 4), "type": kind, **more}
        self.rows.append(row)
        if self._listener is not None:
            self._listener(row)
