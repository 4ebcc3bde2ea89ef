"""Builds clips: every text in several voices and rooms, every recording as it is; each whole and cut.

The words of a clip are those that the recogniser hears in it, as in a conversation, and its features come from the same
encoding. N clips, S samples at 16 kHz.
"""

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from duologue.core.words import words_in
from duologue.data.jsonl import read_rows
from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample, read_samples, write_samples
from duologue.errors import BadData, EngineError, UsageError, require
from duologue.hearing.clips.artifacts import room_aucs, room_of
from duologue.hearing.clips.cuts import Cut, cuts_of_recording, cuts_of_speech
from duologue.hearing.clips.files import Sounds, beside
from duologue.hearing.clips.rooms import Room
from duologue.hearing.evidence import Features
from duologue.text.words import words_of
from duologue.types import InputState
from duologue.voice.engines.interfaces import Recogniser, Speech, Synthesiser
from duologue.voice.sound import RATE, Samples, read_sound, resampled, seconds_of, write_wav

SPLITS = ("train", "dev", "test")
_LONGEST_S = 12.0  # of a recording; longer ones are left out
_WORDS = range(1, 26)  # of a text that is spoken
_SPEEDS = (0.9, 1.0, 1.1)  # of a synthesised voice; pitch changes, too, so that there are more voices
_DEV_SHARE = 8  # one in so many groups of recordings is held out


@dataclass(frozen=True, slots=True)
class NamedVoice:
    """A synthesiser and its name in sources, such as "piper" or "espeak:en-gb"."""

    name: str
    synthesiser: Synthesiser


@dataclass(frozen=True, slots=True)
class ClipRecipe:
    """What clips are made of, and how many."""

    texts: Path | None = None  # folder of the text builder: train.jsonl, dev.jsonl, test.jsonl
    recordings: Path | None = None  # folder with manifest.jsonl
    num_texts: Mapping[str, int] = field(default_factory=lambda: {"train": 600, "dev": 100, "test": 100})
    test: frozenset[str] = frozenset()  # kinds and sources of recordings that are for the test only
    dev: frozenset[str] = frozenset()  # the same for the held-out split; besides, one in eight speakers
    test_voices: frozenset[str] = frozenset()  # voices for the test only
    kinds: frozenset[str] = frozenset()  # of recordings to use; empty: all
    addressed: frozenset[str] = frozenset(("assistant_command", "wake_word"))  # kinds that are said to an assistant
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.texts is not None or self.recordings is not None, "give texts, recordings or both")


@dataclass(frozen=True, slots=True, eq=False)
class _Clip:
    """A sound with its label; the words are not known yet."""

    sound: Samples
    sample: Sample  # its text is the one that was spoken, if that is known
    group: str  # clips of the same text or recording


@dataclass(slots=True, eq=False)
class _Split:
    """What has been heard for one split."""

    samples: list[Sample] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)
    rooms: list[Features] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


class ClipBuilder:
    """Builds one folder of clips.

    Args:
        recogniser: one whose recognitions have features.
        voices: the synthesisers that speak the texts.
        keeps_sound: also write each clip as a WAV file, to listen to or for other detectors.
    """

    def __init__(
        self,
        recipe: ClipRecipe,
        out: Path,
        recogniser: Recogniser,
        voices: Sequence[NamedVoice],
        *,
        recogniser_name: str = "",
        keeps_sound: bool = False,
        progress: StageProgress = silent,
    ) -> None:
        seen = [voice for voice in voices if voice.name not in recipe.test_voices]
        require(recipe.texts is None or bool(seen), "no voice is left for training; give one that is not for the test")
        self._recipe, self._out, self._recogniser, self._voices = recipe, out, recogniser, list(voices)
        self._seen, self._name, self._keeps_sound, self._progress = seen, recogniser_name, keeps_sound, progress

    async def build(self) -> dict[str, Any]:
        """Write `train`, `dev` and `test`, and return the report, which is written as well.

        Raises:
            BadData: a source cannot be read, or nothing is left of all of them.
            EngineError: the recogniser or a voice failed.
        """
        self._out.mkdir(parents=True, exist_ok=True)
        splits = {name: _Split() for name in SPLITS}
        for name in SPLITS:
            if self._recipe.texts is not None:
                await self._add(splits[name], name, self._spoken(name, splits[name].dropped))
        if self._recipe.recordings is not None:
            rows = self._recordings()
            for number, (name, row) in enumerate(rows, 1):
                await self._add(splits[name], name, self._recorded(row, splits[name].dropped))
                self._progress("hearing recordings", number, len(rows))
        if not any(split.samples for split in splits.values()):
            reasons = sum((split.dropped for split in splits.values()), Counter[str]())
            raise BadData(f"no clip is left: {', '.join(f'{n} {why}' for why, n in reasons.items()) or 'no sources'}")
        return self._write(splits)

    # ------------------------------------------------------------------ sources

    async def _spoken(self, split: str, dropped: Counter[str]) -> AsyncIterator[_Clip]:
        """Texts of a split in voices and rooms, each whole and, where it has several words, cut."""
        texts = self._texts(split)
        chance = random.Random(f"{self._recipe.seed} {split}")
        voices = self._voices if split == "test" else self._seen
        for number, sample in enumerate(texts):
            voice = voices[number % len(voices)]
            try:
                speech = await voice.synthesiser.speak(sample.text)
            except EngineError as error:
                raise EngineError(f"{voice.name} cannot speak {sample.text!r}: {error}") from error
            speed, room = chance.choice(_SPEEDS), Room.draw(chance)
            sound = resampled(speech.samples, round(speech.rate * speed), RATE)
            changed = Speech(speech.samples, round(speech.rate * speed), speech.marks)
            source = f"{sample.source}, {voice.name}"
            for cut in cuts_of_speech(changed, sound, chance):
                heard = replace(cut, samples=room.applied(cut.samples[-int(_LONGEST_S * RATE) :]))
                yield _labelled(heard, replace(sample, source=source), f"{split} text {number}")
            self._progress(f"speaking {split} texts", number + 1, len(texts))

    def _texts(self, split: str) -> list[Sample]:
        """The texts to speak: whole ones, the states in turn."""
        assert self._recipe.texts is not None, "there are texts"
        path = self._recipe.texts / f"{split}.jsonl"
        wanted = self._recipe.num_texts.get(split, 0)
        if not wanted or not path.exists():
            return []
        whole = [
            one
            for one in read_samples(path)
            if one.state is not InputState.INCOMPLETE and one.ends is not False and len(words_of(one.text)) in _WORDS
        ]
        random.Random(self._recipe.seed).shuffle(whole)
        by_state = [[one for one in whole if one.state is state] for state in InputState]
        rows = zip(*(cycle(part) for part in by_state if part), strict=False)  # rare texts are spoken more than once
        return list(islice(chain.from_iterable(rows), wanted))

    def _recordings(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The rows of the manifest, with the split that each belongs to: whole sources and speakers."""
        assert self._recipe.recordings is not None, "there are recordings"
        path = self._recipe.recordings / "manifest.jsonl"
        if not path.exists():
            raise BadData(f"{path} does not exist; it has one object a recording: id, file, kind and source")
        found: list[tuple[str, Mapping[str, Any]]] = []
        for line, row in read_rows(path):
            if not {"id", "file", "kind", "source"} <= row.keys():
                raise BadData(f"{path}, line {line}: a recording needs id, file, kind and source")
            if not self._recipe.kinds or row["kind"] in self._recipe.kinds:
                found.append((self._split_of(row), row))
        return found

    def _split_of(self, row: Mapping[str, Any]) -> str:
        names = {row["kind"], _origin(row)}
        if names & self._recipe.test:
            return "test"
        group = blake2b(f"{_origin(row)} {row.get('speaker') or row['id']}".encode(), digest_size=4).digest()
        return "dev" if names & self._recipe.dev or int.from_bytes(group, "big") % _DEV_SHARE == 0 else "train"

    async def _recorded(self, row: Mapping[str, Any], dropped: Counter[str]) -> AsyncIterator[_Clip]:
        """A recording, whole and cut, in the room where it was made."""
        assert self._recipe.recordings is not None, "there are recordings"
        path = self._recipe.recordings / row["file"]
        if seconds_of(path) > _LONGEST_S:
            dropped[f"recording longer than {_LONGEST_S:g} s"] += 1
            return
        is_addressed = row["kind"] in self._recipe.addressed
        accept = () if is_addressed else (InputState.IGNORE,)  # nobody knows whom a reader speaks to
        sample = Sample(row.get("text") or "", InputState.PROCESS, f"{row['kind']}, {_origin(row)}", accept=accept)
        cuts = cuts_of_recording(read_sound(path), random.Random(f"{self._recipe.seed} {row['id']}"))
        if not cuts:
            dropped["no speech in the sound"] += 1
        for cut in cuts:
            yield _labelled(cut, sample, str(row["id"]))

    # ------------------------------------------------------------------ hearing

    async def _add(self, split: _Split, name: str, clips: AsyncIterator[_Clip]) -> None:
        """Have the recogniser hear `clips`, and keep those in which there are the words to decide on."""
        whole: dict[str, int] = {}  # words of the whole text or recording
        async for clip in clips:
            recognition = self._recogniser.begin()
            text = words_in(await recognition.hear(clip.sound, last=True))
            features, count = recognition.features, len(words_of(text))
            if features is None:
                raise UsageError("this recogniser tells nothing beyond words; use one whose recognitions have features")
            if not count:
                split.dropped["no words recognised"] += 1
                continue
            if clip.sample.kind == "whole":
                whole[clip.group] = count
            elif count >= whole.get(clip.group, 0):
                split.dropped["cut behind the last word"] += 1
                continue
            split.samples.append(replace(clip.sample, text=text))
            split.groups.append(clip.group)
            split.features.append(features)
            split.rooms.append(room_of(clip.sound))
            if self._keeps_sound:
                folder = self._out / "sound"
                folder.mkdir(exist_ok=True)
                write_wav(folder / f"{name}-{len(split.samples):05}.wav", [clip.sound], RATE)

    def _write(self, splits: Mapping[str, _Split]) -> dict[str, Any]:
        content: dict[str, Any] = {"recogniser": self._name, "seed": self._recipe.seed}
        for name, split in splits.items():
            path = self._out / f"{name}.jsonl"
            if not split.samples:
                continue
            write_samples(path, split.samples)
            Sounds(np.stack(split.features), np.stack(split.rooms), self._name).save(beside(path))
            content[name] = _described(split)
        (self._out / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (self._out / "report.md").write_text(report_text(content), encoding="utf-8")
        return content


def _labelled(cut: Cut, whole: Sample, group: str) -> _Clip:
    """A clip of `whole`. What is cut and was to be answered is incomplete; what was to be ignored may wait as well."""
    if cut.is_whole:
        sample = replace(whole, kind=cut.kind, ends=True)
    elif whole.state is InputState.IGNORE:
        sample = replace(whole, kind=cut.kind, ends=False, accept=(*whole.accept, InputState.INCOMPLETE))
    else:
        sample = replace(whole, kind=cut.kind, ends=False, state=InputState.INCOMPLETE, accept=(), response="")
    return _Clip(cut.samples, sample, group)


def _origin(row: Mapping[str, Any]) -> str:
    """The corpus of a recording: the first word of its source."""
    return str(row["source"]).split()[0]


def _described(split: _Split) -> dict[str, Any]:
    states = [sample.state for sample in split.samples]
    return {
        "num_samples": len(states),
        "states": dict(Counter(state.value for state in states)),
        "kinds": dict(Counter(sample.kind for sample in split.samples)),
        "sources": dict(Counter(sample.source for sample in split.samples)),
        "dropped": dict(split.dropped),
        "room_alone": room_aucs(np.stack(split.rooms), states, split.groups),
    }


def report_text(content: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = ["# Clips", ""]
    for name in SPLITS:
        if name not in content:
            continue
        part = content[name]
        lines += [f"## {name}: {part['num_samples']} clips", ""]
        for title in ("states", "kinds", "sources", "dropped"):
            lines += [f"{title}: " + (", ".join(f"{n} {what}" for what, n in part[title].items()) or "none"), ""]
        told = ", ".join(f"{state} {value:.3f}" for state, value in part["room_alone"].items()) or "too few clips"
        lines += [f"What the room alone tells (area under the ROC curve, 0.5 by chance): {told}", ""]
    return "\n".join(lines)
