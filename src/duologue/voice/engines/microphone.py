"""Microphone and loudspeaker through PortAudio (`sounddevice`, MIT). There is no echo cancellation: use headphones."""

import asyncio
import contextlib
from collections import deque
from typing import Any

import numpy as np

from duologue.errors import EngineError, MissingDependency, UsageError
from duologue.voice.recording import Recording
from duologue.voice.sound import RATE, Resampler, Samples, silence
from duologue.voice.voice import Voice

_BLOCK_S = 0.02
_WATCH_S = 0.1  # interval of the checks whether the device is still active
_AHEAD = 3  # blocks buffered for the loudspeaker, to bridge delays of the event loop


def check_devices(device: str | None = None) -> None:
    """Check that there is a microphone and a loudspeaker.

    Raises:
        MissingDependency: `sounddevice` or PortAudio is not installed.
        UsageError: a device is missing.
    """
    sounddevice = _library()
    for kind in ("input", "output"):
        try:
            sounddevice.query_devices(_named(device), kind)
        except (ValueError, sounddevice.PortAudioError) as error:
            raise UsageError(
                f"there is no sound {kind} device ({error}); without one, use: duologue talk --in me.wav --out both.wav"
            ) from error


class Microphone:
    """Connects a voice to sound devices until it fails or is cancelled."""

    def __init__(self, voice: Voice, device: str | None = None, *, keeps: bool = False) -> None:
        self._voice = voice
        self._device = _named(device)
        self._keeps = keeps
        self._waiting: deque[Samples] = deque()  # for the loudspeaker; appending and popping are atomic
        self._user: list[Samples] = []
        self._assistant: list[Samples] = []

    async def run(self) -> Recording:
        """Talk until Ctrl-C. Returns the recording, which is empty without `keeps`.

        Raises:
            EngineError: the device failed.
        """
        sounddevice, loop, rate = _library(), asyncio.get_running_loop(), self._voice.config.rate
        resampler = Resampler(rate, RATE)

        def callback(data: Any, out: Any, frames: int, time: Any, status: Any) -> None:
            block = self._waiting.popleft() if self._waiting else silence(frames)
            out[:, 0] = block
            loop.call_soon_threadsafe(self._take, resampler(data[:, 0].copy()), block)

        try:
            with (
                sounddevice.Stream(
                    samplerate=rate,
                    blocksize=int(_BLOCK_S * rate),
                    device=self._device,
                    channels=1,
                    dtype="float32",
                    latency="low",
                    callback=callback,
                ) as stream,
                contextlib.suppress(asyncio.CancelledError),
            ):
                while self._voice.failure is None:
                    await asyncio.sleep(_WATCH_S)
                    if not stream.active:
                        raise EngineError("the sound device was removed")
        except sounddevice.PortAudioError as error:
            raise EngineError(f"the sound device failed: {error}") from error
        if self._voice.failure is not None:
            raise self._voice.failure
        none = silence(0)
        return Recording(np.concatenate([none, *self._user]), np.concatenate([none, *self._assistant]), rate)

    def _take(self, heard: Samples, played: Samples) -> None:
        self._voice.push(heard)
        while len(self._waiting) < _AHEAD:
            self._waiting.append(self._voice.pull(len(played)))
        if self._keeps:
            self._user.append(heard)
            self._assistant.append(played)


def _named(device: str | None) -> str | int | None:
    return int(device) if device is not None and device.isdecimal() else device


def _library() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise MissingDependency('a microphone needs sounddevice: pip install "duologue[voice]" sounddevice') from error
    except OSError as error:
        raise MissingDependency("a microphone needs PortAudio, a package of your system (libportaudio2)") from error
    return sounddevice
