"""Rewrites a GGUF file: the same weights in another type, and an adapter's rows added to the vocabulary.

It knows the file format, not how a model runs. It needs the `gguf` package, not llama.cpp. Shapes: A rows are added
to a matrix (adapter rows and padding), D is the hidden width.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quantize

from duologue.backends.file_cache import cached_file, file_digest
from duologue.backends.llamacpp.gguf_facts import (
    BASE_VOCAB_KEY,
    INPUT,
    NUM_ADDED_KEY,
    NUM_CASCADE_KEY,
    NUM_PROBES_KEY,
    OUTPUT,
    GgufFacts,
    read_facts,
)
from duologue.backends.rows import AdapterRows
from duologue.errors import BrokenModel, DuologueError, ModelNotFound, UnsupportedModel, refuse, require

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

FORMAT_VERSION = 3
"""Increased when the content of converted files changes, so that the cache does not serve outdated ones."""

WEIGHTS = ("BF16", "F16", "Q8_0", "Q4_0")
"""Weight types that `convert` can write."""

PAD_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this, because CPU kernels repack only such matrices."""

_SAFE_TYPES = ("F32", "F16", "BF16", "Q8_0")  # precise enough for adapter rows
_F16_MAX = 65504.0
_VOCABULARY = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores")
_CHUNK_ROWS = 4096  # rows converted at once, which bounds memory

Progress = Callable[[str, float], None]
"""Called with the name of the file being written and the share that is done, 0 … 1."""


def convert(
    source: Path | str,
    target: Path | str,
    *,
    weights: str | None = None,
    rows: AdapterRows | None = None,
    cascade: AdapterRows | None = None,
    names: Sequence[str] | None = None,
    padding: FloatArray | None = None,
    untie: bool = False,
    progress: Progress | None = None,
) -> GgufFacts:
    """Write `source` to `target` in another weight type, with an adapter's rows added, or both.

    The embedding and output matrices become F16 for every type (at least Q8_0 if `weights` is None and rows are added),
    which preserves the rows. Norms and other vectors keep their type. Metadata is copied; the vocabulary is extended by
    control tokens and padded.

    Args:
        weights: one of `WEIGHTS`, or None to keep every tensor as it is.
        rows: vectors as defined by `AdapterRows`; the model's own scaling of embeddings and logits is divided out.
        cascade: further rows of the same shapes, which the backend reads before those of the adapter.
        names: text of the added tokens, by default `AdapterRows.token_names`.
        padding: [D], the output row of the padding ids; zeros by default.
        untie: write a separate output matrix even if the source is tied, so that probe rows are not output rows too.
        progress: called as tensors are written.

    Raises:
        ModelNotFound, BrokenModel, UnsupportedModel: see `read_facts`.
        AdapterMismatch: the rows have another width.
        UsageError: the weight type is unknown, a name is taken, or the source has adapter rows already.
    """
    source, target = Path(source), Path(target)
    facts = read_facts(source)
    kind = _weight_type(weights)
    sets = [one for one in (rows, cascade) if one is not None]
    names = _check_rows(facts, sets, names, source)
    require(
        target.resolve() != source.resolve(), f"source and target are the same file, {source}; write to another one"
    )
    vocab_size = (
        facts.vocab_size if rows is None else -(-(facts.vocab_size + len(names)) // PAD_MULTIPLE) * PAD_MULTIPLE
    )
    added = {} if rows is None else _added_rows(facts, sets, vocab_size, padding, untied=untie or not facts.is_tied)
    try:
        reader = GGUFReader(source)
        tensors = _plan_tensors(reader, kind, added, untie=untie and facts.is_tied)
        with closing(GGUFWriter(target, facts.architecture, endianess=reader.endianess)) as writer:
            _copy_metadata(
                reader, writer, kind, skip=() if rows is None else (*_VOCABULARY, f"{facts.architecture}.vocab_size")
            )
            if rows is not None:
                _extend_vocabulary(reader, writer, facts, names, vocab_size)
                writer.add_uint32(NUM_ADDED_KEY, rows.num_added)
                writer.add_uint32(NUM_PROBES_KEY, rows.num_probes)
                writer.add_uint32(NUM_CASCADE_KEY, len(names) - rows.num_added)
            for done in _write(writer, tensors):
                if progress is not None:
                    progress(target.name, done)
    except (DuologueError, OSError):
        raise
    except Exception as error:  # damaged files raise errors without a common class
        raise BrokenModel(f"{source} cannot be read as GGUF ({error}); the download may be incomplete") from error
    return read_facts(target)


def cached_gguf(
    source: Path | str,
    weights: str | None = None,
    rows: AdapterRows | None = None,
    cascade: AdapterRows | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """The path of `source` converted by `convert`, or `source` itself if there is nothing to change.

    Files are cached in the folder named by `DUOLOGUE_CACHE` (by default `~/.cache/duologue`).
    """
    source = Path(source)
    if not source.is_file():
        raise ModelNotFound(f"there is no file {source}; give the path of a GGUF file")
    _weight_type(weights)
    if weights is None and rows is None:
        return source
    digest = file_digest(source, before=f"{FORMAT_VERSION} {weights}")
    matrices = [matrix for one in (rows, cascade) if one is not None for matrix in (one.probes, *one.output_groups)]
    for matrix in matrices:
        digest.update(f"{matrix.shape}".encode())
        digest.update(np.ascontiguousarray(matrix, dtype=np.float32).tobytes())
    return cached_file(
        f"{source.stem}-{weights or 'kept'}-{digest.hexdigest()[:16]}.gguf",
        lambda part: convert(source, part, weights=weights, rows=rows, cascade=cascade, progress=progress),
    )


# -- the rows to be added ----------------------------------------------------------------------------------------------


def _check_rows(facts: GgufFacts, sets: Sequence[AdapterRows], names: Sequence[str] | None, source: Path) -> list[str]:
    """The names of the added tokens: those of an adapter, and perhaps those of a cascade."""
    if not sets:
        return []
    rows, *others = sets
    if names is None:
        names = rows.token_names()
        names += [name.replace("<|", "<|first_", 1) for name in names[: sum(other.num_added for other in others)]]
    names, num_rows = list(names), sum(one.num_added for one in sets)
    refuse(
        [
            (
                facts.num_added > 0,
                f"{source.name} has {facts.num_added} adapter rows already; start from the base model's file",
            ),
            (any(other.shapes != rows.shapes for other in others), "the rows of a cascade have other shapes"),
            (len(names) != num_rows, f"{len(names)} names for {num_rows} rows; give one name per row"),
        ]
    )
    rows.check_width(facts.hidden_size, source.name)
    return names


def _added_rows(
    facts: GgufFacts, sets: Sequence[AdapterRows], vocab_size: int, padding: FloatArray | None, *, untied: bool
) -> dict[str, FloatArray]:
    """Rows [A, D] to append to the input and the output matrix, by its name. A tied model has only the first."""
    inputs = np.zeros((vocab_size - facts.vocab_size, facts.hidden_size), dtype=np.float32)
    outputs = np.zeros_like(inputs)
    if padding is not None:
        outputs[:] = padding / facts.output_scale
    start = 0
    for rows in sets:
        states, end = start + rows.num_probes, start + rows.num_added
        outputs[states:end] = rows.outputs / facts.output_scale
        inputs[start:states] = rows.probes / facts.input_scale
        if not untied:
            outputs[start:states] = inputs[start:states]  # one matrix: a probe's input row is also an output row
        start = end
    return {INPUT: inputs, OUTPUT: outputs} if untied else {INPUT: outputs}


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(writer: Any, tensors: Sequence["_Tensor"]) -> Iterable[float]:
    """Write header and tensors; yields the share that is done."""
    for tensor in tensors:
        block, size = GGML_QUANT_SIZES[tensor.kind]
        shape = (*tensor.outer, int(tensor.source.shape[0]) // block * size)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, tensor in enumerate(tensors):
        yield done / len(tensors)
        writer.write_tensor_data(tensor.bytes())
    yield 1.0


@dataclass(frozen=True, eq=False)
class _Tensor:
    """One tensor to be written: its source, its type, and the rows [A, D] to append."""

    name: str
    source: Any  # a tensor of the reader
    kind: GGMLQuantizationType
    added: FloatArray | None

    @property
    def outer(self) -> tuple[int, ...]:
        """All dimensions except the last, including the added rows."""
        outer = [int(n) for n in reversed(self.source.shape)][:-1]
        if self.added is not None:
            outer[0] += self.added.shape[0]
        return tuple(outer)

    def bytes(self) -> ByteArray:
        """The data as stored in the file, one-dimensional. Base rows that keep their type are unchanged."""
        parts = [part.reshape(-1) for part in _requantized(self.source, self.kind)]
        if self.added is not None:
            parts.append(_as_bytes(self.added, self.kind).reshape(-1))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _as_bytes(values: FloatArray, kind: GGMLQuantizationType) -> ByteArray:
    """values: [rows, width]; returns [rows, bytes of a row]."""
    if kind.name == "F16" and not np.abs(values).max(initial=0.0) < _F16_MAX:
        raise UnsupportedModel("a weight is too large for F16; keep the weights as they are (weights None)")
    return np.ascontiguousarray(quantize(values, kind)).view(np.uint8)


def _requantized(tensor: Any, kind: GGMLQuantizationType) -> Iterable[ByteArray]:
    """The tensor's rows in another type, in chunks [rows, bytes of a row]."""
    if tensor.tensor_type == kind:
        yield np.ascontiguousarray(tensor.data).view(np.uint8)
        return
    data = tensor.data.reshape(-1, tensor.data.shape[-1])
    for start in range(0, data.shape[0], _CHUNK_ROWS):
        yield _as_bytes(dequantize(data[start : start + _CHUNK_ROWS], tensor.tensor_type), kind)


def _weight_type(weights: str | None) -> GGMLQuantizationType | None:
    known = ", ".join(WEIGHTS)
    require(
        weights is None or weights in WEIGHTS,
        f"weights {weights!r} cannot be written; choose one of {known}, or None to keep them",
    )
    return None if weights is None else GGMLQuantizationType[weights]


def _plan_tensors(
    reader: Any, kind: GGMLQuantizationType | None, added: Mapping[str, FloatArray], *, untie: bool
) -> list[_Tensor]:
    tensors = []
    for tensor in reader.tensors:
        new_kind = _new_type(tensor, kind)
        rows = added.get(tensor.name)
        if rows is not None and new_kind.name not in _SAFE_TYPES:
            new_kind = GGMLQuantizationType.Q8_0
        tensors.append(_Tensor(tensor.name, tensor, new_kind, rows))
        if tensor.name == INPUT and untie:
            tensors.append(_Tensor(OUTPUT, tensor, new_kind, added.get(OUTPUT)))
    return tensors


def _new_type(tensor: Any, kind: GGMLQuantizationType | None) -> GGMLQuantizationType:
    old = tensor.tensor_type
    # Vectors, norms and expert routers are small and sensitive: they keep their type.
    is_matrix = len(tensor.shape) > 1 and tensor.name.endswith(".weight") and "norm" not in tensor.name
    if kind is None or not is_matrix or "ffn_gate_inp" in tensor.name:
        return GGMLQuantizationType(old)
    if tensor.name in (INPUT, OUTPUT):
        # llama.cpp rounds the hidden state to the type of the matrix. The few logits that decisions depend on are then
        # off by 0.05 on average with 8 bits, 0.007 with bf16 and 0.0008 with f16, which costs little here.
        kind = GGMLQuantizationType.F16
    if int(tensor.shape[0]) % GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    return kind


def _copy_metadata(reader: Any, writer: Any, weights: GGMLQuantizationType | None, *, skip: Iterable[str]) -> None:
    file_type = None if weights is None else int(LlamaFileType[f"MOSTLY_{weights.name}"])
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or field.name in skip:
            continue
        value, kind = field.contents(), field.types[0]
        if field.name == "general.file_type" and file_type is not None:
            value = file_type
        writer.add_key_value(field.name, value, kind, sub_type=field.types[-1] if kind == GGUFValueType.ARRAY else None)
    if file_type is not None and "general.file_type" not in reader.fields:
        writer.add_file_type(file_type)


def _extend_vocabulary(reader: Any, writer: Any, facts: GgufFacts, names: list[str], vocab_size: int) -> None:
    tokens, types, scores = (reader.fields[key].contents() if key in reader.fields else None for key in _VOCABULARY)
    if tokens is None or len(tokens) != facts.vocab_size:
        raise UnsupportedModel("the file's vocabulary and embeddings differ in size; rows cannot be added to it")
    num_padding = vocab_size - facts.vocab_size - len(names)
    new = names + [f"<|duologue_pad_{i}|>" for i in range(num_padding)]
    taken = set(tokens).intersection(new)
    require(  # llama.cpp ends the process if a name occurs twice
        not taken and len(set(new)) == len(new),
        f"the vocabulary already has tokens with these names: {sorted(taken) or new}; give other names",
    )
    writer.add_token_list([*tokens, *new])
    writer.add_token_types(
        [*(types or [int(TokenType.NORMAL)] * facts.vocab_size), *[int(TokenType.CONTROL)] * len(new)]
    )
    if scores is not None:
        writer.add_token_scores([*scores, *[min(scores)] * len(new)])
    if f"{facts.architecture}.vocab_size" in reader.fields:
        writer.add_vocab_size(vocab_size)
    writer.add_uint32("duologue.format_version", FORMAT_VERSION)
    writer.add_uint32(BASE_VOCAB_KEY, facts.vocab_size)
