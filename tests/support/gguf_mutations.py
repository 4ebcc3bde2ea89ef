"""Damages a GGUF file where its structure is: numbers, counts, lengths, types and shapes of its header.

Run as a script, it loads damaged files with everything that reads GGUF, and prints the number of each before it does.
"""

import contextlib
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_VALUES = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 31, 32, 33, 64, 100, 127, 128, 255, 256, 300, 301, 1000, 65535, 1 << 20),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)


class Mutator:
    """Makes damaged copies of a sound file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields = [(8, "Q"), (16, "Q")]  # offset and format of each number in the header
        num_tensors, num_values = struct.unpack_from("<QQ", data, 8)
        offset = 24
        for _ in range(num_values):
            offset = self._skip(_STRING, offset)
            offset = self._skip(struct.unpack_from("<I", data, offset)[0], self._number(offset, "I"))
        for _ in range(num_tensors):
            offset = self._skip(_STRING, offset)
            (num_dimensions,) = struct.unpack_from("<I", data, offset)
            offset = self._number(offset, "I")
            for code in "Q" * num_dimensions + "IQ":
                offset = self._number(offset, code)
        self._end = offset

    def _number(self, offset: int, code: str) -> int:
        self._fields.append((offset, code))
        return offset + struct.calcsize(code)

    def _skip(self, kind: int, offset: int) -> int:
        if kind == _STRING:
            return self._number(offset, "Q") + int(struct.unpack_from("<Q", self._data, offset)[0])
        if kind == _ARRAY:
            item_kind, count = struct.unpack_from("<IQ", self._data, offset)
            offset = self._number(self._number(offset, "I"), "Q")
            for _ in range(count):
                offset = self._skip(item_kind, offset)
            return offset
        return self._number(offset, {1: "B", 2: "H", 4: "I", 8: "Q"}[_SIZES[kind]])

    def damaged(self, seed: int) -> bytes:
        """A copy with one to three kinds of damage; the same for the same seed."""
        chance, data = random.Random(seed), bytearray(self._data)
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            what = chance.random()
            if what < 0.75:
                self._change_number(data, chance)
            elif what < 0.9:
                data[chance.randrange(self._end)] = chance.randrange(256)
            elif what < 0.97:
                del data[chance.randrange(4, len(data)) :]
                return bytes(data)
            else:
                at = chance.randrange(self._end)
                data[at:at] = chance.randbytes(chance.choice([1, 4, 8]))
                return bytes(data)
        return bytes(data)

    def _change_number(self, data: bytearray, chance: random.Random) -> None:
        offset, code = chance.choice(self._fields)
        value = chance.choice(_VALUES)
        if chance.random() < 0.3:
            value = struct.unpack_from(f"<{code}", data, offset)[0] + chance.choice([-2, -1, 1, 2])
        struct.pack_into(f"<{code}", data, offset, value % (1 << 8 * struct.calcsize(code)))


def main(sound: Path, folder: Path, first: int, number: int) -> None:
    from duologue.backends.llamacpp.backend import LlamaCppBackend
    from duologue.backends.llamacpp.gguf_convert import convert
    from duologue.backends.llamacpp.gguf_facts import read_facts
    from duologue.backends.llamacpp.tokenizer import GgufTokenizer
    from duologue.errors import DuologueError

    mutator, path = Mutator(sound.read_bytes()), folder / "damaged.gguf"
    readers: tuple[Callable[[], object], ...] = (
        lambda: read_facts(path),
        lambda: convert(path, folder / "converted.gguf", weights="Q8_0"),
        lambda: GgufTokenizer.from_file(path).encode("hello ab"),
        lambda: LlamaCppBackend(path, capacity=32, max_seqs=2, threads=1).close(),
    )
    for seed in range(first, first + number):
        print(seed, flush=True)
        path.write_bytes(mutator.damaged(seed))
        for read in readers:
            with contextlib.suppress(DuologueError):
                read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
