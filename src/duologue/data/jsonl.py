"""Lines of JSONL files, plain or gzipped, read one by one; errors name the line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duologue.errors import BadData


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not empty.

    Raises:
        BadData: the file cannot be read, or a line is not a JSON object.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8-sig") as lines:  # some editors write a byte-order mark
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _row(path, number, line)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read after line {number}: {error}") from error


def complete_lines(path: Path, start: bytes) -> Iterator[bytes]:
    """The lines of a file of ours, perhaps missing, to which a killed process was appending.

    An incomplete last line is removed after all others have been read.

    Raises:
        BadData: the last line does not begin with `start`, so the file is not ours; it stays as it is.
    """
    if path.exists():
        length = 0
        with path.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    if not start.startswith(line[: len(start)]):
                        raise BadData(f"{path} was not written by this command; use another file")
                    break
                yield line
                length += len(line)
            file.truncate(length)


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
        raise BadData(f"{path}, line {number}: not JSON ({error})") from None
    if "\\ud" in line or "\\uD" in line:  # an escaped surrogate, perhaps without its other half
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadData(f"{path}, line {number}: half of a surrogate pair is not a character") from None
    if not isinstance(row, dict):
        raise BadData(f"{path}, line {number}: expected an object, got {type(row).__name__}")
    return row
