"""GGUF files: what is in one, the same weights in another type, and an adapter's rows added to the vocabulary.

It knows the file format and nothing of how a model runs. Needs the `gguf` package, not llama.cpp.
"""

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quantize

from duologue.backends.llamacpp.gguf_header import read_header
from duologue.backends.rows import Rows
from duologue.errors import AdapterMismatch, BrokenModel, ModelNotFound, UnsupportedModel, UsageError
from duologue.types import InputState

FORMAT_VERSION = 3
"""Raised when a converted file changes, so that the cache does not serve an old one."""

WEIGHTS = ("BF16", "F16", "Q8_0", "Q4_0")
"""Weight types that `convert` can write."""

PAD_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this; CPU kernels rearrange a matrix only then."""

_SAFE_TYPES = ("F32", "F16", "BF16", "Q8_0")  # rows added in these keep their decisions
_FILE_TYPES = {
    "BF16": LlamaFileType.MOSTLY_BF16,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
}
_INPUT, _OUTPUT = "token_embd.weight", "output.weight"
_F16_MAX = 65504.0
_CHUNK_ROWS = 4096  # rows converted at once, which bounds memory

Progress = Callable[[str, float], None]
"""Told the name of the file being written and the share that is done, 0 … 1."""


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What a GGUF file says of its model, as far as rows and weight types are concerned."""

    architecture: str
    vocab_size: int  # ids in the file: base, added and padding
    base_vocab_size: int  # ids of the base model
    num_added: int  # adapter rows already in the file
    hidden_size: int
    num_layers: int
    context_length: int  # that the model was made for
    is_tied: bool  # one matrix embeds the input and scores the output
    input_scale: float  # the model multiplies embeddings by this
    output_scale: float  # and its logits by this
    weights: str  # "BF16", "Q4_1", ... or "mixed"


def read_facts(path: Path | str) -> GgufFacts:
    """Read `GgufFacts` from a file.

    Raises:
        ModelNotFound: no such file.
        BrokenModel: not a GGUF file, or a damaged one.
        UnsupportedModel: the model scales its logits in a way not known here.
    """
    path = Path(path)
    header = read_header(path)
    values = header.values
    arch = values.get("general.architecture")
    if arch is None or len(header.shapes.get(_INPUT, ())) != 2:
        raise BrokenModel(f"{path} has no architecture or no {_INPUT}; it is not a language model")
    width, vocab_size = header.shapes[_INPUT]
    input_scale, output_scale = _scales(values, arch, width, path)
    return GgufFacts(
        architecture=arch,
        vocab_size=vocab_size,
        base_vocab_size=int(values.get("duologue.base_vocab_size", vocab_size)),
        num_added=int(values.get("duologue.num_added", 0)),
        hidden_size=width,
        num_layers=int(values.get(f"{arch}.block_count", 0)),
        context_length=int(values.get(f"{arch}.context_length", 0)),
        is_tied=_OUTPUT not in header.shapes,
        input_scale=input_scale,
        output_scale=output_scale,
        weights=_weights_label(int(values.get("general.file_type", -1))),
    )


def convert(
    source: Path | str,
    target: Path | str,
    *,
    weights: str | None = None,
    rows: Rows | None = None,
    names: Sequence[str] | None = None,
    padding: npt.NDArray[np.float32] | None = None,
    untie: bool = False,
    progress: Progress | None = None,
) -> GgufFacts:
    """Write `source` to `target` in another weight type, with an adapter's rows added, or both.

    The embedding and output matrices become F16 for every type (Q8_0 at least when `weights` is None and rows are
    added), so that rows survive; norms and other vectors stay as they are. Metadata is copied, the vocabulary
    extended by control tokens and padded.

    Args:
        weights: one of `WEIGHTS`, or None to keep every tensor as it is.
        rows: vectors as `Rows` defines them; what the model multiplies embeddings and logits by is divided out.
        names: text of the added tokens; by default `<|prediction|>` and the states in the order of `InputState`.
        padding: [D] output row of the padding ids; zeros by default.
        untie: write a separate output matrix even when the source has one for both, so that probe rows, which are
            inputs, are not outputs too.
        progress: called as tensors are written.

    Raises:
        ModelNotFound, BrokenModel, UnsupportedModel: as `read_facts`.
        AdapterMismatch: the rows are of another width.
        UsageError: an unknown weight type, names that are taken, or a source that has rows already.
    """
    source, target = Path(source), Path(target)
    facts = read_facts(source)
    reader = _open(source)
    kind = _weight_type(weights)
    names = _check_rows(facts, rows, names, source)
    if target.resolve() == source.resolve():
        raise UsageError(f"source and target are the same file, {source}; write to another one")
    vocab_size = facts.vocab_size if rows is None else _padded(facts.vocab_size + len(names))
    writer = GGUFWriter(target, facts.architecture, endianess=reader.endianess)
    added = _added_rows(facts, rows, vocab_size, padding, untied=untie or not facts.is_tied)
    plan = _plan(reader, kind, added, untie=untie and facts.is_tied)
    try:
        _copy_metadata(reader, writer, weights, skip=_replaced_keys(facts) if rows is not None else ())
        if rows is not None:
            _extend_vocabulary(reader, writer, facts, names, vocab_size)
            writer.add_uint32("duologue.num_probes", rows.probes.shape[0])
        for item in plan:
            rows_, width = item.shape
            block, size = GGML_QUANT_SIZES[item.kind]
            shape = (*item.outer, width // block * size)
            writer.add_tensor_info(item.name, shape, np.dtype(np.uint8), rows_ * shape[-1], raw_dtype=item.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, item in enumerate(plan):
            if progress is not None:
                progress(target.name, done / len(plan))
            writer.write_tensor_data(item.bytes())
    finally:
        writer.close()
    if progress is not None:
        progress(target.name, 1.0)
    return read_facts(target)


def cached_gguf(
    source: Path | str, weights: str | None = None, rows: Rows | None = None, *, progress: Progress | None = None
) -> Path:
    """The path of `source` converted as `convert` does; the source itself when there is nothing to change.

    Files are kept in the folder `DUOLOGUE_CACHE` names (`~/.cache/duologue` by default) and appear there whole or not
    at all. Without `progress`, a line on stderr tells of a conversion that takes more than a second.
    """
    source = Path(source)
    if not source.is_file():
        raise ModelNotFound(f"there is no file {source}; give the path of a GGUF file")
    _weight_type(weights)
    if weights is None and rows is None:
        return source
    name = f"{source.stem}-{weights or 'kept'}-{_fingerprint(source, weights, rows)}.gguf"

    def write(part: Path) -> None:
        convert(source, part, weights=weights, rows=rows, progress=progress or _Announce(name))

    return kept(name, write)


def kept(name: str, write: Callable[[Path], object]) -> Path:
    """The file `name` of the cache folder; `write` makes it at the path it is given, if it is not there yet."""
    folder = Path(os.environ.get("DUOLOGUE_CACHE") or Path.home() / ".cache" / "duologue") / "gguf"
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            write(part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target


# -- reading -----------------------------------------------------------------------------------------------------------


def _open(path: Path) -> Any:
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
        raise BrokenModel(f"{path} cannot be read as GGUF ({error}); the download may be incomplete") from error


def _value(reader: Any, key: str, default: Any = None) -> Any:
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def _weights_label(file_type: int) -> str:
    try:
        return str(LlamaFileType(file_type).name.removeprefix("ALL_").removeprefix("MOSTLY_"))
    except ValueError:
        return "mixed"


def _scales(values: Mapping[str, Any], arch: str, width: int, path: Path) -> tuple[float, float]:
    """By what llama.cpp multiplies embeddings and logits, per architecture (its graph code, not the file, decides)."""
    embedding = float(values.get(f"{arch}.embedding_scale", 0.0))
    logit = float(values.get(f"{arch}.logit_scale", 0.0))
    if arch.startswith("gemma"):
        return math.sqrt(width), 1.0
    if arch == "minicpm3":
        return 12.0, 256.0 / width
    if arch == "minicpm":
        return embedding or 12.0, 1.0 / (logit or width / 256.0)
    if arch in ("granite", "granitemoe"):
        return embedding or 1.0, 1.0 / (logit or 1.0)
    if arch in ("command-r", "cohere2"):
        return 1.0, logit or 1.0
    if embedding not in (0.0, 1.0) or logit not in (0.0, 1.0):
        raise UnsupportedModel(
            f"{path.name} ({arch}) scales its embeddings or logits in a way that is not known here, so rows cannot be "
            "added to it; use the torch backend for this model"
        )
    return 1.0, 1.0


# -- what is added -----------------------------------------------------------------------------------------------------


def default_names(rows: Rows) -> list[str]:
    """Text of the added tokens: `<|prediction|>` (numbered when there are several), then the states' markers."""
    num_probes, num_states = rows.probes.shape[0], rows.states.shape[0]
    probes = ["<|prediction|>"] if num_probes == 1 else [f"<|prediction_{i}|>" for i in range(num_probes)]
    states = [state.marker for state in InputState][:num_states]
    return probes + states + [f"<|state_{i}|>" for i in range(len(states), num_states)]


def _check_rows(facts: GgufFacts, rows: Rows | None, names: Sequence[str] | None, source: Path) -> list[str]:
    if rows is None:
        return []
    if facts.num_added:
        raise UsageError(f"{source.name} has {facts.num_added} added rows already; start from the base model's file")
    for label, matrix in (("probe", rows.probes), ("state", rows.states)):
        if matrix.ndim != 2 or matrix.shape[1] != facts.hidden_size:
            raise AdapterMismatch(
                f"the {label} rows have shape {matrix.shape}, {source.name} needs [n, {facts.hidden_size}]; "
                "the adapter was made for another model"
            )
    names = list(names) if names is not None else default_names(rows)
    if len(names) != rows.num_added:
        raise UsageError(f"{len(names)} names for {rows.num_added} rows; give one for each")
    return names


def _padded(size: int) -> int:
    return -(-size // PAD_MULTIPLE) * PAD_MULTIPLE


@dataclass(frozen=True, eq=False)
class _Added:
    """Rows to be put below the input and the output matrix; `output` is None when one matrix serves as both."""

    input: npt.NDArray[np.float32] | None
    output: npt.NDArray[np.float32] | None


def _added_rows(
    facts: GgufFacts, rows: Rows | None, vocab_size: int, padding: npt.NDArray[np.float32] | None, *, untied: bool
) -> _Added:
    if rows is None:
        return _Added(None, None)
    num_probes, end = rows.probes.shape[0], rows.num_added
    inputs = np.zeros((vocab_size - facts.vocab_size, facts.hidden_size), dtype=np.float32)
    outputs = np.zeros_like(inputs)
    if padding is not None:
        outputs[:num_probes] = outputs[end:] = padding / facts.output_scale
    outputs[num_probes:end] = rows.states / facts.output_scale
    inputs[:num_probes] = rows.probes / facts.input_scale
    if untied:
        return _Added(inputs, outputs)
    outputs[:num_probes] = inputs[:num_probes]  # one matrix: a probe's input row is an output row too
    return _Added(outputs, None)


# -- writing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Tensor:
    """One tensor to be written: where it comes from, in which type, with what below it."""

    name: str
    source: Any  # a tensor of the reader
    kind: GGMLQuantizationType
    added: npt.NDArray[np.float32] | None

    @property
    def outer(self) -> tuple[int, ...]:
        """All dimensions but the last, added rows counted."""
        outer = [int(n) for n in reversed(self.source.shape)][:-1]
        if self.added is not None:
            outer[0] += self.added.shape[0]
        return tuple(outer)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and numbers in a row."""
        return math.prod(self.outer), int(self.source.shape[0])

    def bytes(self) -> npt.NDArray[np.uint8]:
        """The data as it stands in the file, `[..., bytes of a row]`; base rows of the same type unchanged."""
        parts = list(_requantized(self.source, self.kind))
        if self.added is not None:
            parts.append(_as_bytes(self.added, self.kind))
        flat = [part.reshape(-1) for part in parts]
        return flat[0] if len(flat) == 1 else np.concatenate(flat)


def _as_bytes(values: npt.NDArray[np.float32], kind: GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    if kind.name == "F16" and not np.abs(values).max(initial=0.0) < _F16_MAX:
        raise UnsupportedModel("a number of these weights is too large for 16 bits (F16); keep them as they are (None)")
    return np.ascontiguousarray(quantize(values, kind)).view(np.uint8)


def _requantized(tensor: Any, kind: GGMLQuantizationType) -> Iterable[npt.NDArray[np.uint8]]:
    if tensor.tensor_type == kind:
        yield np.ascontiguousarray(tensor.data).view(np.uint8)
        return
    data = tensor.data.reshape(-1, tensor.data.shape[-1])
    for start in range(0, data.shape[0], _CHUNK_ROWS):
        yield _as_bytes(dequantize(data[start : start + _CHUNK_ROWS], tensor.tensor_type), kind)


def _weight_type(weights: str | None) -> GGMLQuantizationType | None:
    if weights is None:
        return None
    if weights not in WEIGHTS:
        raise UsageError(f"weights {weights!r} cannot be written; choose one of {', '.join(WEIGHTS)}, or None to keep")
    return GGMLQuantizationType[weights]


def _plan(reader: Any, kind: GGMLQuantizationType | None, added: _Added, *, untie: bool) -> list[_Tensor]:
    plan = []
    for tensor in reader.tensors:
        new_kind = _new_type(tensor, kind)
        below = {_INPUT: added.input, _OUTPUT: added.output}.get(tensor.name)
        if below is not None and new_kind.name not in _SAFE_TYPES:
            new_kind = GGMLQuantizationType.Q8_0
        plan.append(_Tensor(tensor.name, tensor, new_kind, below))
        if tensor.name == _INPUT and untie:
            plan.append(_Tensor(_OUTPUT, tensor, new_kind, added.output))
    return plan


def _new_type(tensor: Any, kind: GGMLQuantizationType | None) -> GGMLQuantizationType:
    old = tensor.tensor_type
    # Vectors, norms and expert routers are small and sensitive: they stay.
    is_matrix = len(tensor.shape) > 1 and tensor.name.endswith(".weight") and "norm" not in tensor.name
    if kind is None or not is_matrix or "ffn_gate_inp" in tensor.name:
        return GGMLQuantizationType(old)
    if tensor.name in (_INPUT, _OUTPUT):
        # llama.cpp rounds the hidden state to the matrix's type: to 8 bits the few logits that decisions are made from
        # come out 0.05 wrong on average, in bf16 0.007, in f16 0.0008. It costs little here, and rows survive.
        kind = GGMLQuantizationType.F16
    if int(tensor.shape[0]) % GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    return kind


def _replaced_keys(facts: GgufFacts) -> tuple[str, ...]:
    lists = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores")
    return (*lists, f"{facts.architecture}.vocab_size")


def _copy_metadata(reader: Any, writer: Any, weights: str | None, *, skip: Iterable[str]) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or field.name in skip:
            continue
        value, kind = field.contents(), field.types[0]
        if field.name == "general.file_type" and weights is not None:
            value = int(_FILE_TYPES[weights])
        writer.add_key_value(field.name, value, kind, sub_type=field.types[-1] if kind == GGUFValueType.ARRAY else None)
    if weights is not None and "general.file_type" not in reader.fields:
        writer.add_file_type(int(_FILE_TYPES[weights]))


def _extend_vocabulary(reader: Any, writer: Any, facts: GgufFacts, names: list[str], vocab_size: int) -> None:
    tokens = _value(reader, "tokenizer.ggml.tokens")
    if tokens is None or len(tokens) != facts.vocab_size:
        raise UnsupportedModel("the file has no vocabulary of the size of its embeddings; rows cannot be added to it")
    num_padding = vocab_size - facts.vocab_size - len(names)
    new = names + [f"<|duologue_pad_{i}|>" for i in range(num_padding)]
    taken = set(tokens).intersection(new)
    if taken or len(set(new)) != len(new):
        # llama.cpp ends the process over a name that is there twice.
        raise UsageError(f"the vocabulary has tokens of these names already: {sorted(taken) or new}; give other names")
    types = _value(reader, "tokenizer.ggml.token_type") or [int(TokenType.NORMAL)] * facts.vocab_size
    writer.add_token_list([*tokens, *new])
    writer.add_token_types([*types, *[int(TokenType.CONTROL)] * len(new)])
    scores = _value(reader, "tokenizer.ggml.scores")
    if scores is not None:
        writer.add_token_scores([*scores, *[min(scores)] * len(new)])
    if f"{facts.architecture}.vocab_size" in reader.fields:
        writer.add_vocab_size(vocab_size)
    writer.add_uint32("duologue.format_version", FORMAT_VERSION)
    writer.add_uint32("duologue.base_vocab_size", facts.vocab_size)
    writer.add_uint32("duologue.num_added", len(names))


# -- the cache ---------------------------------------------------------------------------------------------------------


def _fingerprint(source: Path, weights: str | None, rows: Rows | None) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {weights}".encode())
    stat = source.stat()
    digest.update(f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    with source.open("rb") as file:  # a file may be replaced by one of its size and age
        digest.update(file.read(1 << 16))
        file.seek(max(0, stat.st_size - (1 << 20)))
        digest.update(file.read())
    if rows is not None:
        for matrix in (rows.probes, rows.states):
            digest.update(f"{matrix.shape}".encode())
            digest.update(np.ascontiguousarray(matrix, dtype=np.float32).tobytes())
    return digest.hexdigest()[:16]


class _Announce:
    """Says once on stderr that a file is being written, when it takes more than a second."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._start = time.monotonic()
        self._said = False

    def __call__(self, _: str, share: float) -> None:
        if not self._said and share < 0.9 and time.monotonic() - self._start > 1.0:
            self._said = True
            print(f"duologue: writing {self._name} to its cache, once; this takes a moment", file=sys.stderr)
