"""The record of a conversation: a header and one line of JSON per event."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.core.events import Event, as_dict, from_dict
from duologue.core.history import Ledger
from duologue.errors import BadData
from duologue.server.store import VERSION, header
from duologue.types import Role, Turn


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


def write_record(path: Path, events: Iterable[Event], *, model: str, history: Sequence[Turn] = ()) -> None:
    """Write a whole conversation that no server has recorded. Raises `OSError`."""
    rows = [header("saved", model, {}, history), *map(as_dict, events)]
    with open(path, "w", encoding="utf-8", errors="replace", opener=private) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def private(path: str, flags: int) -> int:
    """Open a file that only its owner may read; an `opener` of `open`."""
    return os.open(path, flags, 0o600)


def is_record(path: Path) -> bool:
    """Whether `path` seems to be a record rather than a script."""
    try:
        with path.open("rb") as file:
            return file.readline(4096).lstrip().startswith(b'{"record"')
    except OSError:
        return False


class RecordReader:
    """Reads a record line by line: the first line at once, and the events during iteration.

    `where` is the place that messages name. An incomplete last line is left out. `size`, `num_events` and `taken` tell
    what was read.

    Raises:
        BadData: the record cannot be read, or a line is invalid; the message names the line.
    """

    def __init__(self, lines: Iterable[bytes], where: object) -> None:
        self.size = 0  # bytes of whole lines
        self.num_events = 0
        self.taken = 0  # highest id of the client's messages whose consequences are recorded
        self._where = where
        self._rows = self._read(lines)
        number, first = next(self._rows, (1, {}))
        if first.get("record") != VERSION:
            raise BadData(f"{where} is not a record of version {VERSION}")
        try:
            self.history = tuple(Turn(Role(turn["role"]), str(turn["text"])) for turn in first["history"])
            self.session, self.settings = str(first["session"]), dict(first["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadData(f"{where}, line {number}: a record does not begin like this: {error}") from error
        if any(turn.role is Role.SYSTEM for turn in self.history):
            raise BadData(f"{where}, line {number}: a history has turns of the user and the assistant")

    def __iter__(self) -> Iterator[Event]:
        for number, row in self._rows:
            try:
                event = from_dict(row)
            except BadData as error:
                raise BadData(f"{self._where}, line {number}: {error}") from error
            if event is not None:
                self.num_events += 1
                if isinstance(taken := row.get("taken"), int):
                    self.taken = taken
                yield event

    def _read(self, lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            self.size += len(line)
            if line.strip():
                yield number, self._row(number, line)

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadData(f"{self._where}, line {number}: this is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise BadData(f"{self._where}, line {number}: a line is a JSON object, not {type(row).__name__}")
        return row


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file. Raises `BadData` during iteration if it cannot be read."""
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise BadData(f"cannot read the record {path}: {error}") from error


def read_record(path: Path) -> Recorded:
    """Read a whole record. Raises `BadData` as `RecordReader` does."""
    reader = RecordReader(lines_of(path), path)
    return Recorded(reader.session, reader.settings, reader.history, tuple(reader))
