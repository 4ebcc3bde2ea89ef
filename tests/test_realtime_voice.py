"""Sound over `/v1/realtime` with OpenAI's own client, around scripted engines."""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from duologue.voice.defaults import Engines
from duologue.voice.sound import from_pcm16, to_pcm16
from serving import scripted_model, serving
from test_realtime import history, run
from test_realtime_openai import connected
from voiced import LoudnessDetector, LoudSynthesiser, ScriptedRecogniser

RATE = 24_000
BLOCK_S = 0.1
TALE = "A cat is a small animal, which lives with people, and which sleeps a lot, but hunts at night."
ANSWERS = {"what is a cat": TALE, "and a dog": "A dog is another."}
AUDIO = {"type": "realtime", "output_modalities": ["audio"]}


def engines(*scripts: Mapping[float, str]) -> Engines:
    return Engines(ScriptedRecogniser(list(scripts)), LoudSynthesiser(), LoudnessDetector)


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
            async for event in connection:
                if event.type == "session.updated":
                    assert event.session.output_modalities == ["text"]
                if event.type == "error":
                    assert event.error.code == "audio_not_supported"
                    return

    run(talk())


def test_what_is_no_sound_is_refused() -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), engines=engines()) as server, connected(server) as connection:
            for audio in ("AAA", "AAAA", "!"):
                await connection.input_audio_buffer.append(audio=audio)
            errors = 0
            async for event in connection:
                errors += event.type == "error" and event.error.param == "audio"
                if errors == 3:
                    return

    run(talk())
