"""A conversation on disk: a line of JSON an event, written at once: a killed server loses at most the last one."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from duologue.core.events import Event, as_dict, from_dict
from duologue.core.history import Ledger
from duologue.errors import BadData, UsageError
from duologue.types import Role, Turn

VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a record says."""

    session: str
    settings: dict[str, Any]  # of the conversation, as its client gave them
    history: tuple[Turn, ...]  # what it began with
    events: tuple[Event, ...]
    size: int  # bytes up to the end of the last whole line

    @property
    def ledger(self) -> Ledger:
        """What came of it."""
        ledger = Ledger(self.history)
        for event in self.events:
            ledger(event)
        return ledger


class Recorder:
    """Writes one conversation into `path`; see `open_new` and `go_on`."""

    def __init__(self, path: Path, num_events: int, *, keep: int) -> None:
        self.path = path
        self.num_events = num_events
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, keep)
        os.lseek(self._fd, 0, os.SEEK_END)

    @classmethod
    def open_new(
        cls, folder: Path, session: str, *, model: str, settings: dict[str, Any], history: Sequence[Turn]
    ) -> "Recorder":
        """A new record. Raises `OSError`."""
        folder.mkdir(parents=True, exist_ok=True)
        recorder = cls(record_path(folder, session), 0, keep=0)
        turns = [{"role": str(turn.role), "text": turn.text} for turn in history]
        began = datetime.now(UTC).isoformat(timespec="seconds")
        header = {"record": VERSION, "session": session, "model": model, "began": began}
        recorder._line({**header, "settings": settings, "history": turns})
        return recorder

    @classmethod
    def go_on(cls, folder: Path, recorded: Recorded) -> "Recorder":
        """Take a record up; what a kill left of its last line goes. Raises `OSError`."""
        return cls(record_path(folder, recorded.session), len(recorded.events), keep=recorded.size)

    def __call__(self, event: Event) -> None:
        """Write an event. Raises `OSError`."""
        self._line(as_dict(event))
        self.num_events += 1

    def close(self) -> None:
        """Write no more."""
        os.close(self._fd)

    def _line(self, row: dict[str, Any]) -> None:
        # No buffer of ours: what was written survives the process, if not the machine.
        data = memoryview((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        while data:
            data = data[os.write(self._fd, data) :]


def record_path(folder: Path, session: str) -> Path:
    """Where the record of `session` is. Raises `UsageError` for what cannot be a session's name."""
    if not _NAME.fullmatch(session):
        raise UsageError("a session's name has 1 to 64 letters, digits, - and _")
    return folder / f"{session}.jsonl"


def is_record(path: Path) -> bool:
    """Whether `path` seems to be a record, and not a script."""
    try:
        with path.open("rb") as file:
            return file.readline(4096).lstrip().startswith(b'{"record"')
    except OSError:
        return False


def read_record(path: Path) -> Recorded:
    """Read a record. A last line that is not whole is left out.

    Raises:
        BadData: the file cannot be read, or a line of it cannot be used; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadData(f"cannot read the record {path}: {error}") from error
    size = data.rfind(b"\n") + 1
    rows = _rows(path, data[:size])
    number, header = next(rows, (1, {}))
    if header.get("record") != VERSION:
        raise BadData(f"{path} is no record of version {VERSION}")
    try:
        turns = tuple(Turn(Role(turn["role"]), str(turn["text"])) for turn in header["history"])
        session, settings = str(header["session"]), dict(header["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadData(f"{path}, line {number}: this is not how a record begins: {error}") from error
    events = []
    for number, row in rows:
        try:
            event = from_dict(row)
        except BadData as error:
            raise BadData(f"{path}, line {number}: {error}") from error
        if event is not None:
            events.append(event)
    return Recorded(session, settings, turns, tuple(events), size)


def _rows(path: Path, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadData(f"{path}, line {number}: this is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise BadData(f"{path}, line {number}: a line is a JSON object, not {type(row).__name__}")
        yield number, row
