"""What samples are drawn from: the utterances and dialogues of one split of a folder of sources."""

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from duologue.data import corpus, forms, phrases
from duologue.data.corpus import CorpusDialogue, CorpusUtterance
from duologue.data.recipes import INCOMPLETE, PROCESS, STOP, Recipe
from duologue.errors import BadData, UsageError
from duologue.types import InputState, Role

T = TypeVar("T")

SPLITS = {"train": (0.0, 0.82), "dev": (0.82, 0.9), "test": (0.9, 1.0)}
"""Which documents of a training source belong to which split (`corpus.part_of`)."""

STOP_INTENTS = frozenset({"cancel", "general_commandstop", "audio_volume_mute"})
_DEVICE_WORDS = forms.word_set(
    "alarm speaker speakers volume sound sounds tv television music song video radio phone audio lights light process "
    "payment payments reservation appointment order booking table list event account card notifications ringer noise "
    "device computer system program task action command commands last undo mistake"
)
"""A stop command with one of these words concerns a device, a booking or an earlier order: process, not stop.

A time does not count: "be quiet for an hour" is said to the assistant.
"""

OPENER_WORDS = 4
"""Openings with no more words than this ("hi there") are shared by many dialogues."""

_PER_SOURCE_TESTED = 6000
"""Utterances of a source that a test draws from, whatever the recipe trains on."""


class Pools:
    """The utterances and dialogues of one split, sampled from the files of a folder."""

    def __init__(self, folder: Path, recipe: Recipe, split: str, *, unseen: bool = False) -> None:
        """Read the sources of `split`; with `unseen`, read the sources that are held out as a whole instead.

        Dialogues for contexts always come from the split's own documents.

        Raises:
            BadData: a file cannot be read, or no query or no background line is left for the split.
        """
        if split not in SPLITS:
            raise UsageError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        self._recipe, self._unseen = recipe, unseen
        self._low, self._high = SPLITS[split]
        self._limit = _PER_SOURCE_TESTED if split == "test" else recipe.per_source
        self._rng = random.Random(f"{recipe.seed} {split} {unseen}")
        files = corpus.source_files(folder)
        stops = _stop_commands(files, recipe, self._limit, self._rng)
        hard_texts = {forms.spoken(item.text) for item in stops}
        # a corpus may repeat the opening of a dialogue among its queries, and a dialogue under several names
        self._held_back = _openings_after(self._high, files["dialogues"])

        # hard/ takes precedence over queries/, where the same stop commands occur without a mark
        self.queries = self._utterances(
            files["queries"], lambda u: u.kind == corpus.QUERY_KIND and forms.spoken(u.text) not in hard_texts
        )
        self.background = self._utterances(files["background"], lambda u: bool(forms.words(u.text)))
        self.hard = self._utterances(files["hard"], lambda u: u.source != "stop_commands")
        stops = [item for item in stops if self._is_in_split(item)]
        self.stops = [item for item in stops if _is_stop(item)]
        self.not_stops = [item for item in stops if _is_command(item)]
        self.complaints = [item for item in stops if item.kind == "negative_feedback"]
        self.dialogues = self._read(
            corpus.dialogues,
            {name: path for name, path in files["dialogues"].items() if split == "test" or name not in recipe.unseen},
            lambda d: self._is_in_split(d) and forms.spoken(d.turns[0].text) not in self._held_back,
        )
        self._whole = {
            hash(forms.spoken(text))
            for texts in (
                *([query.text for query in queries] for queries in self.queries.values()),
                *([t.text for d in talks for t in d.turns if t.role is Role.USER] for talks in self.dialogues.values()),
            )
            for text in texts
        }
        for name, pool in (("queries", self.queries), ("background", self.background)):
            if not pool:
                reason = (
                    f"none of the unseen sources {sorted(recipe.unseen)} is there"
                    if unseen
                    else "rows are assigned to splits by their doc, or else by their id, so it needs more distinct doc "
                    "values, or more sources"
                )
                raise BadData(f"{folder / name} leaves nothing for the split {split!r}: {reason}")

    def is_whole(self, text: str) -> bool:
        """Whether somebody said exactly `text` to an assistant."""
        return hash(forms.spoken(text)) in self._whole

    def _utterances(
        self, files: Mapping[str, Path], keep: Callable[[CorpusUtterance], bool]
    ) -> dict[str, list[CorpusUtterance]]:
        """Source → its utterances in this split, without empty sources."""
        return self._read(
            corpus.utterances,
            {source: path for source, path in files.items() if (source in self._recipe.unseen) is self._unseen},
            lambda u: (
                (self._unseen or self._is_in_split(u)) and keep(u) and forms.spoken(u.text) not in self._held_back
            ),
        )

    def _read(
        self,
        read: Callable[[Path, str, int, random.Random], list[T]],
        files: Mapping[str, Path],
        keep: Callable[[T], bool],
    ) -> dict[str, list[T]]:
        """Source → the items of its file that are kept, without empty sources."""
        found = {
            source: [item for item in read(path, source, self._limit, self._rng) if keep(item)]
            for source, path in files.items()
        }
        return {source: items for source, items in found.items() if items}

    def _is_in_split(self, item: CorpusUtterance | CorpusDialogue) -> bool:
        return self._low <= item.part < self._high


def fixed_labels(folder: Path, recipe: Recipe) -> Iterator[tuple[str, InputState]]:
    """Words whose state is fixed, whatever other sources say: stop commands of the hard set, and lines of our own."""
    rng = random.Random(f"{recipe.seed} labels")
    for item in _stop_commands(corpus.source_files(folder), recipe, recipe.per_source, rng):
        if _is_stop(item):
            yield item.text, STOP
        elif _is_command(item):
            yield item.text, PROCESS
    if recipe.own_lines:
        for section, state in (("go_on", PROCESS), ("complaints", PROCESS), ("unfinished", INCOMPLETE)):
            for line in phrases.lines(section):
                yield line, state


def _stop_commands(
    files: dict[str, dict[str, Path]], recipe: Recipe, limit: int, rng: random.Random
) -> list[CorpusUtterance]:
    """The stop commands of the hard set, without those from an unseen source, whose name begins their id."""
    path = files["hard"].get("stop_commands")
    if path is None or "stop_commands" in recipe.unseen:
        return []
    found = corpus.utterances(path, "stop_commands", limit, rng)
    return [item for item in found if not any(item.id.startswith(f"{name}-") for name in recipe.unseen)]


def _openings_after(part: float, dialogues: dict[str, Path]) -> set[str]:
    """Openings, in normal form, of the dialogues in the splits after `part`; short ones are left out."""
    return {
        text
        for path in dialogues.values()
        for where, opening in corpus.openings(path)
        if where >= part and len((text := forms.spoken(opening)).split()) > OPENER_WORDS
    }


def _is_stop(item: CorpusUtterance) -> bool:
    return item.kind == "stop_command" and item.intent in STOP_INTENTS and not _names_device(item.text)


def _is_command(item: CorpusUtterance) -> bool:
    return item.kind == "stop_command" and item.intent != "cancel" and _names_device(item.text)


def _names_device(text: str) -> bool:
    return not _DEVICE_WORDS.isdisjoint(forms.spoken(text).split())
