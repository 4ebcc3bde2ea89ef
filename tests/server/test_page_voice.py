"""The microphone of the page, fed from a file, with scripted engines behind the server."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from websockets.asyncio.client import connect

from browsing import Browsing, browsing, run
from duologue.server.conversation import Conversation
from duologue.server.record import read_record
from duologue.server.settings import VoiceSettings
from duologue.server.voice import Voices
from duologue.voice.engines.defaults import Engines
from duologue.voice.engines.interfaces import Speech
from duologue.voice.sound import silence, write_wav
from serving import Running, scripted_model, serving
from voiced import MICROPHONE_RATE, LoudnessDetector, LoudSynthesiser, ScriptedRecogniser, babble

pytestmark = pytest.mark.chromium

TALE = "Once there was a cat, and it lived by the sea. It slept a lot, and at night it hunted for mice and for fish."


def test_a_question_is_spoken_and_an_answer_is_interrupted(tmp_path: Path) -> None:
    said = [
        silence(MICROPHONE_RATE),
        babble(1.2),
        silence(4 * MICROPHONE_RATE),
        babble(1.2),
        silence(20 * MICROPHONE_RATE),
    ]
    write_wav(tmp_path / "user.wav", [np.concatenate(said)], MICROPHONE_RATE)
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
            await on.shows("#microphone")  # it knows its conversation, and will go on with it
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
            await on.page.locator("#log summary").click()
            await on.page.locator("#filter").fill("voice")
            for what in ("speech_started", "ducked", "cut"):
                await on.shows(".event[data-type=voice]", f'what="{what}"')
            await on.picture("voice")
            async with on.page.expect_download() as offered:
                await on.page.locator("#download").click()
            path = await (await offered.value).path()
            assert '"what":"ducked"' in path.read_text(encoding="utf-8")
            assert read_record(path).ledger.history, "what the voice did keeps nobody from reading the rest"
            await button.click()
            await voice_is(None, server)

    run(test())


def nobody(tmp_path: Path) -> Path:
    """A microphone that hears nobody."""
    write_wav(tmp_path / "nobody.wav", [silence(20 * MICROPHONE_RATE)], MICROPHONE_RATE)
    return tmp_path / "nobody.wav"


def deaf(synthesiser: LoudSynthesiser | None = None) -> Engines:
    return Engines(ScriptedRecogniser([{}] * 20), synthesiser or LoudSynthesiser(), LoudnessDetector)


def the_talk(server: Running) -> Conversation:
    (talk,) = server.talks
    return talk


def voices(server: Running) -> Voices:
    assert server.talks.voices is not None
    return server.talks.voices


async def voice_is(settings: VoiceSettings | None, server: Running) -> None:
    """Until the one conversation has this voice."""
    async with asyncio.timeout(20):
        while the_talk(server).settings.voice != settings:
            await asyncio.sleep(0.02)


async def speaks(on: Browsing, server: Running) -> None:
    """Let it have a voice."""
    await (await on.shows("#microphone")).click()
    await voice_is(VoiceSettings(), server)
    await on.shows("#microphone[aria-pressed=true]")


def test_where_all_voices_are_taken_the_microphone_is_off_again_and_typing_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            serving(scripted_model({"what is a cat": TALE}), engines=deaf(), max_voices=1) as server,
            browsing(server, microphone=nobody(tmp_path)) as on,
        ):
            voices(server).enter()
            await (await on.shows("#microphone")).click()
            await on.shows("li.note", "the voice is off: all 1 voice slots are taken")
            await on.shows("#microphone[aria-pressed=false]")
            await on.say("what is a cat")
            await on.page.wait_for_function("text => heard(0) === text", arg=TALE)
            assert await on.page.locator("li.note").count() == 1
            voices(server).leave()
            await speaks(on, server)

    run(test())


class NoProgram(LoudSynthesiser):
    """Its program is not there any more."""

    async def speak(self, text: str) -> Speech:
        raise FileNotFoundError("espeak-ng")


def test_where_the_voice_fails_the_microphone_is_off_and_the_answer_is_read(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            serving(scripted_model({"what is a cat": TALE}), engines=deaf(NoProgram())) as server,
            browsing(server, microphone=nobody(tmp_path)) as on,
        ):
            await speaks(on, server)
            await on.say("what is a cat")
            await on.shows("li.note", "the voice is off: the voice failed: FileNotFoundError: espeak-ng")
            await on.shows("#microphone[aria-pressed=false]")
            await on.page.wait_for_function("text => heard(0) === text", arg=TALE)
            assert await on.page.locator("li.note").count() == 1
            assert the_talk(server).settings.voice is None

    run(test())


def test_a_page_that_is_loaded_again_has_no_voice_until_it_is_asked_for(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            serving(scripted_model({"what is a cat": TALE}), engines=deaf()) as server,
            browsing(server, microphone=nobody(tmp_path)) as on,
        ):
            await speaks(on, server)
            await on.page.reload()
            await on.shows("#microphone[aria-pressed=false]")
            await voice_is(None, server)
            await on.say("what is a cat")
            await on.page.wait_for_function("text => heard(0) === text", arg=TALE)

    run(test())


def test_a_page_whose_conversation_another_one_took_does_not_listen(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(engines=deaf()) as server, browsing(server, microphone=nobody(tmp_path)) as on:
            await speaks(on, server)
            async with connect(server.http.replace("http", "ws") + "/v1/duplex") as other:
                await other.send(json.dumps({"type": "start", "session": the_talk(server).id}))
                await on.shows("#banner", "another page has taken the conversation over")
                await on.shows("#microphone[aria-pressed=false]")
                await on.page.locator("#banner button").click()
                await voice_is(None, server)

    run(test())


def test_a_recording_that_is_opened_turns_the_microphone_off(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            serving(scripted_model({"what is a cat": TALE}), engines=deaf()) as server,
            browsing(server, microphone=nobody(tmp_path)) as on,
        ):
            await speaks(on, server)
            await on.page.locator("#again").click()
            await on.shows("#player #time")
            await voice_is(None, server)
            await on.page.locator("#live").click()
            await on.shows("#microphone[aria-pressed=false]")

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
