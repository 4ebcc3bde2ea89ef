"""Where records are kept: each has one writer, even if servers on several machines share the store.

The writer holds a lease, which expires unless it is renewed. A server that stood still, and whose record another one
has taken over, can never write to it again. A server that wants a record asks its holder, which gives way.
"""

import asyncio
import errno
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any

from duologue.core.events import Event, Received, as_dict
from duologue.errors import EngineError, EngineFull, UsageError
from duologue.types import Turn

VERSION = 1
LEASE_S = 15.0  # a lease that has not been renewed for this long has expired
HANDOVER_S = 4.0  # within which the holder of a record gives way; it looks for wishes every second
MOST_BYTES = 1 << 26  # of a record, which then ends: some hours of conversation
_POLL_S = 0.05
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RecordHeld(EngineFull):
    """Another server holds the record."""


class RecordLost(EngineError):
    """Another server has taken over the record."""


class Standing(Enum):
    """What a server knows about a record of its own."""

    HELD = auto()
    WANTED = auto()  # held, but another server asks for it
    LOST = auto()


@dataclass(frozen=True, slots=True)
class RecordedState:
    """The state of a conversation after its last recorded event."""

    settings: dict[str, Any]
    history: list[Turn]
    unanswered: list[Received]  # words to be heard again, also those whose answer was not heard at all
    now: float  # seconds since it began
    num_events: int
    size: int  # bytes of whole lines
    taken: int = 0  # highest id of the client's messages whose consequences are recorded


class Recorder(ABC):
    """Writes a conversation to its record, until it is closed or another server takes over."""

    def __init__(self, *, num_events: int, size: int) -> None:
        self.num_events = num_events
        self._size = size  # bytes

    async def __call__(self, event: Event, *, taken: int = 0) -> None:
        """Write an event. `taken`: highest id of the client's messages whose consequences are written with it.

        Raises:
            OSError: the store failed, or the record is full.
            RecordLost: see there.
        """
        await self._append(self._line({**as_dict(event), **({"taken": taken} if taken else {})}))
        self.num_events += 1

    @abstractmethod
    async def renew(self) -> Standing:
        """Renew the lease."""

    @abstractmethod
    def stop(self) -> None:
        """Stop writing, but keep the lease, so that nobody else writes. Nobody is given the record any more."""

    @abstractmethod
    def close(self) -> None:
        """Stop writing, and release the lease, at the latest when the store is closed."""

    @abstractmethod
    async def _append(self, line: bytes) -> None: ...

    def _line(self, row: dict[str, Any]) -> bytes:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        self._size += len(line)
        if self._size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"a record may have at most {MOST_BYTES} bytes")
        return line


class RecordStore(ABC):
    """All records that some servers share."""

    @abstractmethod
    async def create(self, name: str, *, model: str, settings: dict[str, Any], history: Sequence[Turn]) -> Recorder:
        """Start a record. Raises `OSError`."""

    @abstractmethod
    async def has(self, name: str) -> bool:
        """Whether there is a record that has not expired.

        Raises:
            UsageError: this cannot be a session's name.
            OSError: the store failed.
        """

    async def resume(self, name: str) -> tuple[RecordedState, Recorder]:
        """Go on with a record. Its holder is asked for it.

        Raises:
            RecordHeld: the holder does not give way, and its lease has not expired.
            BadData: the record is damaged.
            OSError: the store failed.
        """
        loop = asyncio.get_running_loop()
        until, has_asked = loop.time() + HANDOVER_S, False
        try:
            while True:
                try:
                    return await self._take(name)
                except RecordHeld:
                    if loop.time() >= until:
                        raise
                if not has_asked:
                    await self._ask(name, True)
                    has_asked = True
                await asyncio.sleep(_POLL_S)
        except BaseException:
            if has_asked:
                await self._ask(name, False)
            raise

    @abstractmethod
    async def _take(self, name: str) -> tuple[RecordedState, Recorder]:
        """As `resume`, without waiting."""

    @abstractmethod
    async def _ask(self, name: str, is_wanted: bool) -> None:
        """Ask the holder for a record, or no longer."""

    async def aclose(self) -> None:  # noqa: B027
        """Finish what recorders that were closed have begun."""


def header(session: str, model: str, settings: dict[str, Any], history: Sequence[Turn]) -> dict[str, Any]:
    """The first line of a record."""
    turns = [{"role": str(turn.role), "text": turn.text} for turn in history]
    began = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"record": VERSION, "session": session, "model": model, "began": began}
    return {**row, "settings": settings, "history": turns}


def checked_name(session: str) -> str:
    """`session`. Raises `UsageError` if this cannot be a session's name."""
    if not _NAME.fullmatch(session):
        raise UsageError("a session's name has 1 to 64 letters, digits, - and _")
    return session
