"""Lines of JSONL files, plain or gzipped, read one by one; errors name the line."""

import codecs
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from duologue.errors import BadData

MAX_LINE = 1 << 26
"""Bytes of a line; a longer one is an error, so that no file can fill the memory."""


def read_rows(path: Path, *, skip: Callable[[str], None] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not empty.

    Args:
        skip: receives what is wrong with a line that cannot be used, which is then left out.

    Raises:
        BadData: the file cannot be read, or a line is not a JSON object and there is no `skip`.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(_lines(file.readline), 1):
                try:
                    if line is None:
                        raise BadData(f"{path}, line {number}: longer than {MAX_LINE >> 20} MiB")
                    if line.strip():
                        yield number, _row(path, number, line)
                except BadData as error:
                    if skip is None:
                        raise
                    skip(str(error))
    except FileNotFoundError as error:
        raise BadData(f"there is no file {path}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path} cannot be read after line {number}: {error}") from error


def _lines(read_line: Callable[[int], bytes]) -> Iterator[bytes | None]:
    """The lines of a file, without the byte-order mark that some editors write; None for one that is too long."""
    start = read_line(MAX_LINE).removeprefix(codecs.BOM_UTF8)
    for line in itertools.chain([start], iter(partial(read_line, MAX_LINE), b"")):
        if len(line) < MAX_LINE or line.endswith(b"\n"):
            yield line
            continue
        while rest := read_line(MAX_LINE):
            if rest.endswith(b"\n"):
                break
        yield None


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


def _row(path: Path, number: int, content: bytes) -> dict[str, Any]:
    try:
        line = content.decode()
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
