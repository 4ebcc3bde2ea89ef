"""Lines of JSONL files, plain or gzipped, one by one; an error names the line."""

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
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _row(path, number, line)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read behind line {number}: {error}") from error


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # the second: a thousand brackets
        raise BadData(f"{path}, line {number}: not JSON ({error})") from None
    if ("\\ud" in line or "\\uD" in line) and not _is_unicode(row):
        raise BadData(f"{path}, line {number}: half of a surrogate pair, which is no character")
    if not isinstance(row, dict):
        raise BadData(f"{path}, line {number}: expected an object, got {type(row).__name__}")
    return row


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
