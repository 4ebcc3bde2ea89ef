"""Clips from texts and recordings: where they are cut, the rooms they are in, and what the room alone tells."""

import asyncio
import json
import random
import wave
from pathlib import Path

import numpy as np
import pytest

from duologue.cli.main import main
from duologue.data.samples import Sample, read_samples, write_samples
from duologue.errors import BadData, UsageError
from duologue.hearing.clips.artifacts import room_aucs, room_of
from duologue.hearing.clips.build import ClipBuilder, ClipRecipe, NamedVoice
from duologue.hearing.clips.cuts import cuts_of_recording, cuts_of_speech, speech_frames
from duologue.hearing.clips.files import read_sounds
from duologue.hearing.clips.rooms import Room
from duologue.hearing.evidence import NUM_BESIDE, PIECES_S, Features, pooled
from duologue.types import InputState
from duologue.voice.engines.interfaces import Mark, Recognition, Speech
from duologue.voice.sound import RATE, Samples, level_db, silence

WORD_S = 0.3
GAP_S = 0.05


def burst(seconds: float, pitch: float = 200.0) -> Samples:
    time = np.arange(int(seconds * RATE)) / RATE
    return np.asarray(0.3 * np.sin(2 * np.pi * pitch * time), np.float32)


class Beeping:
    """Speaks a burst for every word."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def speak(self, text: str) -> Speech:
        self.texts.append(text)
        parts, marks, at, position = [silence(RATE // 10)], [], RATE // 10, 0
        for word in text.split():
            at += int(WORD_S * RATE)
            position = text.index(word, position) + len(word)
            parts += [burst(WORD_S), silence(int(GAP_S * RATE))]
            marks.append(Mark(at, position))
            at += int(GAP_S * RATE)
        return Speech(np.concatenate(parts), RATE, tuple(marks))

    async def aclose(self) -> None:
        pass


class CountingRecognition(Recognition):
    def __init__(self) -> None:
        self._features: Features | None = None

    @property
    def features(self) -> Features | None:
        return self._features

    async def hear(self, samples: Samples, *, last: bool = False) -> str:
        frames = len(samples) * 50 // RATE
        self._features = pooled(np.ones((frames, 4), np.float32), samples, RATE)
        voiced = sum(end - begin for begin, end in speech_frames(samples)) / RATE
        return " ".join(["word"] * round(voiced / (WORD_S + GAP_S)))


class Counting:
    """Hears "word" for every burst."""

    def begin(self) -> Recognition:
        return CountingRecognition()

    async def aclose(self) -> None:
        pass


class Deaf(Counting):
    """Hears words, and says nothing of their sound."""

    def begin(self) -> Recognition:
        class Plain(Recognition):
            async def hear(self, samples: Samples, *, last: bool = False) -> str:
                return "word"

        return Plain()


def write_recording(path: Path, sound: Samples, *, rate: int = RATE, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        column = (np.clip(sound, -1, 1) * 32767).astype("<i2")
        file.writeframes(np.repeat(column[:, None], channels, 1).tobytes())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for split, count in (("train", 12), ("dev", 6), ("test", 4)):
        rows = [
            Sample(f"please tell me now what number {number} is", InputState.PROCESS, "toy", ends=True)
            for number in range(count)
        ]
        rows += [Sample(f"he said {number} to me", InputState.IGNORE, "talk", accept=()) for number in range(count)]
        rows += [Sample("please tell", InputState.INCOMPLETE, "toy"), Sample("stop it now", InputState.STOP, "toy")]
        write_samples(folder / f"{split}.jsonl", rows)
    return folder


def build(recipe: ClipRecipe, out: Path, *voices: str, recogniser: Counting | None = None, **options: bool) -> dict:
    named = [NamedVoice(name, Beeping()) for name in voices or ("beep",)]
    return asyncio.run(ClipBuilder(recipe, out, recogniser or Counting(), named, **options).build())


def test_texts_become_whole_and_cut_clips_with_their_sounds(texts: Path, tmp_path: Path) -> None:
    recipe = ClipRecipe(texts=texts, num_texts={"train": 12, "dev": 6, "test": 6}, test_voices=frozenset(("other",)))
    report = build(recipe, tmp_path / "out", "beep", "other", keeps_sound=True)
    for split in ("train", "dev", "test"):
        samples = list(read_samples(tmp_path / "out" / f"{split}.jsonl"))
        sounds = read_sounds(tmp_path / "out" / f"{split}.jsonl", len(samples))
        assert sounds.features.shape == (len(samples), len(PIECES_S), 4 + NUM_BESIDE)
        assert report[split]["num_samples"] == len(samples)
        for sample in samples:
            assert set(sample.text.split()) == {"word"}, "the words are those that were recognised"
            assert (sample.kind == "whole") == (sample.ends is True)
            assert sample.kind == "whole" or InputState.INCOMPLETE in sample.right
            assert sample.kind != "whole" or sample.state is not InputState.INCOMPLETE
            assert "incomplete" not in sample.source
        assert {sample.state for sample in samples} == set(InputState)
        voices = {sample.source.rpartition(", ")[2] for sample in samples}
        assert voices == ({"beep", "other"} if split == "test" else {"beep"})
    assert len(list((tmp_path / "out" / "sound").glob("train-*.wav"))) == report["train"]["num_samples"]
    assert "What the room alone tells" in (tmp_path / "out" / "report.md").read_text()


def test_the_same_seed_builds_the_same_clips(texts: Path, tmp_path: Path) -> None:
    recipe = ClipRecipe(texts=texts, num_texts={"train": 6})
    for name in ("one", "other"):
        build(recipe, tmp_path / name)
    one, other = (read_sounds(tmp_path / name / "train.jsonl", 6) for name in ("one", "other"))
    np.testing.assert_array_equal(one.features, other.features)
    np.testing.assert_array_equal(one.rooms, other.rooms)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    pytest.importorskip("av")
    folder, rows = tmp_path / "recordings", []
    folder.mkdir()
    spoken = np.concatenate([silence(3000), burst(1.2), silence(8000), burst(1.5), silence(8000)])
    for number in range(20):
        kind = ("order", "book")[number % 2]
        write_recording(folder / f"{number}.wav", spoken * np.float32(0.2 + 0.04 * number))
        rows.append({"id": str(number), "file": f"{number}.wav", "kind": kind, "source": f"{kind}s file {number}"})
    odd = {
        "silent": (silence(RATE), {}),
        "noise": (np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), {}),
        "stereo": (spoken[::2], {"rate": 8000, "channels": 2}),
        "high": (np.repeat(spoken, 3), {"rate": 48_000}),
        "hour": (np.zeros(3600 * 8000, np.float32), {"rate": 8000}),
        "clipped": (np.sign(spoken), {}),
    }
    for name, (sound, how) in odd.items():
        write_recording(folder / f"{name}.wav", sound, **how)
        rows.append({"id": name, "file": f"{name}.wav", "kind": "order", "source": f"orders {name}"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_recordings_are_split_by_source_and_odd_ones_are_counted(recordings: Path, tmp_path: Path) -> None:
    recipe = ClipRecipe(recordings=recordings, test=frozenset(("orders",)), addressed=frozenset(("order",)))
    report = build(recipe, tmp_path / "out")
    assert set(report["test"]["sources"]) == {"order, orders"}
    assert set(report["train"]["sources"]) == {"book, books"}
    assert report["test"]["dropped"] == {"no speech in the sound": 2, "recording longer than 12 s": 1}
    assert report["test"]["kinds"] == {"whole": 13, "pause": 13, "word end": 13, "in a word": 13}
    for sample in read_samples(tmp_path / "out" / "train.jsonl"):
        assert sample.kind != "whole" or sample.right == {InputState.PROCESS, InputState.IGNORE}
    assert max(report["test"]["room_alone"].values()) < 0.8, "whole and cut clips have the same rooms"


def test_what_cannot_be_built_says_why(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="tells nothing beyond words"):
        build(ClipRecipe(texts=texts, num_texts={"train": 2}), tmp_path / "out", recogniser=Deaf())
    with pytest.raises(UsageError, match="texts, recordings or both"):
        ClipRecipe()
    with pytest.raises(BadData, match="no clip is left: no sources"):
        build(ClipRecipe(texts=texts, num_texts={"train": 0}), tmp_path / "out")
    with pytest.raises(BadData, match=r"manifest.jsonl does not exist"):
        build(ClipRecipe(recordings=tmp_path), tmp_path / "out")
    (tmp_path / "manifest.jsonl").write_text('{"id": "1", "file": "1.wav"}')
    with pytest.raises(BadData, match="line 1: a recording needs id, file, kind and source"):
        build(ClipRecipe(recordings=tmp_path), tmp_path / "out")
    assert main(["data", "build-audio", "--out", str(tmp_path / "out")]) == 2
    assert "give --texts, --recordings or both" in capsys.readouterr().err
    assert main(["data", "build-audio", "--texts", str(texts), "--out", str(tmp_path), "--test-voices", "espeak"]) == 2
    assert "not among --voices" in capsys.readouterr().err


def test_recordings_are_cut_in_their_pauses_and_in_their_words() -> None:
    sound = np.concatenate([silence(RATE), burst(1.0), silence(RATE), burst(2.0), silence(RATE)])
    (first, second) = speech_frames(sound)
    assert first == pytest.approx((RATE, 2 * RATE), abs=400)
    assert second == pytest.approx((3 * RATE, 5 * RATE), abs=400)
    cuts = {cut.kind: len(cut.samples) / RATE for cut in cuts_of_recording(sound, random.Random(0))}
    assert set(cuts) == {"whole", "pause", "word end", "in a word"}
    assert 5.1 <= cuts["whole"] <= 5.22, "the quiet behind the end is short"
    assert cuts["pause"] - 2.0 == pytest.approx(cuts["whole"] - 5.0, abs=0.03), "and as long as that in a pause"
    assert 2.0 < cuts["word end"] < 3.3, "the quietest points are in the pause"
    assert 3.0 < cuts["in a word"] < 4.8


def test_speech_is_cut_where_a_word_ends() -> None:
    speech = asyncio.run(Beeping().speak("one two three four five six"))
    for seed in range(20):
        whole, cut = cuts_of_speech(speech, speech.samples, random.Random(seed))
        assert whole.is_whole
        assert len(cut.samples) < len(whole.samples)
        if cut.kind == "word end":
            tail = cut.samples[-int(0.1 * RATE) :]
            assert not tail.any(), "the quiet behind a word is that behind the end"
        else:
            assert np.abs(cut.samples[-200:]).max() > 0.1, "the voice is in the middle of a word"


@pytest.mark.parametrize("sound", [silence(0), silence(50), silence(RATE), np.ones(RATE, np.float32)])
def test_sound_without_speech_is_not_cut(sound: Samples) -> None:
    assert cuts_of_recording(sound, random.Random(0)) == []
    assert cuts_of_speech(Speech(sound, RATE, ()), sound, random.Random(0)) == []


def test_rooms_keep_the_length_and_set_the_level() -> None:
    chance, sound = random.Random(0), np.concatenate([burst(1.0), silence(RATE // 2)])
    for _ in range(30):
        room = Room.draw(chance)
        heard = room.applied(sound)
        assert heard.shape == sound.shape
        assert heard.dtype == np.float32
        assert np.abs(heard).max() <= 1.0
        assert level_db(heard[:RATE]) == pytest.approx(room.level_db, abs=4.0), "with echoes and noise"
        assert level_db(heard[-RATE // 10 :]) > -100, "noise goes on behind the speech"
        np.testing.assert_array_equal(heard, room.applied(sound))
    assert np.isfinite(room.applied(silence(RATE))).all()
    assert len(room.applied(silence(0))) == 0


def test_a_microphone_of_its_own_is_found() -> None:
    states = [(InputState.PROCESS, InputState.INCOMPLETE)[number % 2] for number in range(80)]
    groups = [str(number // 2) for number in range(80)]
    chance = np.random.default_rng(0)

    def rooms(gain_of: float) -> np.ndarray:
        sounds = [
            np.asarray(chance.normal(0, 0.01 * (gain_of if state is InputState.PROCESS else 1.0), RATE), np.float32)
            for state in states
        ]
        return np.stack([room_of(sound) for sound in sounds])

    assert room_aucs(rooms(1.5), states, groups)["process"] > 0.95
    assert 0.25 < room_aucs(rooms(1.0), states, groups)["process"] < 0.75
    assert room_aucs(rooms(1.0), [InputState.PROCESS] * 80, groups) == {}
