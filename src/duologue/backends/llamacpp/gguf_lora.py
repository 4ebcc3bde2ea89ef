"""Writes a LoRA as a GGUF file for llama.cpp, with the tensor names and the row order of the model's own file.

It needs the `gguf` package, not llama.cpp. Shapes: R is the rank, in and out are the widths of a layer.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFValueType, GGUFWriter, get_tensor_name_map

from duologue.backends.file_cache import cached_file
from duologue.backends.llamacpp.gguf_header import GgufHeader, read_header
from duologue.backends.lora import FloatArray, Lora
from duologue.errors import AdapterMismatch, UnsupportedModel

FORMAT_VERSION = 1
"""Increased when the content of written files changes, so that the cache does not serve outdated ones."""

# llama.cpp rotates adjacent numbers of a query or key together, transformers those half a head apart. For these
# architectures, converters to GGUF reorder the rows of both matrices for llama.cpp …
_INTERLEAVED = ("llama", "minicpm", "granite", "arcee", "smollm3")
# … and for these, llama.cpp rotates as transformers does, or positions are learned.
_STRAIGHT = (
    *("qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi2", "phi3", "stablelm", "starcoder2"),
    *("gpt2", "gptneox", "falcon", "olmo2", "bloom", "mpt"),
)
_ROTATED = ("attn_q", "attn_k", "attn_qkv", "attn_q_a", "attn_q_b")
_DECODERS = ("model.", "transformer.", "gpt_neox.", "")  # prefixes of a layer's path in a Hugging Face model


def write_lora(source: Path | str, lora: Lora, target: Path | str, *, invocation: tuple[int, ...] = ()) -> None:
    """Write `lora` to `target` for the model in the GGUF file `source`, whose weight type does not matter.

    `invocation` declares the token ids from which on the LoRA is active (activated LoRA).

    Raises:
        ModelNotFound, BrokenModel: see `gguf_header.read_header`.
        AdapterMismatch: the model lacks a layer, or its layer has another shape.
        UnsupportedModel: the order of the query and key rows is unknown for this architecture.
    """
    header = read_header(Path(source))
    architecture = str(header.values.get("general.architecture"))
    names = LoraNames(header, architecture)
    writer = GGUFWriter(Path(target), architecture)
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", lora.scale * lora.rank)
        if invocation:
            kinds = GGUFValueType.ARRAY, GGUFValueType.UINT32  # llama.cpp accepts no other number type here
            writer.add_key_value("adapter.alora.invocation_tokens", list(invocation), *kinds)
        for path, pair in lora.layers.items():
            name = names.of(path, pair.a.shape[1], pair.b.shape[0])
            writer.add_tensor(f"{name}.weight.lora_a", np.ascontiguousarray(pair.a))
            writer.add_tensor(f"{name}.weight.lora_b", np.ascontiguousarray(names.ordered(name, pair.b)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def cached_lora(source: Path | str, lora: Lora) -> Path:
    """The path of `lora` written by `write_lora` to the cache folder (see `file_cache`)."""
    source = Path(source)
    header = read_header(source)
    numbers = {key: value for key, value in header.values.items() if not isinstance(value, str)}
    digest = hashlib.sha256(f"{FORMAT_VERSION} {header.values.get('general.architecture')} {lora.scale}".encode())
    digest.update(repr(sorted(numbers.items())).encode())
    for name, matrix in sorted(lora.tensors().items()):
        digest.update(f"{name} {matrix.shape} {matrix.dtype}".encode())
        digest.update(np.ascontiguousarray(matrix).tobytes())
    return cached_file(
        f"{source.stem}-lora-{digest.hexdigest()[:16]}.gguf", lambda part: write_lora(source, lora, part)
    )


class LoraNames:
    """Maps a layer's Hugging Face path to a tensor of a GGUF file, and the layer's rows to that tensor's order."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self._shapes = header.shapes
        self._architecture = architecture
        by_name = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
        if architecture not in by_name:
            raise UnsupportedModel(
                f"the installed gguf package does not know the architecture {architecture!r}, so a LoRA cannot be "
                "written for it; install a newer one, or load the model with the torch backend"
            )
        arch: MODEL_ARCH = by_name[architecture]
        self._names: Any = get_tensor_name_map(arch, _number(header.values, f"{architecture}.block_count"))
        self._values = header.values

    def of(self, path: str, width: int, height: int) -> str:
        """The tensor's name without ".weight". `width` and `height` are the layer's numbers of inputs and outputs."""
        found = (self._names.get_name(prefix + path) for prefix in _DECODERS)
        name = next((str(name) for name in found if name and f"{name}.weight" in self._shapes), None)
        if name is None:
            raise AdapterMismatch(
                f"the LoRA changes the layer {path!r}, which this {self._architecture} model does not have; the "
                "adapter was trained for another model"
            )
        if self._shapes[f"{name}.weight"] != (width, height):
            shape = self._shapes[f"{name}.weight"]
            raise AdapterMismatch(
                f"the LoRA of layer {path!r} is for {width} inputs and {height} outputs; the model's has {shape[0]} "
                f"and {shape[-1]}: the adapter was trained for another model"
            )
        return name

    def ordered(self, name: str, b: FloatArray) -> FloatArray:
        """b: [out, R], rows in the order of transformers. Returns [out, R] in the order of the file."""
        kind = name.rpartition(".")[2]
        if kind not in _ROTATED or self._architecture in _STRAIGHT:
            return b
        if self._architecture not in _INTERLEAVED or kind not in ("attn_q", "attn_k"):
            raise UnsupportedModel(
                f"the row order of {name} in a {self._architecture} file is unknown, so a LoRA on queries or keys "
                "would be wrong; leave these layers out of the LoRA, or load the model with the torch backend"
            )
        heads = _number(self._values, f"{self._architecture}.attention.head_count")
        if kind == "attn_k":
            heads = _number(self._values, f"{self._architecture}.attention.head_count_kv", heads)
        return b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def _number(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if not isinstance(value, int):
        raise UnsupportedModel(
            f"the model's file does not declare one number for {key}; a LoRA cannot be written for it"
        )
    return value
