"""A microphone and a loudspeaker, through PortAudio (`sounddevice`, MIT). Needs headphones: there is no echo
cancellation here.
"""

import asyncio
import contextlib
from collections import deque
from typing import Any

import numpy as np

from duologue.errors import EngineError, MissingDependency, UsageError
from duologue.voice.pump import Recording
from duologue.voice.sound import RATE, Resampler, Samples, silence
from duologue.voice.voice import Voice

_BLOCK_S = 0.02
_WATCH_S = 0.1  # how often it is looked whether the device is still there
_AHEAD = 3  # blocks that wait for the loudspeaker, so that the event loop may be late now and then


def check_devices(device: str | None = None) -> None:
    """Whether there is a microphone and a loudspeaker.

    Raises:
        MissingDependency: `sounddevice` or PortAudio is not installed.
        UsageError: there are no such devices.
    """
    sounddevice = _library()
    for kind in ("input", "output"):
        try:
            sounddevice.query_devices(_named(device), kind)
        except (ValueError, sounddevice.PortAudioError) as error:
            raise UsageError(
                f"there is no sound {kind} device here ({error}); without one: duologue talk --in me.wav --out both.wav"
            ) from error


class Microphone:
    """Runs a voice on devices until it fails or is cancelled."""

    def __init__(self, voice: Voice, device: str | None = None, *, keeps: bool = False) -> None:
        self._voice = voice
        self._device = _named(device)
        self._keeps = keeps
        self._waiting: deque[Samples] = deque()  # for the loudspeaker; appending and popping are atomic
        self._user: list[Samples] = []
        self._assistant: list[Samples] = []

    async def run(self) -> Recording:
        """Talk. Ctrl-C ends it; returns what was recorded, if that was wanted.

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
                        raise EngineError("the sound device has gone")
        except sounddevice.PortAudioError as error:
            raise EngineError(f"the sound device failed: {error}") from error
        if self._voice.failure is not None:
            raise self._voice.failure
        none = silence(0)
        return Recording(np.concatenate([none, *self._user]), np.concatenate([none, *self._assistant]), 0.0)

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
