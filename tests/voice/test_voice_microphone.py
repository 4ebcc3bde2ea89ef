"""The microphone of `duologue talk`, on a device that the test plays."""

import asyncio
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from duologue.errors import EngineError, MissingDependency, UsageError
from duologue.voice.engines.microphone import Microphone, check_devices
from duologue.voice.recording import Recording
from duologue.voice.sound import Samples
from voiced import STEP_S, Spoken, in_loop

QUESTION = {0.5: "what is a cat"}
ANSWERS = {"what is a cat": "A cat is a small animal."}
RATE = 24_000


class Device(ModuleType):
    """Takes the place of `sounddevice`: whatever is opened, the test calls back for it."""

    class PortAudioError(Exception):
        pass

    def __init__(self, *, has_any: bool = True) -> None:
        super().__init__("sounddevice")
        self.has_any = has_any
        self.active = False
        self.how: dict[str, Any] = {}
        self._callback: Callable[..., None] = lambda *_: None

    def query_devices(self, device: str | int | None, kind: str) -> None:
        if not self.has_any:
            raise self.PortAudioError(f"no {kind} {device}")

    def Stream(self, *, callback: Callable[..., None], **how: Any) -> "Device":  # noqa: N802
        self.query_devices(how["device"], "stream")
        self._callback, self.how = callback, how
        return self

    def __enter__(self) -> "Device":
        self.active = True
        return self

    def __exit__(self, *_: object) -> None:
        self.active = False

    def block(self, level: float) -> Samples:
        """A block as PortAudio's own thread asks for it: what was heard goes in, what is to be played comes out."""
        count = self.how["blocksize"]
        out = np.full((count, 1), np.nan, np.float32)
        args = (np.full((count, 1), level, np.float32), out, count, None, None)
        thread = threading.Thread(target=self._callback, args=args)
        thread.start()
        thread.join()
        return out[:, 0]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    monkeypatch.setattr("duologue.voice.engines.microphone._WATCH_S", 0.0)
    return device


async def begun(device: Device, microphone: Microphone) -> "asyncio.Task[Recording]":
    running = asyncio.create_task(microphone.run())
    while not device.active:
        await asyncio.sleep(0)
    return running


async def hears(talk: Spoken, device: Device, seconds: float, *, speech: bool) -> Samples:
    """So much time goes by on the device; returns what it played."""
    played = []
    for _ in range(round(seconds / STEP_S)):
        played.append(device.block(0.5 if speech else 0.0))
        for _ in range(8):
            await asyncio.sleep(0)
        talk.handle.step(STEP_S)
        for _ in range(8):
            await asyncio.sleep(0)
    return np.concatenate(played)


@in_loop
async def test_what_the_microphone_hears_is_answered_on_the_loudspeaker(device: Device) -> None:
    async with Spoken([QUESTION], ANSWERS) as talk:
        running = await begun(device, Microphone(talk.voice, "3", keeps=True))
        assert device.how["device"] == 3, "a number is PortAudio's own"
        assert (device.how["samplerate"], device.how["blocksize"]) == (RATE, RATE // 50)
        during = await hears(talk, device, 1.0, speech=True)
        after = await hears(talk, device, 3.0, speech=False)
        assert not during.any()
        assert np.abs(after).max() == pytest.approx(0.5)
        assert talk.history == [("user", "what is a cat"), ("assistant", "A cat is a small animal.")]
        running.cancel()
        recording = await running
        assert not device.active
        assert np.array_equal(recording.assistant, np.concatenate([during, after]))
        assert len(recording.user) / 16_000 == pytest.approx(4.0, abs=0.05)
        spoken = np.flatnonzero(recording.user > 0.1) / 16_000
        assert (spoken[0], spoken[-1]) == (pytest.approx(0.0, abs=0.05), pytest.approx(1.0, abs=0.05))


@in_loop
async def test_without_a_recording_nothing_is_kept(device: Device) -> None:
    async with Spoken([{}]) as talk:
        running = await begun(device, Microphone(talk.voice))
        await hears(talk, device, 0.5, speech=False)
        running.cancel()
        assert len((await running).user) == 0


@in_loop
async def test_a_device_that_goes_ends_it(device: Device) -> None:
    async with Spoken([{}]) as talk:
        running = await begun(device, Microphone(talk.voice))
        await hears(talk, device, 0.1, speech=False)
        device.active = False
        with pytest.raises(EngineError, match="was removed"):
            await asyncio.wait_for(running, 10)


@in_loop
async def test_a_device_that_does_not_open_and_a_voice_that_fails_end_it(device: Device) -> None:
    async with Spoken([{}]) as talk:
        device.has_any = False
        with pytest.raises(EngineError, match="the sound device failed"):
            await Microphone(talk.voice).run()
        device.has_any = True
        running = await begun(device, Microphone(talk.voice))
        talk.voice.failure = EngineError("it is mute")
        with pytest.raises(EngineError, match="it is mute"):
            await asyncio.wait_for(running, 10)


def test_what_is_missing_is_said(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    check_devices("hw:0")
    device.has_any = False
    with pytest.raises(UsageError, match="duologue talk --in"):
        check_devices()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependency, match="sounddevice"):
        check_devices()
