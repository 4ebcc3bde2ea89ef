"""Writes a one-pass file: a GGUF in which llama.cpp applies an adapter's LoRA itself, at the probe tokens alone.

llama.cpp's architecture `graniteswitch` is a Llama model in which control tokens select low-rank updates, for each
token of a pass. The first probe token is such a control token: the LoRA applies to it and to what follows in its
sequence, until it is rolled back. So a probe needs no pass of its own, also in engines that know nothing of adapters.
In exchange, every token of every pass computes the small factors. It needs the `gguf` package, not llama.cpp.

A is the number of choices, no LoRA and the LoRA; R is the rank, in and out are the widths of a layer.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from duologue.backends.llamacpp.gguf_facts import BASE_VOCAB_KEY, INPUT, ONE_PASS_KEY, OUTPUT
from duologue.backends.llamacpp.gguf_header import read_header
from duologue.backends.llamacpp.gguf_lora import LoraNames
from duologue.backends.lora import Lora
from duologue.errors import BrokenModel, DuologueError, UnsupportedModel, refuse, require

ARCHITECTURE = "graniteswitch"
_ROUTER_GAIN = 15.0  # makes llama.cpp's softmax over the choices a choice of one
_QKV = ("attn_q", "attn_k", "attn_v")
_LAYER = ("attn_norm", *_QKV, "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_ADAPTED = (*_QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write_one_pass(source: Path, lora: Lora, target: Path, *, digest: str) -> None:
    """Write `source`, a file with an adapter's rows, to `target` with the adapter's LoRA in it.

    `digest` is the `adapter_digest` of the adapter. Weights keep their type.

    Raises:
        ModelNotFound, BrokenModel: see `gguf_header.read_header`.
        AdapterMismatch: the model lacks a layer of the LoRA, or its layer has another shape.
        UnsupportedModel: the model is not a plain Llama model, or queries, keys and values have different types.
        UsageError: there are no rows in the file.
    """
    check_kind(source)
    try:
        reader = GGUFReader(source)
        require(
            BASE_VOCAB_KEY in reader.fields,
            f"{source.name} has no rows of an adapter; write them first, with gguf_convert.convert",
        )
        with closing(GGUFWriter(target, ARCHITECTURE, endianess=reader.endianess)) as writer:
            _copy_metadata(reader, writer)
            probe = int(reader.fields[BASE_VOCAB_KEY].contents())
            _add_switch(writer, lora.rank, probe)
            writer.add_string(ONE_PASS_KEY, digest)
            for tensor in _tensors(source, reader, lora):
                tensor.add_to(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    except (DuologueError, OSError):
        raise
    except Exception as error:  # damaged files raise errors without a common class
        raise BrokenModel(f"{source} cannot be read as GGUF ({error}); the download may be incomplete") from error


def check_kind(source: Path) -> None:
    """Raise `UnsupportedModel` unless the file is a plain Llama model."""
    header = read_header(source)
    architecture, num_layers = header.values.get("general.architecture"), header.values.get("llama.block_count", 0)
    known = {f"blk.{i}.{part}.weight" for i in range(int(num_layers)) for part in _LAYER}
    others = sorted(set(header.shapes) - known - {INPUT, OUTPUT, "output_norm.weight"})
    advice = "; export it without --one-pass, or with --format hf"
    refuse(
        [
            (
                architecture != "llama",
                f"{source.name} has the architecture {architecture}; llama.cpp applies a LoRA token by token in models "
                f"like Llama only (Llama, SmolLM2, Mistral){advice}",
            ),
            (
                bool(others),
                f"{source.name} has tensors that a plain Llama model lacks: {', '.join(others[:4])}{advice}",
            ),
        ],
        UnsupportedModel,
    )


def _copy_metadata(reader: Any, writer: Any) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        name, kind = field.name, field.types[0]
        if name.startswith("llama."):
            name = f"{ARCHITECTURE}.{name.removeprefix('llama.')}"
        sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub_type)


def _add_switch(writer: Any, rank: int, probe: int) -> None:
    """Declare one LoRA, which the token `probe` activates; its embedding is its own."""
    writer.add_float32(f"{ARCHITECTURE}.logit_scale", 1.0)
    writer.add_uint32(f"{ARCHITECTURE}.expert_used_count", 0)
    writer.add_uint32(f"{ARCHITECTURE}.adapters.count", 1)
    writer.add_uint32(f"{ARCHITECTURE}.adapters.lora_rank", rank)
    writer.add_array(f"{ARCHITECTURE}.adapters.token_ids_activate", [probe])
    writer.add_array(f"{ARCHITECTURE}.adapters.token_ids_substitute", [probe])
    writer.add_float32(f"{ARCHITECTURE}.adapters.router_gain", _ROUTER_GAIN)


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor to be written, with its data as stored."""

    name: str
    data: npt.NDArray[Any]
    kind: GGMLQuantizationType | None = None  # of stored blocks; None: that of the array

    def add_to(self, writer: Any) -> None:
        """Add it to a file."""
        writer.add_tensor(self.name, self.data, raw_dtype=self.kind)


def _tensors(source: Path, reader: Any, lora: Lora) -> Iterator[_Tensor]:
    """The tensors of the file: queries, keys and values of a layer are one matrix, and the LoRA follows its layer."""
    stored = {tensor.name: tensor for tensor in reader.tensors}
    factors = _factors(source, lora)
    for name, tensor in stored.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part == "attn_q":
            yield _joined([stored[name.replace("attn_q", each)] for each in _QKV])
        elif part not in _QKV:
            yield _Tensor(name, tensor.data, tensor.tensor_type)
        if part in _ADAPTED:
            yield from factors.get(name.removesuffix(".weight"), _no_factors(tensor, lora.rank))


def _joined(tensors: list[Any]) -> _Tensor:
    """Queries, keys and values of one layer, rows after rows."""
    kinds = {tensor.tensor_type for tensor in tensors}
    if len(kinds) > 1:
        raise UnsupportedModel(
            f"queries, keys and values of {tensors[0].name.partition('.attn')[0]} have different types "
            f"({', '.join(sorted(kind.name for kind in kinds))}), but become one matrix; choose one with --weights"
        )
    data = np.concatenate([tensor.data for tensor in tensors])
    return _Tensor(tensors[0].name.replace("attn_q", "attn_qkv"), data, tensors[0].tensor_type)


def _factors(source: Path, lora: Lora) -> Mapping[str, list[_Tensor]]:
    """The factors [A, R, in] and [A, out, R] of each adapted layer, by its tensor; those of choice 0 are zero."""
    names, found = LoraNames(read_header(source), "llama"), {}
    for path, pair in lora.layers.items():
        name = names.of(path, pair.a.shape[1], pair.b.shape[0])
        b = lora.scale * names.ordered(name, pair.b).astype(np.float32)
        found[name] = [_switched(f"{name}.lora_a", pair.a.astype(np.float32)), _switched(f"{name}.lora_b", b)]
    return found


def _no_factors(tensor: Any, rank: int) -> list[_Tensor]:
    """Factors of a layer that the LoRA does not change; llama.cpp wants them for all."""
    width, height = (int(size) for size in tensor.shape)
    name = tensor.name.removesuffix(".weight")
    return [
        _switched(f"{name}.lora_a", np.zeros((rank, width), np.float32)),
        _switched(f"{name}.lora_b", np.zeros((height, rank), np.float32)),
    ]


def _switched(name: str, matrix: npt.NDArray[np.float32]) -> _Tensor:
    return _Tensor(name, np.ascontiguousarray(np.stack([np.zeros_like(matrix), matrix]), dtype=np.float32))
