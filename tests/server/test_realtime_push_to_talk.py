"""Turns that the client ends (`input_audio_buffer.commit`) over `/v1/realtime`, around scripted engines."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import pytest
from test_realtime import history, run
from test_realtime_openai import connected

from duologue.server import voice
from duologue.server.voice import Pacer
from duologue.voice.engines.defaults import Engines
from duologue.voice.sound import from_pcm16, to_pcm16
from duologue.voice.voice import Voice
from realtime_peer import RealtimePeer, join
from scripted import Talk
from serving import Running, scripted_model, serving
from voiced import DirectHandle, LoudnessDetector, LoudSynthesiser, ScriptedRecogniser, ScriptedRecognition, in_loop

RATE = 24_000
TALE = "A cat is a small animal, which lives with people, and which sleeps a lot, but hunts at night. " * 4
BOTH = "Ninety metres, and a mason built it, whose daughter lives in it."
ANSWERS = {
    "how tall is the tower": "Ninety metres.",
    "how tall is the tower and who built it": BOTH,
    "who built it": "Somebody.",
    "what is a cat": TALE,
    "hello": "Hi there.",
}
TOWER = {0.2: "how tall", 0.8: "how tall is the tower"}  # of 1.1 s of speech, all is needed
BUILT = {0.2: "who built it"}
MANUAL: dict[str, Any] = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
JUDGED: dict[str, Any] = {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
SPOKEN = {**MANUAL, "output_modalities": ["audio"]}
TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
TOLD = ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done", TRANSCRIBED]


@pytest.fixture(autouse=True)
def _only_what_is_appended_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a client takes, no silence is made up in between."""
    monkeypatch.setattr(voice, "_MOST_LATE_S", float("inf"))


def sound(*seconds: float) -> str:
    """Speech and silence by turns, so many seconds of each."""
    parts = [np.full(int(s * RATE), 0.0 if i % 2 else 0.5, np.float32) for i, s in enumerate(seconds)]
    return base64.b64encode(to_pcm16(np.concatenate(parts))).decode()


@contextlib.asynccontextmanager
async def talking(
    *scripts: Mapping[float, str], takes_s: float = 0.0, session: dict[str, Any] = MANUAL
) -> AsyncIterator[tuple[Running, RealtimePeer, ScriptedRecogniser]]:
    """A raw client, answered in text, with turn detection off."""
    recogniser = ScriptedRecogniser([*scripts, *[{}] * 9], takes_s=takes_s)
    engines = Engines(recogniser, LoudSynthesiser(), LoudnessDetector)
    async with serving(scripted_model(ANSWERS), engines=engines, words_per_second=1000.0) as server:
        peer = await join(server)
        await peer.say("session.update", session={**session, "output_modalities": ["text"]})
        await peer.until("session.updated")
        yield server, peer, recogniser


@contextlib.asynccontextmanager
async def recognising(recogniser: ScriptedRecogniser) -> AsyncIterator[None]:
    """From here on, what takes its time comes to an end."""

    async def go_on() -> None:
        while True:
            recogniser.clock.advance(1.0)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(go_on())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def append(peer: RealtimePeer, *seconds: float) -> None:
    await peer.say("input_audio_buffer.append", audio=sound(*seconds))


async def transcript(peer: RealtimePeer) -> str:
    """Of the next spoken item."""
    return str((await peer.until(TRANSCRIBED))["transcript"])


async def answer(peer: RealtimePeer) -> str:
    """The next response."""
    return str((await peer.until("response.done"))["response"]["output"][0]["content"][0]["text"])


def test_the_stock_client_pushes_to_talk() -> None:
    async def talk() -> None:
        engines = Engines(ScriptedRecogniser([TOWER, BUILT]), LoudSynthesiser(), LoudnessDetector)
        async with serving(scripted_model(ANSWERS), engines=engines) as server, connected(server) as connection:
            await connection.session.update(session=SPOKEN)
            for question, reply in (("how tall is the tower", "Ninety metres."), ("who built it", "Somebody.")):
                for _ in range(11):
                    await connection.input_audio_buffer.append(audio=sound(0.1))
                await connection.input_audio_buffer.commit()
                await connection.response.create()
                told: list[Any] = []
                async for event in connection:
                    told.append(event)
                    if event.type == "response.done":
                        break
                kinds = [event.type for event in told if not event.type.startswith("session.")]
                assert kinds[:5] == [*TOLD, "response.created"]
                assert "input_audio_buffer.speech_started" not in kinds
                by_kind = {event.type: event for event in told}
                assert by_kind[TRANSCRIBED].transcript == question
                assert by_kind[TOLD[0]].item_id == by_kind[TRANSCRIBED].item_id
                assert by_kind["response.done"].response.output[0].content[0].transcript == reply
                heard = "".join(event.delta for event in told if event.type == "response.output_audio.delta")
                assert from_pcm16(base64.b64decode(heard)).any()
            assert history(server) == [
                ("user", "how tall is the tower"), ("assistant", "Ninety metres."),
                ("user", "who built it"), ("assistant", "Somebody."),
            ]  # fmt: skip

    run(talk())


def test_what_was_said_with_pauses_is_one_item_and_none_before_the_commit() -> None:
    async def talk() -> None:
        async with talking(TOWER, {}, {0.7: "and who built it"}) as (_, peer, recogniser):
            await append(peer, 1.2, 1.5, 0.4, 1.5, 1.2)  # ends in the middle of a word
            while recogniser.num_begun < 3:
                await peer.settled()
            assert peer.mirror.said == []
            await peer.say("input_audio_buffer.commit")
            assert await transcript(peer) == "how tall is the tower and who built it"
            await peer.settled()
            assert [kind for kind in peer.kinds() if kind in TOLD] == TOLD
            assert "response.created" not in peer.kinds(), "a commit is not answered"
            assert "input_audio_buffer.speech_started" not in peer.kinds()
            await peer.say("response.create")
            assert await answer(peer) == BOTH
            assert "response.output_audio.delta" not in peer.kinds(), "text was asked for"

    run(talk())


def test_what_comes_behind_a_commit_waits_for_its_words_and_sound_does_not() -> None:
    async def talk() -> None:
        async with talking(TOWER, BUILT, takes_s=1.0) as (_, peer, recogniser):
            await append(peer, 1.2)
            await peer.say("input_audio_buffer.commit")
            await peer.type("hello", name="typed")
            await peer.say("response.create")
            await append(peer, 1.2)  # taken at once
            await peer.say("input_audio_buffer.append", audio="!", event_id="no sound")
            assert (await peer.error())["event_id"] == "no sound", "the socket is read"
            assert not peer.mirror.said, "the words are not known"
            await peer.say("input_audio_buffer.commit")
            await peer.say("input_audio_buffer.clear")
            async with recognising(recogniser):
                await peer.until("input_audio_buffer.cleared")
            assert peer.kinds().count("response.created") == 1
            kinds = [kind for kind in peer.kinds(after="error") if kind != "error"]
            assert kinds[: len(TOLD) + 3] == [*TOLD, *TOLD[1:3], "response.created"]
            assert peer.mirror.said[:2] == [("user", "how tall is the tower"), ("user", "hello")]
            assert peer.mirror.said[-1] == ("user", "who built it"), "the clear was behind the commit"
            assert kinds[-1] == "input_audio_buffer.cleared"

    run(talk())


def test_a_cancel_behind_a_commit_is_about_the_response_in_between() -> None:
    async def talk() -> None:
        async with talking({0.2: "what is a cat"}, takes_s=1.0) as (_, peer, recogniser):
            await append(peer, 1.2)
            for kind in ("input_audio_buffer.commit", "response.create", "response.cancel"):
                await peer.say(kind)
            await peer.say("conversation.item.retrieve", item_id="none", event_id="last")
            async with recognising(recogniser):
                assert (await peer.error())["event_id"] == "last", "there was a response to cancel"
            assert peer.mirror.running is None

    run(talk())


def test_too_little_sound_is_refused() -> None:
    async def talk() -> None:
        async with talking(BUILT) as (_, peer, _):

            async def refused() -> None:
                await peer.say("input_audio_buffer.commit", event_id="mine")
                error = await peer.error()
                assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")

            await refused()
            await append(peer, 0.09)
            await refused()
            await append(peer, 0.02)
            await peer.say("input_audio_buffer.commit")
            assert await transcript(peer) == "", "110 ms in all"
            await refused()
            await append(peer, 1.2)
            await peer.say("input_audio_buffer.clear")
            await peer.until("input_audio_buffer.cleared")
            await refused()
            assert len(peer.mirror.said) == 1

    run(talk())


def test_sound_without_words_is_an_item_that_the_model_does_not_read() -> None:
    async def talk() -> None:
        async with talking({}) as (server, peer, _):
            await append(peer, 0.0, 0.5)
            await peer.say("input_audio_buffer.commit")
            assert await transcript(peer) == ""
            await peer.ask("hello")
            assert await answer(peer) == "Hi there."
            assert peer.mirror.said == [("user", ""), ("user", "hello"), ("assistant", "Hi there.")]
            await peer.say("response.create")
            await peer.until("response.created")
            assert history(server)[:2] == [("user", "hello"), ("assistant", "Hi there.")]

    run(talk())


def test_a_clear_forgets_what_is_being_recognised() -> None:
    async def talk() -> None:
        async with talking(TOWER, BUILT, takes_s=1.0) as (_, peer, recogniser):
            await append(peer, 1.2)
            while recogniser.num_begun < 1:
                await peer.settled()
            await peer.say("input_audio_buffer.clear")
            await append(peer, 1.2)  # without a pause
            await peer.say("input_audio_buffer.commit")
            async with recognising(recogniser):
                assert await transcript(peer) == "who built it"
            assert peer.mirror.said == [("user", "who built it")]

    run(talk())


def test_a_voice_that_fails_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> str:
        raise ValueError("broken")

    async def talk() -> None:
        async with talking(TOWER) as (_, peer, _):
            monkeypatch.setattr(ScriptedRecognition, "hear", fail)
            await append(peer, 1.2)
            await peer.say("input_audio_buffer.commit")
            assert "broken" in (await peer.error())["message"]
            assert await transcript(peer) == ""
            await peer.say("input_audio_buffer.commit")
            assert (await peer.error())["code"] == "server_error"
            await peer.ask("hello")
            await peer.until("response.created")

    run(talk())


def test_speech_over_an_answer_does_not_cut_it_and_its_item_waits() -> None:
    async def talk() -> None:
        engines = Engines(ScriptedRecogniser([{0.2: "what is a cat"}, BUILT]), LoudSynthesiser(), LoudnessDetector)
        async with serving(scripted_model(ANSWERS), engines=engines) as server, connected(server) as connection:

            async def until(kind: str) -> Any:
                async for event in connection:
                    assert event.type != "input_audio_buffer.speech_started"
                    if event.type in (kind, "response.done"):
                        assert event.type == kind
                        return event
                raise AssertionError(f"the connection ended without {kind}")

            await connection.session.update(session=SPOKEN)
            await connection.input_audio_buffer.append(audio=sound(1.2))
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            await until("response.output_audio.delta")
            await connection.input_audio_buffer.append(audio=sound(1.2))
            await connection.input_audio_buffer.commit()
            assert (await until(TRANSCRIBED)).transcript == "who built it"
            await connection.response.create()
            assert (await until("error")).error.code == "conversation_already_has_active_response"
            await until("response.output_audio.delta")
            await connection.response.cancel()
            await connection.response.create()
            cut, whole = [(await until("response.done")).response for _ in range(2)]
            assert (cut.status, cut.status_details.reason) == ("cancelled", "client_cancelled")
            assert whole.output[0].content[0].transcript == "Somebody."

    run(talk())


def test_with_turn_detection_a_commit_ends_who_is_speaking() -> None:
    async def talk() -> None:
        words = {0.2: "how tall is the", 0.8: "how tall is the tower"}  # not answered before they are complete
        async with talking(words, session=JUDGED) as (_, peer, _):
            await peer.say("input_audio_buffer.commit")
            assert (await peer.error())["code"] == "input_audio_buffer_commit_empty"
            await append(peer, 1.2)
            await peer.until("input_audio_buffer.speech_started")
            await peer.say("input_audio_buffer.commit")
            assert await transcript(peer) == "how tall is the tower"
            assert await answer(peer) == "Ninety metres.", "as after silence"
            await peer.say("input_audio_buffer.commit")
            assert (await peer.error())["code"] == "input_audio_buffer_commit_empty"

    run(talk())


def test_with_turn_detection_that_answers_nothing_by_itself_words_are_told_as_after_a_commit() -> None:
    async def talk() -> None:
        detection = {"type": "semantic_vad", "create_response": False}
        session = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
        async with talking(TOWER, session=session) as (_, peer, _):
            await append(peer, 1.2)
            await peer.say("input_audio_buffer.commit")
            await peer.say("response.create")
            assert await transcript(peer) == "how tall is the tower"
            assert await answer(peer) == "Ninety metres."
            assert [kind for kind in peer.kinds() if kind in TOLD][:4] == TOLD

    run(talk())


def test_what_was_not_committed_is_forgotten_where_turn_detection_is_switched() -> None:
    async def talk() -> None:
        async with talking({0.2: "tell me about the"}, {0.2: "hello"}, BUILT, session=JUDGED) as (server, peer, _):
            await append(peer, 1.2)
            await peer.until("input_audio_buffer.speech_started")
            await peer.say("session.update", session=MANUAL)
            await append(peer, 1.2)
            await peer.say("input_audio_buffer.commit")
            assert await transcript(peer) == "hello"
            await append(peer, 1.2)
            await peer.say("session.update", session=JUDGED)
            await peer.say("input_audio_buffer.commit")
            assert (await peer.error())["code"] == "input_audio_buffer_commit_empty"
            await peer.say("response.create")
            assert await answer(peer) == "Hi there."
            (conversation,) = server.talks._open.values()
            assert conversation.handle.session.input_text is None

    run(talk())


@in_loop
async def test_a_recording_that_is_to_be_committed_may_come_at_once() -> None:
    handle = DirectHandle(Talk())
    pacer = Pacer(Voice(handle, LoudnessDetector(), ScriptedRecogniser([]), LoudSynthesiser()), lambda _: None)
    quiet = np.zeros(30 * RATE, np.float32)

    async def waits(seconds: float) -> bool:
        hearing = asyncio.ensure_future(pacer.hear(quiet, most_early_s=seconds))
        for _ in range(100):
            await asyncio.sleep(0)
        return hearing.cancel()

    assert not await waits(60.0)
    pacer.flush()
    assert not await waits(60.0), "what was committed is not early any more"
    assert await waits(40.0)
    handle.talk.engine.close()
