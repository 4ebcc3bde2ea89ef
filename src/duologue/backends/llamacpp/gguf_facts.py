"""What a GGUF file declares about its model, as far as adapter rows and weight types are concerned."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from duologue.backends.llamacpp.gguf_header import read_header
from duologue.errors import BrokenModel, UnsupportedModel

BASE_VOCAB_KEY = "duologue.base_vocab_size"
"""Metadata key: the number of base ids, in a file to which rows were added."""

NUM_ADDED_KEY = "duologue.num_added"
"""Metadata key: the number of added ids after the base ids. The rest is padding."""

NUM_PROBES_KEY = "duologue.num_probes"
"""Metadata key: the number of probe tokens among the added ids. They come first."""

NUM_CASCADE_KEY = "duologue.num_cascade"
"""Metadata key: the number of rows of a cascade. They follow the added ids in the same order: as many, or none."""

ONE_PASS_KEY = "duologue.one_pass"
"""Metadata key: `adapter_digest` of the adapter, in a file that applies its LoRA itself (see `gguf_one_pass`)."""

INPUT, OUTPUT = "token_embd.weight", "output.weight"
"""The names of the embedding matrix and of the output matrix; a tied model has only the first."""


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """The metadata of one file."""

    architecture: str
    vocab_size: int  # ids in the file: base, added and padding
    base_vocab_size: int  # ids of the base model
    num_added: int  # adapter rows that are in the file already
    hidden_size: int
    num_layers: int
    context_length: int  # that the model was trained for
    is_tied: bool  # one matrix embeds the input and scores the output
    input_scale: float  # by which the model multiplies embeddings
    output_scale: float  # by which it multiplies logits
    weights: str  # "BF16", "Q4_1", ... or "mixed"
    one_pass: str | None = None  # the adapter whose LoRA is in the file, as `lora.adapter_digest` names it


def read_facts(path: Path | str) -> GgufFacts:
    """Read `GgufFacts` from a file.

    Raises:
        ModelNotFound: there is no such file.
        BrokenModel: the file is not GGUF, or is damaged.
        UnsupportedModel: the model scales its logits in an unknown way.
    """
    path = Path(path)
    header = read_header(path)
    values = header.values
    arch = values.get("general.architecture")
    if not isinstance(arch, str) or len(header.shapes.get(INPUT, ())) != 2:
        raise BrokenModel(f"{path} has no architecture or no {INPUT}; it is not a language model")
    width, vocab_size = header.shapes[INPUT]
    try:
        scales = _scales(values, arch, width, path)
        return GgufFacts(
            architecture=arch,
            vocab_size=vocab_size,
            base_vocab_size=int(values.get(BASE_VOCAB_KEY, vocab_size)),
            num_added=int(values.get(NUM_ADDED_KEY, 0)),
            hidden_size=width,
            num_layers=int(values.get(f"{arch}.block_count", 0)),
            context_length=int(values.get(f"{arch}.context_length", 0)),
            is_tied=OUTPUT not in header.shapes,
            input_scale=scales[0],
            output_scale=scales[1],
            weights=weights_label(int(values.get("general.file_type", -1))),
            one_pass=None if ONE_PASS_KEY not in values else str(values[ONE_PASS_KEY]),
        )
    except (ValueError, TypeError, ArithmeticError) as error:
        raise BrokenModel(f"{path} has metadata of the wrong type: {error}") from error


def weights_label(file_type: int) -> str:
    """The weight type that `general.file_type` stands for."""
    try:
        return str(LlamaFileType(file_type).name.removeprefix("ALL_").removeprefix("MOSTLY_"))
    except ValueError:
        return "mixed"


def input_scale(values: Mapping[str, Any], arch: str, width: int, path: Path) -> float:
    """The factor that llama.cpp applies to the embeddings of tokens.

    Raises:
        UnsupportedModel: it is unknown.
    """
    return _scales(values, arch, width, path)[0]


def _scales(values: Mapping[str, Any], arch: str, width: int, path: Path) -> tuple[float, float]:
    """The factors that llama.cpp applies to embeddings and logits. Its graph code decides, not the file."""
    embedding = float(values.get(f"{arch}.embedding_scale", 0.0))
    logit = float(values.get(f"{arch}.logit_scale", 0.0))
    if arch.startswith("gemma"):
        return math.sqrt(width), 1.0
    known = {
        "minicpm3": (12.0, 256.0 / width),
        "minicpm": (embedding or 12.0, 1.0 / (logit or width / 256.0)),
        **dict.fromkeys(("granite", "granitemoe"), (embedding or 1.0, 1.0 / (logit or 1.0))),
        **dict.fromkeys(("command-r", "cohere2"), (1.0, logit or 1.0)),
    }
    if arch in known:
        return known[arch]
    if embedding not in (0.0, 1.0) or logit not in (0.0, 1.0):
        raise UnsupportedModel(
            f"{path.name} ({arch}) scales its embeddings or logits in an unknown way, so rows cannot be added to it; "
            "use the torch backend for this model"
        )
    return 1.0, 1.0
