"""Sound as arrays `[n]`: float32, mono, from -1 to 1. Conversions, rates, levels and files."""

import importlib
import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duologue.errors import BadData, MissingDependency

Samples = NDArray[np.float32]
"""[n] mono."""

RATE = 16_000  # samples per second of all input
_FULL = 32767.0


def silence(count: int) -> Samples:
    """`count` samples of silence, `[count]`."""
    return np.zeros(count, np.float32)


def from_pcm16(data: bytes) -> Samples:
    """Little-endian 16-bit samples as `[n]`. Raises `BadData` for an odd number of bytes."""
    if len(data) % 2:
        raise BadData(f"{len(data)} bytes are not a whole number of 16-bit samples")
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(_FULL)


def to_pcm16(samples: Samples) -> bytes:
    """The inverse of `from_pcm16`; samples outside of -1 … 1 are clipped."""
    return (np.clip(samples, -1.0, 1.0) * _FULL).round().astype("<i2").tobytes()


def level_db(samples: Samples) -> float:
    """Root mean square of `[n]` in dB relative to full scale; -120 for silence."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return 10.0 * float(np.log10(max(power, 1e-12)))


def gain(decibels: float) -> float:
    """`decibels` as a factor."""
    return float(10.0 ** (decibels / 20.0))


def resampled(samples: Samples, rate: int, wanted: int) -> Samples:
    """A complete sound, `[n]` at `rate`, at the rate `wanted`."""
    if rate == wanted or not len(samples):
        return samples
    return np.asarray(library("soxr").resample(samples, rate, wanted), np.float32)


class Resampler:
    """Resamples a stream, with a delay of a few milliseconds."""

    def __init__(self, rate: int, wanted: int) -> None:
        self._stream = None if rate == wanted else library("soxr").ResampleStream(rate, wanted, 1, dtype="float32")

    def __call__(self, samples: Samples) -> Samples:
        """Add `[n]` samples; returns those of the other rate that are ready, `[m]`."""
        return samples if self._stream is None else np.asarray(self._stream.resample_chunk(samples), np.float32)


def read_sound(path: Path, rate: int = RATE) -> Samples:
    """Read a sound file at `rate`, channels mixed, as `[n]`. Supports all formats of FFmpeg.

    Raises:
        BadData: the file cannot be read.
    """
    audio = library("faster_whisper.audio")
    try:
        return np.asarray(audio.decode_audio(str(path), sampling_rate=rate), np.float32)
    except Exception as error:  # PyAV's errors have no other common base
        raise BadData(f"{path} cannot be read as a sound file: {error}") from error


def seconds_of(path: Path) -> float:
    """The length of a sound file, by its header; reads no samples.

    Raises:
        BadData: the file cannot be read.
    """
    av = library("av")
    try:
        with av.open(str(path), metadata_errors="ignore") as file:
            stream = file.streams.audio[0]
            if file.duration is not None:
                return float(file.duration) / 1e6
            return float(stream.duration * stream.time_base)
    except Exception as error:  # as in `read_sound`
        raise BadData(f"{path} cannot be read as a sound file: {error}") from error


def write_wav(path: Path, channels: list[Samples], rate: int) -> None:
    """Write `channels`, each `[n]`, as 16-bit WAV; shorter ones are padded with silence."""
    length = max(map(len, channels))
    columns = [np.frombuffer(to_pcm16(np.pad(c, (0, length - len(c)))), "<i2") for c in channels]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.stack(columns, axis=1).tobytes())


def library(module: str) -> Any:
    """Import a module of the voice extra. Raises `MissingDependency`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise MissingDependency(f'{package} is not installed: pip install "duologue[voice]"') from error
