"""Low-rank changes to a model's linear layers that hold at probe tokens alone (activated LoRA).

What the base computes for any other token, and the KV it keeps of it, stays as it is bit for bit: a probe token comes
last in its sequence and is rolled back. Knows names and shapes; backends apply it, each in its own way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from duologue.errors import AdapterMismatch

FloatArray: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]
_PREFIX = "lora."


@dataclass(frozen=True, eq=False)
class Factors:
    """The two matrices of one linear layer: its output y for an input x becomes y + scale · B A x."""

    a: FloatArray  # [R, in]
    b: FloatArray  # [out, R]


@dataclass(frozen=True, eq=False)
class Lora:
    """Which linear layers are changed, and how.

    A layer goes by its Hugging Face path below the decoder, such as "layers.3.self_attn.q_proj", on every backend.
    Matrices are float32, or float16 for a file of half the size; they are computed with in float32 where the backend
    can.

    Raises:
        AdapterMismatch: no layers, matrices that do not fit each other, or a scale that is no positive number.
    """

    layers: Mapping[str, Factors]
    scale: float  # alpha / rank

    def __post_init__(self) -> None:
        if not self.layers:
            raise AdapterMismatch("a LoRA needs at least one layer; use kind rows for an adapter without one")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise AdapterMismatch(f"the LoRA has scale {self.scale}; expected alpha / rank, a positive number")
        for path, pair in self.layers.items():
            _check(path, pair, next(iter(self.layers.values())).b.shape[-1:])

    @property
    def rank(self) -> int:
        """R, the same for all layers."""
        return int(next(iter(self.layers.values())).b.shape[-1])

    def tensors(self) -> dict[str, FloatArray]:
        """The matrices by the names they have in a file: "lora.<path>.a" and "lora.<path>.b"."""
        named: dict[str, FloatArray] = {}
        for path, pair in self.layers.items():
            named |= {f"{_PREFIX}{path}.a": pair.a, f"{_PREFIX}{path}.b": pair.b}
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], scale: float) -> "Lora":
        """The inverse of `tensors`; names that do not begin with "lora." are left alone.

        Raises:
            AdapterMismatch: one of a pair is missing, or as the constructor.
        """
        ours = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
        layers = {}
        for path in dict.fromkeys(name.rpartition(".")[0] for name in ours):
            found = [ours.pop(f"{path}.{side}", None) for side in "ab"]
            if found[0] is None or found[1] is None:
                raise AdapterMismatch(
                    f"the LoRA of layer {path!r} is not whole: a pair {_PREFIX}{path}.a and {_PREFIX}{path}.b is "
                    "needed; copy the whole adapter folder again"
                )
            layers[path] = Factors(np.ascontiguousarray(found[0]), np.ascontiguousarray(found[1]))
        if ours:
            raise AdapterMismatch(
                f"the LoRA has matrices of unknown names: {', '.join(sorted(ours))}; expected a and b"
            )
        return cls(layers, scale)


def _check(path: str, pair: Factors, rank: tuple[int, ...]) -> None:
    for matrix in (pair.a, pair.b):
        if matrix.dtype not in (np.float32, np.float16):
            raise AdapterMismatch(f"the LoRA of layer {path!r} has numbers of type {matrix.dtype}; expected float32")
    a, b = pair.a.shape, pair.b.shape
    if len(a) != 2 or len(b) != 2 or not a[:1] == b[1:] == rank or rank == (0,):
        raise AdapterMismatch(
            f"the LoRA of layer {path!r} has shapes {a} and {b}; expected A [R, in] and B [out, R] with the "
            "same R for all layers"
        )
