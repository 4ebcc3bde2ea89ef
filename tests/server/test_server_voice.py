"""Sound over /v1/duplex, with scripted engines: binary messages in, binary messages out, and what is said of them."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

from duologue.errors import EngineError, UsageError
from duologue.server.app import create_app
from duologue.server.config import ServerConfig
from duologue.server.duplex.voice import DuplexVoice
from duologue.server.settings import ConversationSettings, VoiceSettings
from duologue.server.wire import Wire
from duologue.voice.engines.defaults import Engines
from duologue.voice.engines.interfaces import Speech
from duologue.voice.engines.whisper import WhisperRecogniser
from duologue.voice.sound import to_pcm16
from serving import Running, scripted_model, serving
from voiced import LoudnessDetector, LoudSynthesiser, ScriptedRecogniser, in_loop

RATE = 24_000
BLOCK_S = 0.04


def engines(*scripts: Mapping[float, str]) -> Engines:
    return Engines(ScriptedRecogniser(list(scripts)), LoudSynthesiser(), LoudnessDetector)


class Caller:
    """A client that speaks, and keeps what it hears."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.told: list[dict[str, Any]] = []
        self.heard = bytearray()
        self.order: list[str] = []  # what came: "sound", or what was told
        self.has_read = asyncio.create_task(self._read())

    @classmethod
    async def call(cls, server: Running, **settings: Any) -> "Caller":
        caller = cls(await connect(server.http.replace("http", "ws") + "/v1/duplex"))
        await caller.send({"type": "start", "settings": settings})
        await caller.until("started", "error")
        return caller

    async def send(self, message: dict[str, Any]) -> None:
        await self.socket.send(json.dumps(message))

    async def speaks(self, seconds: float, *, loud: bool) -> None:
        block = to_pcm16(np.full(int(BLOCK_S * RATE), 0.5 if loud else 0.0, np.float32))
        for _ in range(round(seconds / BLOCK_S)):
            await self.socket.send(block)
            await asyncio.sleep(BLOCK_S)

    async def until(self, *kinds: str) -> dict[str, Any]:
        """Silence, until a message of one of these types, or of voice messages what they tell, has come."""
        async with asyncio.timeout(20):
            while True:
                for message in self.told:
                    if message["type"] in kinds or message.get("what") in kinds:
                        return message
                await asyncio.sleep(0.02)

    async def _read(self) -> None:
        async for message in self.socket:
            if isinstance(message, bytes):
                self.heard += message
                self.order.append("sound")
            else:
                self.told.append(json.loads(message))
                self.order.append(self.told[-1].get("what", self.told[-1]["type"]))

    async def hang_up(self) -> None:
        self.has_read.cancel()
        await self.socket.close()


QUESTION = {0.1: "what is", 0.3: "what is a cat"}
ANSWERS = {"what is a cat": "A cat is a small animal, which sleeps."}


@in_loop
async def test_a_question_is_heard_and_the_answer_comes_as_sound() -> None:
    async with serving(scripted_model(ANSWERS), engines=engines(QUESTION)) as server:
        caller = await Caller.call(server, voice={"rate": RATE})
        started = await caller.until("started")
        assert started["settings"]["voice"] == {"rate": RATE, "latency_ms": 100.0}
        assert started["settings"]["hearing"] == "reported"
        await caller.speaks(0.6, loud=True)
        committed = await caller.until("committed")  # silence is taken for what does not come
        assert committed["text"] == ANSWERS["what is a cat"]
        assert np.abs(np.frombuffer(caller.heard, "<i2")).max() > 8000
        assert next(m["what"] for m in caller.told if m["type"] == "voice") == "speech_started"
        await caller.hang_up()


@in_loop
async def test_an_interruption_is_told_as_a_cut() -> None:
    async with serving(scripted_model(ANSWERS), engines=engines(QUESTION, {0.2: "be quiet"})) as server:
        caller = await Caller.call(server, voice={"rate": RATE})
        await caller.speaks(0.6, loud=True)
        await caller.speaks(0.8, loud=False)
        await caller.until("heard")  # on a busy machine the answer begins late
        await caller.speaks(0.8, loud=True)
        await caller.until("cut")
        suspended = await caller.until("suspended")
        assert ANSWERS["what is a cat"].startswith(suspended["heard"] + suspended["unheard"])
        assert suspended["heard"], "some of it was played"
        await caller.hang_up()


@in_loop
async def test_an_answer_yields_to_who_goes_on_and_goes_on_itself_when_nothing_comes_of_it() -> None:
    answers = {"what is a cat": "A cat is a small animal, which sleeps a lot, hunts at night, and lives with people."}
    async with serving(scripted_model(answers), engines=engines(QUESTION, {0.2: "and a"})) as server:
        caller = await Caller.call(server, voice={"rate": RATE})
        await caller.speaks(0.6, loud=True)
        await caller.until("heard")
        await caller.speaks(1.4, loud=True)
        await caller.until("came_back")
        assert (await caller.until("committed"))["text"] == answers["what is a cat"]
        assert "cut" not in caller.order
        begin = caller.order.index("yielded")
        meanwhile = caller.order[begin : caller.order.index("came_back", begin)]
        assert meanwhile.count("sound") <= 1, "it fades, and nothing is sent"
        await caller.hang_up()


@in_loop
async def test_who_is_cut_off_comes_back_and_the_answer_goes_on() -> None:
    async with serving(scripted_model(ANSWERS), engines=engines(QUESTION)) as server:
        caller = await Caller.call(server, voice={"rate": RATE})
        session = (await caller.until("started"))["session"]
        await caller.speaks(0.6, loud=True)
        await caller.until("heard")
        await caller.hang_up()
        again = Caller(await connect(server.http.replace("http", "ws") + "/v1/duplex"))
        await again.send({"type": "start", "session": session})
        assert (await again.until("committed"))["text"] == ANSWERS["what is a cat"]
        await again.hang_up()


@in_loop
async def test_places_are_counted_and_freed() -> None:
    async with serving(scripted_model(), engines=engines(), max_voices=1) as server:
        first = await Caller.call(server, voice={})
        second = await Caller.call(server, voice={})
        assert (await second.until("error"))["code"] == "full"
        assert len(server.talks) == 1, "a conversation without a voice is not left behind"
        await first.hang_up()
        async with asyncio.timeout(10):
            while (third := await Caller.call(server, voice={})).told[0]["type"] == "error":
                await third.hang_up()
        await third.hang_up()


@in_loop
async def test_a_voice_whose_detector_fails_takes_no_place() -> None:
    detectors = iter([None, LoudnessDetector()])

    def detector() -> LoudnessDetector:
        if (made := next(detectors)) is None:
            raise RuntimeError("no memory")
        return made

    given = Engines(ScriptedRecogniser([]), LoudSynthesiser(), detector)
    async with serving(scripted_model(), engines=given, max_voices=1) as server:
        async with connect(server.http.replace("http", "ws") + "/v1/duplex") as socket:
            await socket.send(json.dumps({"type": "start", "settings": {"voice": {}}}))
            await socket.wait_closed()
        caller = await Caller.call(server, voice={})
        assert caller.told[0]["type"] == "started"
        await caller.hang_up()


@pytest.mark.parametrize("voice", [{"rate": 44_100}, {"rate": "fast"}, "yes", {"latency_ms": -1}])
@in_loop
async def test_what_cannot_be_is_said(voice: Any) -> None:
    async with serving(scripted_model(), engines=engines()) as server:
        caller = await Caller.call(server, voice=voice)
        assert (await caller.until("error"))["code"] == "bad_request"
        await caller.hang_up()


@in_loop
async def test_a_server_without_voice_says_so_and_takes_no_sound() -> None:
    async with serving(scripted_model()) as server:
        caller = await Caller.call(server, voice={})
        assert "--voice" in (await caller.until("error"))["message"]
        await caller.socket.send(b"\0\0")
        async with asyncio.timeout(10):
            while len(caller.told) < 2:
                await asyncio.sleep(0.01)
        assert caller.told[1]["code"] == "bad_message"
        await caller.hang_up()


@pytest.mark.parametrize("piece", [b"\0\0\0", b""], ids=["half", "nothing"])
@in_loop
async def test_half_a_sample_is_refused_and_the_conversation_goes_on(piece: bytes) -> None:
    async with serving(scripted_model(ANSWERS), engines=engines(QUESTION)) as server:
        caller = await Caller.call(server, voice={"rate": RATE})
        await caller.socket.send(piece)
        assert (await caller.until("error"))["code"] == "bad_message"
        await caller.speaks(0.6, loud=True)
        await caller.until("committed")
        await caller.hang_up()


@in_loop
async def test_a_conversation_gets_a_voice_and_loses_it() -> None:
    async with serving(scripted_model(ANSWERS), engines=engines(QUESTION)) as server:
        caller = await Caller.call(server, hearing="reported")
        assert (await caller.until("started"))["has_voice"] is True
        await caller.send({"type": "settings", "voice": {"rate": RATE}})
        await caller.speaks(0.6, loud=True)
        await caller.until("committed")
        await caller.send({"type": "settings", "voice": False})
        await caller.socket.send(b"\0\0")
        assert (await caller.until("error"))["code"] == "bad_message"
        (talk,) = server.talks._open.values()
        assert talk.settings.voice is None
        assert talk.is_open
        await caller.hang_up()


@in_loop
async def test_a_voice_that_takes_up_what_is_being_recorded_says_it_once(tmp_path: Path) -> None:
    async with serving(scripted_model(ANSWERS), engines=engines(), record=str(tmp_path)) as server:
        caller = await Caller.call(server, hearing="reported")
        (talk,) = server.talks._open.values()
        recorder: Any = talk._recorder
        opened, append = asyncio.Event(), recorder._append

        async def wait(line: bytes) -> None:
            await opened.wait()
            await append(line)

        recorder._append = wait
        await caller.send({"type": "hear", "text": "what is a cat", "final": True})
        while talk.session.running is None or not talk.session.running.finished:
            await asyncio.sleep(0.01)
        await caller.send({"type": "settings", "voice": {"rate": RATE}})
        await asyncio.sleep(0.3)
        opened.set()
        await caller.until("committed")
        said = [message for message in caller.told if message.get("what") == "synthesised"]
        assert "".join(message["text"] for message in said) == ANSWERS["what is a cat"]
        await caller.hang_up()


@in_loop
async def test_where_hearing_goes_by_the_clock_there_is_no_voice() -> None:
    async with serving(scripted_model(), engines=engines()) as server:
        caller = await Caller.call(server, hearing=4.0)
        await caller.send({"type": "settings", "voice": {}})
        assert "reported" in (await caller.until("error"))["message"]
        await caller.hang_up()


@in_loop
async def test_who_comes_by_another_connection_has_the_place_of_the_old_one() -> None:
    async with serving(scripted_model(ANSWERS), engines=engines(QUESTION), max_voices=1) as server:
        old = await Caller.call(server, voice={"rate": RATE})
        session = (await old.until("started"))["session"]
        new = Caller(await connect(server.http.replace("http", "ws") + "/v1/duplex"))
        await new.send({"type": "start", "session": session})
        assert (await new.until("started", "error"))["type"] == "started"
        await new.speaks(0.6, loud=True)
        assert (await new.until("committed"))["text"] == ANSWERS["what is a cat"]
        with pytest.raises(ConnectionClosedError):
            await old.has_read
        assert old.socket.close_code == 4001
        assert not old.heard, "what it had not left is not played to two"
        await new.hang_up()


class NoProgram(LoudSynthesiser):
    """Its program is not there any more."""

    async def speak(self, text: str) -> Speech:
        raise FileNotFoundError("espeak-ng")


@in_loop
async def test_a_voice_that_fails_is_told_and_gives_its_place_back_and_the_conversation_goes_on() -> None:
    broken = Engines(ScriptedRecogniser([QUESTION]), NoProgram(), LoudnessDetector)
    async with serving(scripted_model(ANSWERS), engines=broken, max_voices=1) as server:
        caller = await Caller.call(server, voice={"rate": RATE})
        await caller.speaks(0.6, loud=True)
        error = await caller.until("error")
        assert error["code"] == "no_voice"
        assert "espeak-ng" in error["message"]
        (talk,) = server.talks
        assert talk.settings.voice is None
        assert talk.handle.session.policy == talk.settings.policy(server.talks.model)
        finished = await caller.until("finished")
        await caller.send({"type": "heard", "position": len(ANSWERS["what is a cat"]), "answer": finished["answer"]})
        await caller.until("committed")
        another = await Caller.call(server, voice={"rate": RATE})
        assert another.told[0]["type"] == "started", "the place is free"
        await another.hang_up()
        await caller.hang_up()


@in_loop
async def test_a_recorded_conversation_whose_voice_is_refused_can_be_given_up(tmp_path: Path) -> None:
    model = scripted_model()
    async with serving(model, engines=engines(), record=str(tmp_path)) as server:
        caller = await Caller.call(server, voice={"rate": RATE})
        session = (await caller.until("started"))["session"]
        await caller.hang_up()
    async with serving(scripted_model(), record=str(tmp_path)) as server:
        caller = Caller(await connect(server.http.replace("http", "ws") + "/v1/duplex"))
        await caller.send({"type": "start", "session": session})
        assert "--voice" in (await caller.until("error"))["message"]
        (talk,) = server.talks
        assert talk.owner is None
        assert talk.detached_at is not None
        await caller.hang_up()


class Deaf(Wire):
    """The socket of a client that takes nothing."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.code = 0

    async def send(self, message: dict[str, Any]) -> bool:
        return await asyncio.Event().wait()

    async def send_bytes(self, data: bytes) -> bool:
        return await asyncio.Event().wait()

    async def close(self, code: int, reason: str) -> None:
        self.code = code
        self.closed.set()


@in_loop
async def test_who_speaks_and_does_not_read_is_too_slow_and_no_mistake_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.server.duplex.voice._MOST_WAITING", 1)
    async with serving(scripted_model(), engines=engines(QUESTION)) as server:
        talk = await server.talks.open(ConversationSettings(voice=VoiceSettings(RATE)), client="test")
        wire = Deaf()
        assert server.talks.voices is not None

        async def fail(error: Exception) -> None:
            raise error

        line = DuplexVoice(talk, VoiceSettings(RATE), server.talks.voices, wire, failed=fail)
        line.start()
        for loud in (1, 0):  # somebody speaks, and ends: more is to be told than may wait
            await line.hear(to_pcm16(np.full(RATE, 0.5 * loud, np.float32)))
        async with asyncio.timeout(10):
            await wire.closed.wait()
        assert wire.code == 1008
        await line.aclose()


@pytest.mark.parametrize("error", [UsageError("no voice 'typo'"), EngineError("it does not start"), ValueError("size")])
@in_loop
async def test_a_voice_that_cannot_be_made_ends_the_start(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(**_: Any) -> Engines:
        raise error

    monkeypatch.setattr("duologue.server.app.load_engines", fail)
    app = create_app(ServerConfig(voice="typo"), model=scripted_model())
    async with app.router.lifespan_context(app):
        pass
    assert app.state.server.failure is error  # which ends the process that listens, and is what it says


@pytest.mark.voice
def test_a_recogniser_that_there_is_not_is_said() -> None:
    with pytest.raises(UsageError, match="'typo' is not a faster-whisper model"):
        WhisperRecogniser("typo")
