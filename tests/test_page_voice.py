"""The microphone of the page, fed from a file, with scripted engines behind the server."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from browsing import browsing, run
from duologue.voice.defaults import Engines
from duologue.voice.sound import Samples, silence, write_wav
from serving import scripted_model, serving
from voiced import LoudnessDetector, LoudSynthesiser, ScriptedRecogniser

pytestmark = pytest.mark.chromium

RATE = 48_000
TALE = "Once there was a cat, and it lived by the sea. It slept a lot, and at night it hunted for mice and for fish."


def babble(seconds: float) -> Samples:
    """Loud enough, and not so steady that a browser takes it for noise."""
    chance = np.random.default_rng(3)
    parts = []
    while sum(map(len, parts)) < seconds * RATE:
        size = int(chance.uniform(0.06, 0.14) * RATE)
        t = np.arange(size) / RATE
        pitch = chance.uniform(110, 240)
        wave = sum(np.sin(2 * np.pi * pitch * k * t + k) / k for k in range(1, 20))
        parts.append((0.5 * wave / np.abs(wave).max() * np.hanning(size) ** 0.3).astype(np.float32))
    return np.concatenate(parts)[: int(seconds * RATE)]


def test_a_question_is_spoken_and_an_answer_is_interrupted(tmp_path: Path) -> None:
    said = [silence(RATE), babble(1.2), silence(4 * RATE), babble(1.2), silence(20 * RATE)]
    write_wav(tmp_path / "user.wav", [np.concatenate(said)], RATE)
    engines = Engines(
        ScriptedRecogniser([{0.3: "what is a cat"}, {0.3: "be quiet"}, *[{}] * 20]), LoudSynthesiser(), LoudnessDetector
    )

    async def test() -> None:
        async with (
            serving(scripted_model({"what is a cat": TALE}), engines=engines) as server,
            browsing(server, microphone=tmp_path / "user.wav") as on,
        ):
            sounds: list[int] = []
            on.page.on("websocket", lambda socket: socket.on("framereceived", lambda data: _count(sounds, data)))
            await on.page.reload()
            button = await on.shows("#microphone")
            await button.click()
            await on.shows(".user", "what is a cat")
            await on.shows(".user", "be quiet")
            await on.shows(".cut")
            heard = await on.heard_text()
            assert TALE.startswith(heard)
            assert len(heard) > 10
            assert sum(sounds) > 24_000, "half a second of sound has come, at least"
            assert await button.get_attribute("aria-pressed") == "true"
            await on.picture("voice")
            await button.click()
            async with asyncio.timeout(5):
                while next(iter(server.talks._open.values())).settings.voice is not None:
                    await asyncio.sleep(0.02)

    run(test())


def test_without_a_voice_there_is_no_button() -> None:
    async def test() -> None:
        async with serving(scripted_model()) as server, browsing(server) as on:
            await on.shows(".status", "connected")
            assert not await on.page.locator("#microphone").is_visible()

    run(test())


def _count(sounds: list[int], data: object) -> None:
    if isinstance(data, bytes):
        sounds.append(len(data))
