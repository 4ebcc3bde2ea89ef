"""Reads the header of a GGUF file: metadata values, shapes and places of tensors, without long lists and weights.

A vocabulary has a hundred thousand strings; skipping them takes a fraction of the time of reading them.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.errors import BrokenModel, ModelNotFound

_STRING, _ARRAY = 8, 9
_NUMBERS = {
    kind: struct.Struct(f"<{code}")
    for kind, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_U32, _U64 = _NUMBERS[4], _NUMBERS[10]
_ALIGNMENT = 32  # of the data, unless the file says otherwise
_MAX_NESTING = 4  # of arrays; files in use do not nest them at all


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The result of `read_header`."""

    values: dict[str, Any]  # numbers, booleans and strings by key
    num_repeated_tokens: int  # tokens of the vocabulary with the text of an earlier one
    shapes: dict[str, tuple[int, ...]]  # tensor shapes in GGUF's order: the number of rows comes last
    kinds: dict[str, int]  # tensor types, as GGUF numbers them
    offsets: dict[str, int]  # where the data of a tensor begins in the file


def read_header(path: Path) -> GgufHeader:
    """Read the header of a file.

    Raises:
        ModelNotFound: there is no such file.
        BrokenModel: the file is not GGUF, or its header is damaged or incomplete.
    """
    if not path.is_file():
        problem = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise ModelNotFound(f"{problem}; give the path of a GGUF file")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Scanner(data).header()
    except (struct.error, ArithmeticError, ValueError, KeyError, OSError) as error:
        raise BrokenModel(f"{path} cannot be read as GGUF ({error}); the download may be incomplete") from error


class _Scanner:
    """Steps through the bytes of a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._offset = 4
        if data[:4] != b"GGUF":
            raise ValueError(f"it is not a GGUF file: it begins with {data[:4]!r} instead of b'GGUF'")
        version = self._number(_U32)
        if version not in (2, 3):
            raise ValueError(f"format version {version}; supported are 2 and 3, little-endian")

    def header(self) -> GgufHeader:
        num_tensors, num_values = self._count(), self._count()
        values: dict[str, Any] = {}
        num_repeated_tokens = 0
        for _ in range(num_values):
            key, kind = self._text(), self._number(_U32)
            if kind == _ARRAY and key == "tokenizer.ggml.tokens":
                texts = [text for text in self._texts() if text]  # llama.cpp makes empty ones unique
                num_repeated_tokens = len(texts) - len(set(texts))
            elif kind == _ARRAY:
                self._skip_array()
            else:
                values[key] = self._text() if kind == _STRING else self._number(_NUMBERS[kind])
        shapes, kinds, offsets = {}, {}, {}
        for _ in range(num_tensors):
            name = self._text()
            shapes[name] = tuple(self._number(_U64) for _ in range(self._number(_U32)))
            kinds[name], offsets[name] = int(self._number(_U32)), int(self._number(_U64))
        if self._offset > len(self._data):
            raise ValueError("it ends inside an array")
        alignment = int(values.get("general.alignment", _ALIGNMENT))
        start = -(-self._offset // alignment) * alignment
        offsets = {name: start + offset for name, offset in offsets.items()}
        return GgufHeader(values, num_repeated_tokens, shapes, kinds, offsets)

    def _number(self, kind: struct.Struct) -> Any:
        (value,) = kind.unpack_from(self._data, self._offset)
        self._offset += kind.size
        return value

    def _count(self) -> int:
        count = int(self._number(_U64))
        if count > len(self._data):  # each item takes at least one byte
            raise ValueError(f"a count of {count} in a file of {len(self._data)} bytes")
        return count

    def _text(self) -> str:
        length = self._count()
        start, self._offset = self._offset, self._offset + length
        data = self._data[start : self._offset]
        if len(data) != length:
            raise ValueError("it ends inside a string")
        return data.decode("utf-8", "replace")

    def _texts(self) -> list[bytes]:
        """An array of strings."""
        kind, count = self._number(_U32), self._count()
        if kind != _STRING:
            raise ValueError("the vocabulary is not an array of strings")
        texts, start, data, read = list[bytes](), self._offset, self._data, _U64.unpack_from
        for _ in range(count):
            end = start + 8 + read(data, start)[0]
            texts.append(data[start + 8 : end])
            start = end
        self._offset = start
        return texts

    def _skip_array(self, depth: int = 1) -> None:
        if depth > _MAX_NESTING:
            raise ValueError(f"arrays nested more than {_MAX_NESTING} deep")
        kind, count = self._number(_U32), self._count()
        if kind == _ARRAY:
            for _ in range(count):
                self._skip_array(depth + 1)
        elif kind == _STRING:
            offset, data, read = self._offset, self._data, _U64.unpack_from
            for _ in range(count):
                offset += 8 + read(data, offset)[0]
            self._offset = offset
        else:
            self._offset += count * _NUMBERS[kind].size
