"""The sounds of the voice benchmark: recordings, synthetic speech and noises, each at a known level.

Recordings come from a folder with a `manifest.jsonl`, one object per line with `file`, `kind`, `text` and `id`.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import spoken

from duologue.voice.engines.interfaces import Synthesiser
from duologue.voice.engines.whisper import packaged_model
from duologue.voice.sound import RATE, Samples, gain, level_db, read_sound, resampled

SPEECH_DB = -23.0  # relative to full scale: somebody who speaks into the microphone
_LOUD_DB = -30.0  # relative to the loudest 20 ms; what is louder belongs to the sound itself
_BACKCHANNELS = ("mhm", "uh huh", "yeah", "right", "okay", "oh really", "I see", "hm", "yes, yes", "wow")
_SHORT_INTERRUPTIONS = (
    "Wait, what about dogs?", "Hold on, how old is it?", "Can you say that again?", "No, I meant the other one.",
    "Stop, tell me a joke instead.", "What does that mean?", "Who was the first?", "How long does it take?",
    "Where is that?", "Why is that so?", "Is it expensive?", "Give me an example.",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """A sound at 16 kHz. `begins` and `ends` bound the sound itself, in seconds. `words` are its words with the second
    at which each ends, if known.
    """

    name: str
    kind: str
    samples: Samples
    begins: float
    ends: float
    words: tuple[tuple[str, float], ...] = ()
    level: float = 0.0  # dB, relative to somebody who speaks into the microphone

    def at(self, level: float) -> "Sound":
        """The same sound at another level."""
        return replace(self, samples=self.samples * np.float32(gain(level)), level=level)


def made(name: str, kind: str, samples: Samples, words: tuple[tuple[str, float], ...] = ()) -> Sound:
    """A sound at the level of speech."""
    size = RATE // 50
    blocks = samples[: len(samples) // size * size].reshape(-1, size)
    power = np.array([level_db(block) for block in blocks])
    loud = np.flatnonzero(power > power.max() + _LOUD_DB)
    active = np.concatenate([blocks[i] for i in loud])
    scaled = samples * np.float32(gain(SPEECH_DB - level_db(active)))
    return Sound(name, kind, np.clip(scaled, -1, 1), float(loud[0]) / 50, float(loud[-1] + 1) / 50, words)


async def said(texts: Sequence[str], kind: str, synthesiser: Synthesiser, chance: random.Random) -> list[Sound]:
    """Synthetic speech at slightly varying speed."""
    sounds = []
    for text in texts:
        speech = await synthesiser.speak(text)
        pace = chance.uniform(0.92, 1.08)
        samples = resampled(speech.samples, int(speech.rate * pace), RATE)
        ends = [mark.sample / (speech.rate * pace) for mark in speech.marks]
        words = tuple(zip(text.split(), ends, strict=True)) if len(ends) == len(text.split()) else ()
        sounds.append(made(text, kind, samples, words))
    return sounds


def questions(chance: random.Random, count: int) -> list[str]:
    """Questions to the assistant."""
    return [spoken.question(chance).replace("{", "") for _ in range(count)]


def interruptions(chance: random.Random, count: int) -> list[str]:
    """Said to the assistant while it speaks: short interruptions, whole questions, and requests to stop, in turn."""
    pools = [_SHORT_INTERRUPTIONS, tuple(spoken.question(chance) for _ in range(count)), spoken.STOPS]
    return [pools[(0, 1, 0, 1, 2)[i % 5]][i // 2 % len(pools[(0, 1, 0, 1, 2)[i % 5]])] for i in range(count)]


def backchannels(count: int) -> list[str]:
    """Backchannels of a listener."""
    return [_BACKCHANNELS[i % len(_BACKCHANNELS)] for i in range(count)]


def asides(chance: random.Random, count: int) -> list[str]:
    """Said to somebody else near the microphone."""
    found: list[str] = []
    while len(found) < count:
        text = spoken.aside(chance)
        if text not in found and len(text) > 12:
            found.append(text)
    return found


def recordings(folder: Path, kind: str, chance: random.Random, count: int, *, longest_s: float) -> list[Sound]:
    """Recordings of `kind`, each cut to at most `longest_s` seconds."""
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows = [row for row in rows if row["kind"] == kind and row["seconds"] > 1.0]
    sounds = []
    for row in chance.sample(rows, min(count, len(rows))):
        samples = read_sound(folder / row["file"])
        size = int(longest_s * RATE)
        begin = chance.randrange(max(1, len(samples) - size))
        sounds.append(made(row["id"], kind, samples[begin : begin + size]))
    return sounds


def with_words(sounds: Sequence[Sound]) -> list[Sound]:
    """The same sounds with the words that Whisper finds in the whole of each, and when each word ends."""
    from faster_whisper import WhisperModel  # imported here, because the rest of this file works without it

    model = WhisperModel("whisper-base", files=packaged_model(), device="cpu", compute_type="int8")
    found = []
    for sound in sounds:
        segments, _ = model.transcribe(sound.samples, language="en", word_timestamps=True)
        words = [(word.word.strip(), float(word.end)) for segment in segments for word in segment.words or ()]
        found.append(replace(sound, words=tuple(words)))
    return found


def coughs(seed: int, count: int) -> list[Sound]:
    """Bursts of coloured noise, two or three in a row, with the sharp onset and the decay of a cough."""
    chance = np.random.default_rng(seed)
    sounds = []
    for index in range(count):
        parts = []
        for _ in range(int(chance.integers(2, 4))):
            size = int(chance.uniform(0.12, 0.3) * RATE)
            noise = chance.standard_normal(size)
            spectrum, f = np.fft.rfft(noise), np.fft.rfftfreq(size, 1 / RATE)
            spectrum *= np.exp(-(((f - chance.uniform(500, 1500)) / 900) ** 2)) + 0.08
            decay = np.exp(-np.arange(size) / (0.06 * RATE)) * np.minimum(1, np.arange(size) / 80)
            parts += [np.fft.irfft(spectrum, size) * decay, np.zeros(int(chance.uniform(0.05, 0.2) * RATE))]
        samples = np.concatenate(parts).astype(np.float32)
        sounds.append(made(f"cough-{index}", "cough", samples / np.abs(samples).max()))
    return sounds
