"""A conversation on disk: one line of JSON per event, written at once. A killed server loses at most the last event."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from duologue.core.events import Event, as_dict, from_dict
from duologue.core.history import Ledger
from duologue.errors import BadData, UsageError
from duologue.server.lease import Lease
from duologue.types import Role, Turn

VERSION = 1
MOST_BYTES = 1 << 26  # of a record, which then ends: some hours of conversation
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Recorded:
    """The content of a record."""

    session: str
    settings: dict[str, Any]  # of the conversation, as given by its client
    history: tuple[Turn, ...]  # at the start
    events: tuple[Event, ...]

    @property
    def ledger(self) -> Ledger:
        """The state of the conversation after its events."""
        ledger = Ledger(self.history)
        for event in self.events:
            ledger(event)
        return ledger


class Recorder:
    """Writes a conversation to its record, whose lease it holds; see `open_new` and `go_on`."""

    def __init__(self, path: Path, lease: Lease, num_events: int, *, keep: int) -> None:
        self.lease = lease
        self.num_events = num_events
        self._size = keep
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, keep)
        os.lseek(self._fd, 0, os.SEEK_END)

    @classmethod
    def open_new(
        cls, folder: Path, session: str, *, model: str, settings: dict[str, Any], history: Sequence[Turn]
    ) -> "Recorder":
        """Start a record. Raises `OSError`."""
        make_folder(folder)
        path = record_path(folder, session)
        recorder = cls(path, Lease.acquire(path, is_new=True), 0, keep=0)
        recorder._line(_header(session, model, settings, history))
        return recorder

    @classmethod
    def go_on(cls, path: Path, lease: Lease, *, num_events: int, size: int) -> "Recorder":
        """Continue a record of which `size` bytes are whole lines. Raises `OSError`.

        If the previous holder of the lease might still write, the record is replaced by a copy that it cannot reach.
        """
        if lease.is_takeover:
            copy = path.with_name(f".{path.stem}.copy")
            with path.open("rb") as old, open(copy, "wb", opener=_private) as new:
                shutil.copyfileobj(old, new)
                new.truncate(size)
                os.fsync(new.fileno())
            copy.replace(path)
        return cls(path, lease, num_events, keep=size)

    def __call__(self, event: Event) -> None:
        """Write an event. Raises `OSError`."""
        self._line(as_dict(event))
        self.num_events += 1

    def stop(self) -> None:
        """Stop writing, but keep the lease, so that nobody else writes."""
        if self._fd is not None:
            number, self._fd = self._fd, None
            os.close(number)

    def close(self) -> None:
        """Stop writing, and release the lease."""
        try:
            self.stop()
        finally:
            self.lease.release()

    def _line(self, row: dict[str, Any]) -> None:
        # Unbuffered: what was written survives the process, though perhaps not a crash of the machine.
        data = memoryview((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        self._size += len(data)
        if self._fd is None:
            return
        if self._size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"a record may have at most {MOST_BYTES} bytes")
        while data:
            data = data[os.write(self._fd, data) :]


def write_record(path: Path, events: Iterable[Event], *, model: str, history: Sequence[Turn] = ()) -> None:
    """Write a whole conversation that no server has recorded. Raises `OSError`."""
    rows = [_header("saved", model, {}, history), *map(as_dict, events)]
    with open(path, "w", encoding="utf-8", errors="replace", opener=_private) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _header(session: str, model: str, settings: dict[str, Any], history: Sequence[Turn]) -> dict[str, Any]:
    turns = [{"role": str(turn.role), "text": turn.text} for turn in history]
    began = datetime.now(UTC).isoformat(timespec="seconds")
    header = {"record": VERSION, "session": session, "model": model, "began": began}
    return {**header, "settings": settings, "history": turns}


def make_folder(folder: Path) -> None:
    """Create the folder of the records, which only its owner may read: names of conversations are secrets.

    Raises:
        OSError: it cannot be created.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def is_private(folder: Path) -> bool:
    """Whether only its owner may read the folder."""
    return not folder.stat().st_mode & 0o077


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def record_path(folder: Path, session: str) -> Path:
    """The path of a session's record. Raises `UsageError` if this cannot be a session's name."""
    if not _NAME.fullmatch(session):
        raise UsageError("a session's name has 1 to 64 letters, digits, - and _")
    return folder / f"{session}.jsonl"


def is_record(path: Path) -> bool:
    """Whether `path` seems to be a record rather than a script."""
    try:
        with path.open("rb") as file:
            return file.readline(4096).lstrip().startswith(b'{"record"')
    except OSError:
        return False


class RecordReader:
    """Reads a record line by line: the first line at once, and the events during iteration.

    An incomplete last line is left out. `size` and `num_events` count what was read.

    Raises:
        BadData: the file cannot be read, or a line is invalid; the message names the line.
    """

    def __init__(self, path: Path) -> None:
        self.size = 0  # bytes of whole lines
        self.num_events = 0
        self._path = path
        self._rows = self._read()
        number, header = next(self._rows, (1, {}))
        if header.get("record") != VERSION:
            raise BadData(f"{path} is not a record of version {VERSION}")
        try:
            self.history = tuple(Turn(Role(turn["role"]), str(turn["text"])) for turn in header["history"])
            self.session, self.settings = str(header["session"]), dict(header["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadData(f"{path}, line {number}: a record does not begin like this: {error}") from error
        if any(turn.role is Role.SYSTEM for turn in self.history):
            raise BadData(f"{path}, line {number}: a history has turns of the user and the assistant")

    def __iter__(self) -> Iterator[Event]:
        for number, row in self._rows:
            try:
                event = from_dict(row)
            except BadData as error:
                raise BadData(f"{self._path}, line {number}: {error}") from error
            if event is not None:
                self.num_events += 1
                yield event

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with self._path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        return
                    self.size += len(line)
                    if line.strip():
                        yield number, self._row(number, line)
        except OSError as error:
            raise BadData(f"cannot read the record {self._path}: {error}") from error

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadData(f"{self._path}, line {number}: this is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise BadData(f"{self._path}, line {number}: a line is a JSON object, not {type(row).__name__}")
        return row


def read_record(path: Path) -> Recorded:
    """Read a whole record. Raises `BadData` as `RecordReader` does."""
    reader = RecordReader(path)
    return Recorded(reader.session, reader.settings, reader.history, tuple(reader))
