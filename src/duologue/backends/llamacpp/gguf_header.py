"""The head of a GGUF file: its metadata values and the shapes of its tensors, without the long lists and the weights.

A vocabulary is a hundred thousand strings; stepping over them takes a fraction of the time of reading them.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from duologue.errors import BrokenModel, ModelNotFound

_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST = 1 << 28  # no count or length in a sound head is larger


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What `read_header` found."""

    values: dict[str, Any]  # numbers, booleans and strings by key
    counts: dict[str, int]  # how long each list is
    shapes: dict[str, tuple[int, ...]]  # of tensors, the last being the number of rows as GGUF has it


def read_header(path: Path) -> GgufHeader:
    """Read the head of a file.

    Raises:
        ModelNotFound: no such file.
        BrokenModel: not a GGUF file, or one that ends too early.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelNotFound(f"{path} {what}; give the path of a GGUF file")
    try:
        with path.open("rb") as file:
            return _Scanner(file).header()
    except (struct.error, ValueError, KeyError, OSError) as error:
        raise BrokenModel(f"{path} cannot be read as GGUF ({error}); the download may be incomplete") from error


class _Scanner:
    """Steps through an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        magic = file.read(4)
        if magic != b"GGUF":
            raise ValueError(f"it begins with {magic!r} instead of b'GGUF'")
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} of the format; 2 and 3 are known, in little-endian order")

    def header(self) -> GgufHeader:
        num_tensors, num_values = self._count(), self._count()
        values: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for _ in range(num_values):
            key, kind = self._text(), self._number("I")
            if kind == _ARRAY:
                counts[key] = self._skip_list()
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
        size = struct.calcsize(f"<{code}")
        return struct.unpack(f"<{code}", self._file.read(size))[0]

    def _count(self) -> int:
        count = int(self._number("Q"))
        if count > _MOST:
            raise ValueError(f"a count of {count} at byte {self._file.tell()}")
        return count

    def _text(self) -> str:
        length = self._count()
        data = self._file.read(length)
        if len(data) != length:
            raise ValueError("it ends inside a string")
        return data.decode("utf-8", "replace")

    def _skip_list(self) -> int:
        kind, count = self._number("I"), self._count()
        if kind == _ARRAY:
            for _ in range(count):
                self._skip_list()
        elif kind == _STRING:
            for _ in range(count):
                self._file.seek(self._count(), 1)
        else:
            self._file.seek(count * struct.calcsize(f"<{_NUMBERS[kind]}"), 1)
        return count
