"""Sound over `/v1/realtime` with OpenAI's own client, around scripted engines."""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from test_realtime import history, run
from test_realtime_openai import connected

from duologue.server.realtime.items import Item
from duologue.voice.engines.defaults import Engines
from duologue.voice.engines.interfaces import Speech
from duologue.voice.sound import from_pcm16, to_pcm16
from serving import scripted_model, serving
from voiced import LoudnessDetector, LoudSynthesiser, ScriptedRecogniser

RATE = 24_000
BLOCK_S = 0.1
TALE = "A cat is a small animal, which lives with people, and which sleeps a lot, but hunts at night."
ANSWERS = {"what is a cat": TALE, "and a dog": "A dog is another."}
AUDIO = {"type": "realtime", "output_modalities": ["audio"]}


class BrokenSynthesiser(LoudSynthesiser):
    async def speak(self, text: str) -> Speech:
        raise OSError("no such program")


def engines(*scripts: Mapping[float, str], speaks: bool = True, fails: bool = False) -> Engines:
    synthesiser = LoudSynthesiser() if speaks else BrokenSynthesiser()
    return Engines(ScriptedRecogniser([*scripts, *[{}] * 9], fails=fails), synthesiser, LoudnessDetector)


async def ask(connection: Any, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
    await connection.response.create()


async def until(connection: Any, kind: str, number: int = 1) -> Any:
    """The event of that kind, or the `number`th."""
    async for event in connection:
        number -= event.type == kind
        if number == 0:
            return event
    raise AssertionError(f"no {kind}")


async def speak(connection: Any, seconds: float, *, loud: bool) -> None:
    audio = base64.b64encode(to_pcm16(np.full(int(BLOCK_S * RATE), 0.5 if loud else 0.0, np.float32))).decode()
    for _ in range(round(seconds / BLOCK_S)):
        await connection.input_audio_buffer.append(audio=audio)
        await asyncio.sleep(BLOCK_S)


def test_a_conversation_by_voice_with_an_aside_and_an_interruption() -> None:
    async def talk() -> None:
        scripts: list[Mapping[float, str]] = [{0.2: "what is a cat"}, {0.2: "mhm"}, {0.2: "and a dog"}, *[{}] * 9]
        async with (
            serving(scripted_model(ANSWERS), engines=engines(*scripts)) as server,
            connected(server) as connection,
        ):
            told: list[Any] = []

            async def listen() -> None:
                async for event in connection:
                    told.append(event)
                    if sum(e.type == "response.done" for e in told) == 2:
                        return
                raise AssertionError("the connection ended before the second response was done")

            await connection.session.update(session=AUDIO)
            listening = asyncio.create_task(listen())
            await speak(connection, 0.6, loud=True)
            while not any(e.type == "response.output_audio.delta" for e in told):
                await speak(connection, 0.1, loud=False)
            await speak(connection, 0.5, loud=True)  # mhm
            await speak(connection, 0.6, loud=False)
            assert sum(e.type == "input_audio_buffer.speech_started" for e in told) == 1, "not for what is ignored"
            await speak(connection, 0.6, loud=True)
            await speak(connection, 0.4, loud=False)
            await asyncio.wait_for(listening, 20)

            kinds = [event.type for event in told]
            updated = next(event for event in told if event.type == "session.updated")
            assert updated.session.output_modalities == ["audio"]
            assert kinds.count("input_audio_buffer.speech_started") == 2
            spoken = [event.transcript for event in told if "transcription.completed" in event.type]
            assert spoken == ["what is a cat", "and a dog"]
            cut, whole = (event.response for event in told if event.type == "response.done")
            assert (cut.status, cut.status_details.reason) == ("cancelled", "turn_detected")
            assert (whole.status, whole.output[0].content[0].transcript) == ("completed", "A dog is another.")
            transcripts = [event.delta for event in told if event.type == "response.output_audio_transcript.delta"]
            assert "".join(transcripts).endswith("A dog is another.")
            sound = [
                event.delta for event in told
                if event.type == "response.output_audio.delta" and event.response_id == whole.id
            ]  # fmt: skip
            seconds = len(from_pcm16(base64.b64decode("".join(sound)))) / RATE
            assert 0.5 < seconds < 1.0, "17 letters of 40 ms, and the pauses"
            said, (_, heard), asked, answered = history(server)
            assert (said, asked, answered) == (
                ("user", "what is a cat"), ("user", "and a dog"), ("assistant", "A dog is another."),
            )  # fmt: skip
            assert TALE.startswith(heard)
            assert 5 < len(heard) < len(TALE)
            assert cut.output[0].content[0].transcript == heard

    run(talk())


def test_sound_without_a_voice_is_refused() -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server, connected(server) as connection:
            await connection.session.update(session=AUDIO)
            await connection.input_audio_buffer.append(audio="AAAA")
            assert (await until(connection, "session.updated")).session.output_modalities == ["text"]
            assert (await until(connection, "error")).error.code == "audio_not_supported"

    run(talk())


def test_what_is_no_sound_is_refused() -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), engines=engines()) as server, connected(server) as connection:
            for audio in ("AAA", "AAAA", "!"):
                await connection.input_audio_buffer.append(audio=audio)
            errors = [(await until(connection, "error")).error for _ in range(3)]
            assert [error.param for error in errors] == ["audio"] * 3

    run(talk())


def test_an_answer_that_was_running_before_there_was_a_voice_is_told_to_its_end() -> None:
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS), engines=engines(), words_per_second=0.5) as server,
            connected(server) as connection,
        ):
            await ask(connection, "what is a cat")
            said = ""
            while len(said) < 48:  # it waits for its listener
                said += (await until(connection, "response.output_text.delta")).delta
            await connection.input_audio_buffer.append(audio=base64.b64encode(bytes(4800)).decode())
            done = await until(connection, "response.done")
            assert done.response.status == "completed"
            assert done.response.output[0].content[0].text == TALE

    run(talk())


def test_what_is_truncated_is_counted_by_its_sound() -> None:
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS), engines=engines(), words_per_second=100.0) as server,
            connected(server) as connection,
        ):
            await connection.session.update(session=AUDIO)
            await ask(connection, "what is a cat")
            sound = await until(connection, "response.output_audio.delta", 15)
            await connection.conversation.item.truncate(item_id=sound.item_id, content_index=0, audio_end_ms=1000)
            told = await until(connection, "conversation.item.truncated")
            assert TALE.startswith(told.text)
            assert 10 < len(told.text) <= 25, "a letter takes 40 ms"

    run(talk())


def test_what_is_heard_of_an_item_goes_by_its_sound_or_by_a_rate() -> None:
    spoken = Item("assistant", "Some words of it", is_audio=True, played=[(0.5, 4), (1.25, 10), (1.5, 13)])
    assert [spoken.length_at(seconds, 24.0) for seconds in (0.4, 0.5, 1.3, 9.0)] == [0, 4, 10, 13]
    assert [spoken.seconds_at(length, 24.0) for length in (0, 4, 9, 16)] == [0.5, 0.5, 1.25, 1.5]
    written = Item("assistant", "Some words of it")
    assert (written.length_at(0.5, 24.0), written.seconds_at(12, 24.0)) == (12, 0.5)


def test_a_session_that_finds_no_place_for_its_voice_stays_one_in_text() -> None:
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS), engines=engines(), max_voices=1) as server,
            connected(server) as first,
        ):
            await first.session.update(session=AUDIO)
            await until(first, "session.updated")
            async with connected(server) as second:
                await second.session.update(session=AUDIO)
                assert "voice slots" in (await until(second, "error")).error.message
                await ask(second, "and a dog")
                kinds = []
                async for event in second:
                    kinds.append(event.type)
                    if event.type == "response.done":
                        break
                assert event.response.output[0].content[0].text == "A dog is another."
                assert "error" not in kinds

    run(talk())


def test_words_that_are_too_many_for_a_turn_are_refused_and_the_voice_goes_on() -> None:
    async def talk() -> None:
        asks = {"turn_detection": {"type": "server_vad", "create_response": False}}
        scripts: list[Mapping[float, str]] = [{0.1: "on and on", 0.2: "on and on " * 200}, {0.2: "and a dog"}]
        async with (
            serving(scripted_model(ANSWERS), engines=engines(*scripts)) as server,
            connected(server) as connection,
        ):
            await connection.session.update(session={"type": "realtime", "audio": {"input": asks}})
            await speak(connection, 0.6, loud=True)
            await speak(connection, 1.2, loud=False)
            assert (await until(connection, "error")).error.code == "string_above_max_length"
            await speak(connection, 0.6, loud=True)
            await speak(connection, 1.2, loud=False)
            spoken = await until(connection, "conversation.item.input_audio_transcription.completed")
            assert spoken.transcript == "and a dog"

    run(talk())


def test_an_answer_that_cannot_be_spoken_goes_on_as_text_and_so_do_the_next() -> None:
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS), engines=engines(speaks=False), max_voices=1) as server,
            connected(server) as connection,
        ):
            await connection.session.update(session=AUDIO)
            await until(connection, "session.updated")
            await ask(connection, "what is a cat")
            assert "the voice failed" in (await until(connection, "error")).error.message
            updated = await until(connection, "session.updated")
            assert updated.session.output_modalities == ["text"]
            done = await until(connection, "response.done")
            assert (done.response.status, done.response.output[0].content[0].transcript) == ("completed", TALE)
            await ask(connection, "and a dog")
            done = await until(connection, "response.done")
            assert done.response.output[0].content[0].text == "A dog is another."
            await connection.input_audio_buffer.append(audio="AAAA")
            assert "connect again" in (await until(connection, "error")).error.message
            async with connected(server) as other:  # its place is free
                await other.session.update(session=AUDIO)
                await until(other, "session.updated")

    run(talk())


@pytest.mark.parametrize("is_manual", [False, True])
def test_a_recogniser_that_fails_is_told(is_manual: bool) -> None:
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS), engines=engines(fails=True)) as server,
            connected(server) as connection,
        ):
            detection = None if is_manual else {"type": "server_vad"}
            heard: Any = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
            await connection.session.update(session=heard)
            await speak(connection, 0.6, loud=True)
            if is_manual:
                await connection.input_audio_buffer.commit()
                name = (await until(connection, "conversation.item.added")).item.id
            else:
                await speak(connection, 1.2, loud=False)
                name = (await until(connection, "input_audio_buffer.speech_stopped")).item_id
            failed = await until(connection, "conversation.item.input_audio_transcription.failed")
            assert (failed.item_id, failed.error.message) == (name, "it is deaf")

    run(talk())


def test_what_a_server_with_a_voice_refuses_all_the_same_is_not_laid_to_its_voice() -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), engines=engines()) as server, connected(server) as connection:
            content = [{"type": "input_audio", "audio": "AAAA"}]
            item: Any = {"type": "message", "role": "user", "content": content}
            await connection.conversation.item.create(item=item)
            await connection.output_audio_buffer.clear()
            for message in ("append sound", "drop what has not been played"):
                error = (await until(connection, "error")).error
                assert error.code == "audio_not_supported"
                assert message in error.message

    run(talk())


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("kind", [{"type": "audio/pcmu"}, {"type": "audio/pcm", "rate": 16000}, "g711_ulaw"])
def test_sound_of_another_format_is_refused(side: str, kind: Any) -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), engines=engines()) as server, connected(server) as connection:
            await connection.session.update(session={**AUDIO, "audio": {side: {"format": kind}}})
            error = (await until(connection, "error")).error
            assert (error.type, error.param) == ("invalid_request_error", f"session.audio.{side}.format")
            await connection.session.update(session={**AUDIO, "audio": {side: {"format": {"type": "audio/pcm"}}}})
            await until(connection, "session.updated")

    run(talk())
