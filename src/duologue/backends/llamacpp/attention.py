"""Decides by a measurement whether flash attention is faster than standard attention where sessions share a cache.

Standard attention stores the scores of all entries of the cache, those of other sessions included, and computes them as
products of matrices. Flash attention skips what is masked, with other kernels. Which one takes less time depends on the
processor: by a factor of two either way on the two that were measured (`benchmarks/attention.py`). So it is measured
once, on a model of one layer whose heads are those of the model in question, and kept in the cache folder. One thread
does it, by its own time, so that other work on the machine does not decide.
"""

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import gguf
import llama_cpp as ll
import numpy as np

from duologue.backends.file_cache import cached_folder
from duologue.backends.llamacpp.backend import LlamaCppBackend
from duologue.backends.llamacpp.gguf_header import read_header
from duologue.backends.machine import cpu_name
from duologue.core.backend import Draw, Extend
from duologue.errors import BrokenModel, EngineError, UnsupportedModel

_HISTORY = 384  # tokens of each session
_HEARD = 7  # tokens that one of them hears
_CHUNK = 32  # tokens of a history in one pass
_MAX_SESSIONS = 8
_REPEATS = 5
_VOCAB = 64


@dataclass(frozen=True, slots=True)
class _Heads:
    """The attention of one layer."""

    num: int
    num_kv: int
    key_length: int
    value_length: int

    @classmethod
    def of(cls, path: Path) -> "_Heads | None":
        """Those of a model file; None if its layers differ, or it does not say."""
        values = read_header(path).values
        arch = values.get("general.architecture")
        num = values.get(f"{arch}.attention.head_count")
        width = values.get(f"{arch}.embedding_length")
        if not (isinstance(num, int) and isinstance(width, int) and num > 0):
            return None
        sizes = (
            values.get(f"{arch}.attention.head_count_kv", num),
            values.get(f"{arch}.attention.key_length", width // num),
            values.get(f"{arch}.attention.value_length", width // num),
        )
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            return None
        return cls(num, *cast(tuple[int, int, int], sizes))


def prefers_flash(path: Path, sessions: int) -> bool:
    """Whether passes of `sessions` conversations that share a cache are faster with flash attention.

    Args:
        path: the model file. Where its heads are unknown or unusual, and on a GPU (untested), the answer is yes.
    """
    heads = _Heads.of(path)
    if heads is None or ll.llama_supports_gpu_offload():
        return True
    sessions = min(sessions, _MAX_SESSIONS)
    facts = {**asdict(heads), "sessions": sessions, "cpu": cpu_name(), "llama_cpp": ll.__version__, "version": 1}
    name = sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def write(folder: Path) -> None:
        folder.mkdir()
        _write_layer(folder / "layer.gguf", heads)
        found = _measured(folder / "layer.gguf", sessions)
        (folder / "layer.gguf").unlink()
        (folder / "measurement.json").write_text(json.dumps({**facts, **found}, indent=1), encoding="utf-8")

    try:
        folder = cached_folder("attention", name, write)
    except (BrokenModel, EngineError, UnsupportedModel):  # llama.cpp refuses a plain layer with such heads
        return True
    measurement = json.loads((folder / "measurement.json").read_text(encoding="utf-8"))
    return bool(measurement["flash_ms"] <= measurement["standard_ms"])


def _write_layer(path: Path, heads: _Heads) -> None:
    """A Llama of one layer with these heads, in which everything else is small."""
    width, random = 32, np.random.default_rng(0)
    with closing(gguf.GGUFWriter(path, "llama")) as writer:
        writer.add_context_length(2 * _HISTORY)
        writer.add_vocab_size(_VOCAB)
        writer.add_embedding_length(width)
        writer.add_block_count(1)
        writer.add_feed_forward_length(width)
        writer.add_head_count(heads.num)
        writer.add_head_count_kv(heads.num_kv)
        writer.add_key_length(heads.key_length)
        writer.add_value_length(heads.value_length)
        writer.add_rope_dimension_count(heads.key_length)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("no_vocab")
        shapes = {
            gguf.MODEL_TENSOR.TOKEN_EMBD: (_VOCAB, width),
            gguf.MODEL_TENSOR.OUTPUT_NORM: (width,),
            gguf.MODEL_TENSOR.ATTN_NORM: (width,),
            gguf.MODEL_TENSOR.ATTN_Q: (heads.num * heads.key_length, width),
            gguf.MODEL_TENSOR.ATTN_K: (heads.num_kv * heads.key_length, width),
            gguf.MODEL_TENSOR.ATTN_V: (heads.num_kv * heads.value_length, width),
            gguf.MODEL_TENSOR.ATTN_OUT: (width, heads.num * heads.value_length),
            gguf.MODEL_TENSOR.FFN_NORM: (width,),
            gguf.MODEL_TENSOR.FFN_GATE: (width, width),
            gguf.MODEL_TENSOR.FFN_UP: (width, width),
            gguf.MODEL_TENSOR.FFN_DOWN: (width, width),
        }
        for tensor, shape in shapes.items():
            name = gguf.TENSOR_NAMES[tensor].format(bid=0)
            writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _measured(path: Path, sessions: int) -> dict[str, float]:
    """Milliseconds of one thread for both, taking turns: a pass that speaks, and one in which a session also hears."""
    capacity = (sessions + 1) * (_HISTORY + 64)
    options: dict[str, Any] = {"capacity": capacity, "max_seqs": sessions + 1, "threads": 1}
    times: dict[str, list[float]] = {"flash_ms": [], "standard_ms": []}
    with (
        closing(LlamaCppBackend(path, flash_attention=True, **options)) as flash,
        closing(LlamaCppBackend(path, flash_attention=False, **options)) as standard,
    ):
        sides = {"flash_ms": (flash, _filled(flash, sessions)), "standard_ms": (standard, _filled(standard, sessions))}
        for _ in range(_REPEATS):
            for name, side in sides.items():
                times[name].append(_timed(*side))
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def _filled(backend: LlamaCppBackend, sessions: int) -> list[int]:
    """Sequences with a history each."""
    seqs = [backend.fork(None) for _ in range(sessions)]
    for start in range(0, _HISTORY, _CHUNK):
        for seq in seqs:
            backend.forward([Extend(seq, tuple(i % _VOCAB for i in range(start, start + _CHUNK)))])
    return seqs


def _timed(backend: LlamaCppBackend, seqs: Sequence[int]) -> float:
    """The time of both passes, of which nothing stays in the cache."""
    began = time.thread_time()
    speech = [Extend(seq, (5,), draw=Draw()) for seq in seqs]
    backend.forward(speech)
    channel = backend.fork(seqs[0], _HISTORY)
    backend.forward([*(Extend(seq, (6,), draw=Draw()) for seq in seqs), Extend(channel, (5,) * _HEARD, draw=Draw())])
    spent = time.thread_time() - began
    backend.free(channel)
    for seq in seqs:
        backend.truncate(seq, _HISTORY)
    return 1000 * spent
