"""Sound as arrays: 1-D float32, mono, from -1 to 1. Conversions, rates, levels, files."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duologue.errors import BadData, MissingDependency

Samples = NDArray[np.float32]
"""[n] mono."""

RATE = 16_000  # samples a second of everything that is listened to
_FULL = 32767.0


def silence(count: int) -> Samples:
    """`count` samples of nothing."""
    return np.zeros(count, np.float32)


def from_pcm16(data: bytes) -> Samples:
    """Little-endian 16-bit samples. Raises `BadData` for half a sample."""
    if len(data) % 2:
        raise BadData(f"{len(data)} bytes are no whole number of 16-bit samples")
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(_FULL)


def to_pcm16(samples: Samples) -> bytes:
    """The reverse of `from_pcm16`; what is too loud is clipped."""
    return (np.clip(samples, -1.0, 1.0) * _FULL).round().astype("<i2").tobytes()


def level_db(samples: Samples) -> float:
    """Root mean square, in decibels below full scale; -120 for silence."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return 10.0 * float(np.log10(max(power, 1e-12)))


def gain(decibels: float) -> float:
    """The factor that so many decibels are."""
    return float(10.0 ** (decibels / 20.0))


def resampled(samples: Samples, rate: int, wanted: int) -> Samples:
    """All of a sound at another rate."""
    if rate == wanted or not len(samples):
        return samples
    return np.asarray(_soxr().resample(samples, rate, wanted), np.float32)


class Resampler:
    """A sound that comes piece by piece, at another rate. It is late by a few milliseconds."""

    def __init__(self, rate: int, wanted: int) -> None:
        self._stream = None if rate == wanted else _soxr().ResampleStream(rate, wanted, 1, dtype="float32")

    def __call__(self, samples: Samples) -> Samples:
        """What there is now of the other rate."""
        return samples if self._stream is None else np.asarray(self._stream.resample_chunk(samples), np.float32)


def read_sound(path: Path, rate: int = RATE) -> Samples:
    """A sound file at `rate`, its channels mixed. Any kind that FFmpeg knows.

    Raises:
        BadData: it cannot be read.
    """
    try:
        from faster_whisper.audio import decode_audio
    except ImportError as error:
        raise missing("faster-whisper") from error
    try:
        return np.asarray(decode_audio(str(path), sampling_rate=rate), np.float32)
    except Exception as error:  # PyAV's errors have no common root but this
        raise BadData(f"{path} cannot be read as sound: {error}") from error


def write_wav(path: Path, channels: list[Samples], rate: int) -> None:
    """16-bit WAV; shorter channels are filled up with silence."""
    length = max(map(len, channels))
    columns = [np.frombuffer(to_pcm16(np.pad(c, (0, length - len(c)))), "<i2") for c in channels]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.stack(columns, axis=1).tobytes())


def missing(package: str) -> MissingDependency:
    """The error for a package that the voice needs."""
    return MissingDependency(f'{package} is not installed here: pip install "duologue[voice]"')


def _soxr() -> Any:
    try:
        import soxr
    except ImportError as error:
        raise missing("soxr") from error
    return soxr
