"""What a duplex session needs from an audio language model: rows for a sound, and the tokens around them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from duologue.errors import UsageError, require
from duologue.types import Token


@dataclass(frozen=True, slots=True)
class AudioModel:
    """How a language model takes an input of another modality: opener, rows, closer.

    It knows neither the language model nor the modality. `encode` may be any function, such as the encoder of an audio
    model with its projector, or that of a picture.
    """

    encode: Callable[[Any], Any]
    """One input as rows in the language model's embedding space: a NumPy array [N, D] of float32.

    The rows of an input that has grown may begin with those that it had before. These have the same ids, so that only
    the others are fed.
    """
    opener: tuple[Token, ...] = ()  # before the rows, such as <|audio_bos|>
    closer: tuple[Token, ...] = ()  # after them, such as <|audio_eos|>; empty: the end of the user's turn says it

    def __post_init__(self) -> None:
        require(callable(self.encode), f"encode is a function from an input to rows, not {type(self.encode).__name__}")


def check_sound(sound: Any, *, max_seconds: float, rate: int) -> None:
    """Raise `UsageError` unless `sound` is a NumPy array [S] of finite samples, not empty and not too long."""
    import numpy as np

    if not isinstance(sound, np.ndarray) or sound.ndim != 1 or sound.dtype.kind != "f":
        what = f"{sound.dtype} {sound.shape}" if isinstance(sound, np.ndarray) else type(sound).__name__
        raise UsageError(
            f"a sound is a NumPy array [S] of float samples between -1 and 1, one channel at {rate} Hz, not {what}"
        )
    require(sound.size > 0, "a sound of no samples has nothing to be heard; wait until there is some")
    require(bool(np.isfinite(sound).all()), "the sound has samples that are not finite (NaN or infinity)")
    require(
        sound.size <= max_seconds * rate,
        f"the sound has {sound.size / rate:.1f} s, but this model hears at most {max_seconds:g} s at once; pass the "
        "last of it",
    )
