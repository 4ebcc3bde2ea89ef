"""What the sound of the last words tells beyond the words: the recogniser's own encoding, pooled to a few vectors.

Whisper's encoder has heard how the voice moves, and the decoder that follows keeps only the words. So nothing is
encoded twice. K pieces of the last seconds, E width of the encoder, F = E + 2 features of a piece, S samples.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from duologue.errors import require

Features: TypeAlias = npt.NDArray[np.float32]
"""[K, F] of one sound: for each piece the mean of its encodings, its level, and the share of it that is voiced."""

PIECES_S = (0.8, 0.4, 0.2, 0.2)
"""Seconds of each piece, the oldest first; the last one ends where the sound does."""

NUM_BESIDE = 2
"""Features beside the encoder's: level and voiced share."""

FRAMES_PER_S = 50  # of Whisper's encoder
_LEVEL_DB = 20.0  # levels are stored in this unit, below the loudest frame
_LOWEST_DB = 60.0
_VOICED = 0.4  # of the way from the quietest to the loudest frame, in dB
_LEAST_RANGE_DB = 6.0  # with less between quiet and loud, nothing is voiced: silence, or noise alone


def pooled(encoded: npt.NDArray[np.floating], samples: npt.NDArray[np.float32], rate: int) -> Features:
    """The features [K, F] of `samples` [S]; `encoded` [T, E] is their encoding, perhaps with silence behind it.

    Levels are relative to the loudest frame, so that distance and gain change nothing. A piece before the beginning of
    the sound is zero.

    Raises:
        UsageError: there is no sound, it has numbers that are not finite, or its encoding is shorter than the sound.
    """
    require(len(samples) >= rate // FRAMES_PER_S, f"a sound of {len(samples)} samples is shorter than a frame")
    require(bool(np.isfinite(samples).all()), "the sound has samples that are not finite (NaN or infinity)")
    num_frames = len(samples) * FRAMES_PER_S // rate
    require(num_frames <= len(encoded), f"{len(encoded)} encoded frames do not cover a sound of {num_frames} frames")
    levels = _levels(samples, num_frames)
    is_voiced = _is_voiced(levels)
    found = np.zeros((len(PIECES_S), encoded.shape[1] + NUM_BESIDE), np.float32)
    end = num_frames
    for piece in reversed(range(len(PIECES_S))):
        begin = max(0, end - round(PIECES_S[piece] * FRAMES_PER_S))
        if begin < end:
            below = np.clip(levels[begin:end] - levels.max(), -_LOWEST_DB, 0.0).mean() / _LEVEL_DB
            found[piece] = [*encoded[begin:end].mean(0), below, is_voiced[begin:end].mean()]
        end = begin
    return found


def _levels(samples: npt.NDArray[np.float32], num_frames: int) -> npt.NDArray[np.float64]:
    """The level of each of the last frames [T], in dB."""
    size = len(samples) // num_frames
    frames = samples[len(samples) - num_frames * size :].reshape(num_frames, size)
    power = np.square(frames, dtype=np.float64).mean(1)
    return np.asarray(10.0 * np.log10(np.maximum(power, 1e-12)))


def _is_voiced(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which frames [T] are loud enough for speech."""
    quiet, loud = np.quantile(levels, (0.1, 0.98))
    if loud - quiet < _LEAST_RANGE_DB:
        return np.zeros(len(levels), bool)
    return np.asarray(levels > quiet + _VOICED * (loud - quiet))
