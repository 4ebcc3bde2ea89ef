"""Reads the header of a GGUF file: metadata values and tensor shapes, without the long lists and the weights.

A vocabulary has a hundred thousand strings; skipping them takes a fraction of the time of reading them.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from duologue.errors import BrokenModel, ModelNotFound

_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_NESTING = 4  # of arrays; files in use do not nest them at all


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The result of `read_header`."""

    values: dict[str, Any]  # numbers, booleans and strings by key
    counts: dict[str, int]  # lengths of arrays by key
    shapes: dict[str, tuple[int, ...]]  # tensor shapes in GGUF's order: the number of rows comes last


def read_header(path: Path) -> GgufHeader:
    """Read the header of a file.

    Raises:
        ModelNotFound: there is no such file.
        BrokenModel: the file is not GGUF, or its header is damaged or incomplete.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelNotFound(f"{path} {what}; give the path of a GGUF file")
    try:
        with path.open("rb") as file:
            return _Scanner(file, path.stat().st_size).header()
    except (struct.error, ValueError, KeyError, OSError) as error:
        raise BrokenModel(f"{path} cannot be read as GGUF ({error}); the download may be incomplete") from error


class _Scanner:
    """Steps through an open file of `size` bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        magic = file.read(4)
        if magic != b"GGUF":
            raise ValueError(f"it begins with {magic!r} instead of b'GGUF'")
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"format version {version}; supported are 2 and 3, little-endian")

    def header(self) -> GgufHeader:
        num_tensors, num_values = self._count(), self._count()
        values: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for _ in range(num_values):
            key, kind = self._text(), self._number("I")
            if kind == _ARRAY:
                counts[key] = self._skip_array()
            else:
                values[key] = self._text() if kind == _STRING else self._number(_NUMBERS[kind])
        shapes = {}
        for _ in range(num_tensors):
            name = self._text()
            shapes[name] = tuple(int(self._number("Q")) for _ in range(self._number("I")))
            self._number("I")  # type
            self._number("Q")  # offset
        return GgufHeader(values, counts, shapes)

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._file.read(struct.calcsize(f"<{code}")))[0]

    def _count(self) -> int:
        count = int(self._number("Q"))
        if count > self._size:  # whatever is counted takes a byte at least
            raise ValueError(f"a count of {count} at byte {self._file.tell()} of {self._size}")
        return count

    def _text(self) -> str:
        length = self._count()
        data = self._file.read(length)
        if len(data) != length:
            raise ValueError("it ends inside a string")
        return data.decode("utf-8", "replace")

    def _skip_array(self, depth: int = 1) -> int:
        if depth > _MAX_NESTING:
            raise ValueError(f"arrays nested more than {_MAX_NESTING} deep")
        kind, count = self._number("I"), self._count()
        if kind == _ARRAY:
            for _ in range(count):
                self._skip_array(depth + 1)
        elif kind == _STRING:
            for _ in range(count):
                self._file.seek(self._count(), 1)
        else:
            self._file.seek(count * struct.calcsize(f"<{_NUMBERS[kind]}"), 1)
        return count
