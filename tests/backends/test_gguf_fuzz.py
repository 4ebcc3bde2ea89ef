"""Damaged GGUF files raise errors of this package in every reader. llama.cpp runs in a subprocess."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from soak import size

pytest.importorskip("gguf")
pytest.importorskip("torch")
import gguf_mutations
from duologue.backends.llamacpp.gguf_facts import read_facts
from duologue.errors import BrokenModel, DuologueError
from duologue.testing.tiny_models import tiny_model
from tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tiny_model("llama"), "llama", tmp_path_factory.mktemp("gguf") / "sound.gguf")


def test_a_damaged_header_raises_an_error_of_this_package(sound: Path, tmp_path: Path) -> None:
    mutator, path, num_refused = gguf_mutations.Mutator(sound.read_bytes()), tmp_path / "damaged.gguf", 0
    number = size(500, 50_000)
    for seed in range(number):
        path.write_bytes(mutator.damaged(seed))
        try:
            read_facts(path)
        except DuologueError:
            num_refused += 1
    assert number / 20 < num_refused < number, "the damage matters, but does not hit the magic every time"


@pytest.mark.llamacpp
def test_a_damaged_file_does_not_end_the_process(sound: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    command = [sys.executable, gguf_mutations.__file__, str(sound), str(tmp_path), "0", str(size(60, 20_000))]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=36_000, check=False)
    assert done.returncode == 0, f"number {done.stdout.split()[-1:]}: {done.stderr[-2000:]}"


def test_arrays_that_are_nested_deeply_are_refused(tmp_path: Path) -> None:
    """The value is an array of arrays of arrays …"""
    path, key = tmp_path / "nested.gguf", b"general.languages"
    nested = struct.pack("<IQ", 9, 1) * 100_000
    header = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<I", 9)
    path.write_bytes(header + nested)
    with pytest.raises(BrokenModel, match="nested more than 4 deep"):
        read_facts(path)


@pytest.mark.llamacpp
@pytest.mark.parametrize(
    ("what", "message"),
    [("twice", "1 tokens have the text of another"), ("layers", "0 layers"), ("nan", "a norm's epsilon")],
)
def test_what_llamacpp_asserts_is_checked_before(sound: Path, tmp_path: Path, what: str, message: str) -> None:
    pytest.importorskip("llama_cpp")
    from duologue.backends.llamacpp.library import LoadedModel

    data = sound.read_bytes()
    change = {
        "twice": (b"\x01" + bytes(7) + b"b", b"\x01" + bytes(7) + b"a"),
        "layers": (b"llama.block_count" + struct.pack("<II", 4, 2), b"llama.block_count" + struct.pack("<II", 4, 0)),
        "nan": (b"rms_epsilon" + struct.pack("<If", 6, 1e-6), b"rms_epsilon" + struct.pack("<If", 6, float("nan"))),
    }[what]
    assert change[0] in data
    (tmp_path / "odd.gguf").write_bytes(data.replace(*change, 1))
    with pytest.raises(BrokenModel, match=message):
        LoadedModel(tmp_path / "odd.gguf")
