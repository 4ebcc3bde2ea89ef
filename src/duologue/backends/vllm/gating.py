"""A LoRA that holds at probe tokens alone, and the reading of states, on plain tensors. Knows nothing of vLLM.

Everything is computed for all tokens of a pass, without a branch that depends on them, so that it can be compiled and
recorded in CUDA graphs. Shapes: N tokens of a pass, P probe tokens, S output rows, V ids, D the hidden width, R the
rank of the LoRA, K the rank times the number of layers merged into one, in and out the widths of a layer.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch.nn.functional import linear

from duologue.errors import AdapterMismatch

Tensor: TypeAlias = torch.Tensor


class Pair(NamedTuple):
    """The factors of one layer; the scale is part of B."""

    a: Tensor  # [R, in]
    b: Tensor  # [out, R]


class Part(NamedTuple):
    """The outputs, or the inputs, of a layer that are computed here, and the number of them in all ranks."""

    start: int
    size: int
    total: int


def probes_by_id(ids: Tensor, first: int, num: int) -> Tensor:
    """Where the tokens `ids` [N] are probe tokens, with ids from `first`: bool [N, 1]."""
    return ((ids >= first) & (ids < first + num)).unsqueeze(-1)


def probes_by_embedding(embeddings: Tensor, probes: Tensor) -> Tensor:
    """The same, from `embeddings` [N, D] where no ids are known. probes: [P, D], equal bit for bit at a probe."""
    return (embeddings.unsqueeze(1) == probes).all(dim=-1).any(dim=-1, keepdim=True)


def gated_delta(x: Tensor, a: Tensor, b: Tensor, is_probe: Tensor) -> Tensor:
    """What the LoRA adds to a layer's outputs: [N, out], exactly 0 at plain tokens. is_probe: bool [N, 1]."""
    return linear(torch.where(is_probe, linear(x, a), 0.0), b)


def column_factors(pairs: Sequence[Pair | None], parts: Sequence[Part], label: str) -> Pair:
    """Factors of layers with the same inputs whose outputs one matrix computes, split by outputs.

    `parts` are the outputs computed here, for each layer. A layer without factors keeps its outputs.
    Returns A [K, in], which every rank has, and B [sum of sizes, K].

    Raises:
        AdapterMismatch: the factors have other shapes.
    """
    given = [pair for pair in pairs if pair is not None]
    rank = given[0].a.shape[0]
    b = given[0].b.new_zeros(sum(part.size for part in parts), rank * len(given))
    row = column = 0
    for pair, part in zip(pairs, parts, strict=True):
        if pair is not None:
            _check(pair.b.shape[0], part, f"outputs of {label}")
            b[row : row + part.size, column : column + rank] = pair.b[part.start : part.start + part.size]
            column += rank
        row += part.size
    return Pair(torch.cat([pair.a for pair in given]), b)


def row_factors(pair: Pair, part: Part, label: str) -> Pair:
    """Factors of a layer that is split by inputs: A [R, size], B [out, R].

    What the ranks add to the layer's outputs, each from its own inputs, has to be summed like the outputs.

    Raises:
        AdapterMismatch: the factors have other shapes.
    """
    _check(pair.a.shape[1], part, f"inputs of {label}")
    return Pair(pair.a[:, part.start : part.start + part.size].contiguous(), pair.b)


class Ids(NamedTuple):
    """The ids of an adapter."""

    base_size: int  # ids from here on are not the base model's
    first_probe: int
    first_output: int


def read_outputs(logits: Tensor, hidden: Tensor, is_probe: Tensor, outputs: Tensor, ids: Ids) -> Tensor:
    """Logits from which only base ids can be drawn at plain tokens, and only output rows at probes.

    logits: [N, V], hidden: [N, D], is_probe: bool [N, 1], outputs: [S, D] in float32.
    Returns [N, V] in float32; logits of base ids at plain tokens are unchanged.
    """
    read = linear(hidden.float(), outputs)
    result = logits.float().masked_fill(is_probe, -torch.inf)
    result[:, ids.base_size :] = -torch.inf
    result[:, ids.first_probe : ids.first_output] = -torch.inf
    end = ids.first_output + outputs.shape[0]
    result[:, ids.first_output : end] = torch.where(is_probe, read, -torch.inf)
    return result


def _check(found: int, part: Part, what: str) -> None:
    if found != part.total:
        raise AdapterMismatch(
            f"the LoRA is for {found} {what}, and the model has {part.total}: it belongs to another model; export the "
            "model again"
        )
