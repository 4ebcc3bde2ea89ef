"""From what was heard to *soft tokens*: embedding rows between the words and the probe, rolled back with it.

NumPy only; trained by `duologue.training.probe.sound`. K soft tokens, F features of each, H hidden numbers, D the width
of the language model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from duologue.errors import AdapterMismatch, UsageError, refuse
from duologue.hearing.evidence import Features

FloatArray = npt.NDArray[np.float32]
PREFIX = "sound."
"""Its tensors' names in an adapter's file begin with this."""

_NAMES = ("down", "offset", "up", "bias")


@dataclass(frozen=True, eq=False)
class SoundProjection:
    """Row k is `up[k] @ tanh(down @ features[k] + offset) + bias[k]`.

    The hyperbolic tangent bounds what any sound can do, however loud or broken it is.

    Raises:
        AdapterMismatch: shapes do not match, or a number is not finite.
    """

    down: FloatArray  # [H, F]
    offset: FloatArray  # [H]
    up: FloatArray  # [K, D, H]
    bias: FloatArray  # [K, D]

    def __post_init__(self) -> None:
        shapes = [part.shape for part in (self.down, self.offset, self.up, self.bias)]
        fits = [len(shape) for shape in shapes] == [2, 1, 3, 2] and all(min(shape) for shape in shapes)
        fits = fits and shapes[0][0] == shapes[1][0] == shapes[2][2] and shapes[2][:2] == shapes[3]
        parts = (self.down, self.offset, self.up, self.bias)
        refuse(
            [
                (not fits, f"the projection of sound has shapes {shapes}; expected [H, F], [H], [K, D, H] and [K, D]"),
                (
                    not all(np.isfinite(part).all() for part in parts),
                    "the projection of sound has values that are not finite; copy the whole adapter folder again",
                ),
            ],
            AdapterMismatch,
        )

    @property
    def num_tokens(self) -> int:
        """K."""
        return int(self.bias.shape[0])

    @property
    def num_features(self) -> int:
        """F."""
        return int(self.down.shape[1])

    @property
    def width(self) -> int:
        """D."""
        return int(self.bias.shape[1])

    def rows(self, features: Features) -> FloatArray:
        """The soft tokens [K, D] of a sound with these features [K, F].

        Raises:
            UsageError: the features have another shape, because another encoder made them, or are not finite.
        """
        wanted = (self.num_tokens, self.num_features)
        if features.shape != wanted:
            raise UsageError(
                f"the features of the sound have shape {features.shape}, but this adapter reads {wanted}: it was "
                "trained with another recogniser; choose that one, or an adapter without sound"
            )
        if not np.isfinite(features).all():
            raise UsageError("the features of the sound have numbers that are not finite (NaN or infinity)")
        hidden = np.tanh(features @ self.down.T + self.offset)  # [K, H]
        return np.asarray(np.einsum("kdh,kh->kd", self.up, hidden) + self.bias, dtype=np.float32)

    def tensors(self) -> dict[str, FloatArray]:
        """The matrices under their names in a file."""
        return {f"{PREFIX}{name}": getattr(self, name) for name in _NAMES}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> "SoundProjection":
        """The inverse of `tensors`. Names that do not begin with "sound." are ignored.

        Raises:
            AdapterMismatch: a matrix is missing or has an unknown name, or see the constructor.
        """
        found = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        if set(found) != set(_NAMES):
            raise AdapterMismatch(
                f"the projection of sound has the matrices {sorted(found)}; expected {sorted(_NAMES)}: copy the whole "
                "adapter folder again"
            )
        return cls(*(np.ascontiguousarray(found[name], dtype=np.float32) for name in _NAMES))
