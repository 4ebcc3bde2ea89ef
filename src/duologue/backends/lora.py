"""Activated LoRA: low-rank changes to a model's linear layers that apply at probe tokens only.

For every other token, the base model's results and KV stay identical bit for bit, because a probe token comes last in
its sequence and is rolled back. This module knows names and shapes; each backend applies the LoRA in its own way.
Shapes: R is the rank, in and out are the widths of a layer.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from duologue.backends.rows import AdapterRows
from duologue.errors import AdapterMismatch, refuse

FloatArray: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]
_PREFIX = "lora."


@dataclass(frozen=True, eq=False)
class Factors:
    """The two matrices of one linear layer: for an input x, its output y becomes y + scale · B A x."""

    a: FloatArray  # [R, in]
    b: FloatArray  # [out, R]


@dataclass(frozen=True, eq=False)
class Lora:
    """The linear layers that change, and their factors.

    On every backend, a layer is named by its Hugging Face path below the decoder, such as "layers.3.self_attn.q_proj".
    Matrices are float32, or float16 to halve the file. Backends compute in float32 where they can.

    Raises:
        AdapterMismatch: there are no layers, shapes do not match, or the scale is not a positive number.
    """

    layers: Mapping[str, Factors]
    scale: float  # alpha / rank

    def __post_init__(self) -> None:
        refuse(
            [
                (not self.layers, "a LoRA needs at least one layer; use kind rows for an adapter without one"),
                (
                    not (np.isfinite(self.scale) and self.scale > 0),
                    f"the LoRA has scale {self.scale}; expected alpha / rank, a positive number",
                ),
            ],
            AdapterMismatch,
        )
        for path, pair in self.layers.items():
            _check(path, pair, next(iter(self.layers.values())).b.shape[-1:])

    @property
    def rank(self) -> int:
        """R, which all layers share."""
        return int(next(iter(self.layers.values())).b.shape[-1])

    def tensors(self) -> dict[str, FloatArray]:
        """The matrices under their names in a file: "lora.<path>.a" [R, in] and "lora.<path>.b" [out, R]."""
        return {
            f"{_PREFIX}{path}.{side}": matrix
            for path, pair in self.layers.items()
            for side, matrix in (("a", pair.a), ("b", pair.b))
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], scale: float) -> "Lora":
        """The inverse of `tensors`. Names that do not begin with "lora." are ignored.

        Raises:
            AdapterMismatch: half of a pair is missing, or see the constructor.
        """
        ours = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
        layers = {}
        for path in dict.fromkeys(name.rpartition(".")[0] for name in ours):
            found = [ours.pop(f"{path}.{side}", None) for side in "ab"]
            if found[0] is None or found[1] is None:
                raise AdapterMismatch(
                    f"the LoRA of layer {path!r} is incomplete: both {_PREFIX}{path}.a and {_PREFIX}{path}.b are "
                    "required; copy the whole adapter folder again"
                )
            layers[path] = Factors(np.ascontiguousarray(found[0]), np.ascontiguousarray(found[1]))
        if ours:
            raise AdapterMismatch(
                f"the LoRA has matrices with unknown names: {', '.join(sorted(ours))}; names must end in a or b"
            )
        return cls(layers, scale)


def adapter_digest(rows: AdapterRows, lora: Lora) -> str:
    """A name for the numbers of an adapter, by which a file or folder that holds them is recognised as its own."""
    digest = hashlib.sha256(f"{lora.scale}".encode())
    named = {**{str(i): matrix for i, matrix in enumerate((rows.probes, *rows.output_groups))}, **lora.tensors()}
    for name, matrix in sorted(named.items()):
        digest.update(f"{name} {matrix.shape} {matrix.dtype}".encode())
        digest.update(np.ascontiguousarray(matrix).tobytes())
    return digest.hexdigest()[:16]


def _check(path: str, pair: Factors, rank: tuple[int, ...]) -> None:
    for matrix in (pair.a, pair.b):
        if matrix.dtype not in (np.float32, np.float16):
            raise AdapterMismatch(f"the LoRA of layer {path!r} has type {matrix.dtype}; expected float32 or float16")
    a, b = pair.a.shape, pair.b.shape
    if len(a) != 2 or len(b) != 2 or not a[:1] == b[1:] == rank or rank == (0,):
        raise AdapterMismatch(
            f"the LoRA of layer {path!r} has shapes {a} and {b}; expected A [R, in] and B [out, R], with the "
            "same R for all layers"
        )
