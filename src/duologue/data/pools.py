"""What samples are drawn from: the utterances and dialogues of one split of a folder of sources."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from duologue.data import corpus, forms, phrases
from duologue.data.corpus import Dialogue, Utterance
from duologue.data.recipes import INCOMPLETE, PROCESS, STOP, Recipe
from duologue.errors import BadData, UsageError
from duologue.types import InputState, Role

SPLITS = {"train": (0.0, 0.82), "dev": (0.82, 0.9), "test": (0.9, 1.0)}
"""Which documents of a source that is trained on belong to which split (`corpus.part_of`)."""

STOP_INTENTS = frozenset({"cancel", "general_commandstop", "audio_volume_mute"})
_DEVICES = (
    "alarm speaker speakers volume sound sounds tv television music song video radio phone audio lights light process "
    "payment payments reservation appointment order booking table list event account card notifications ringer noise "
    "device computer system program task action command commands last undo mistake"
)
_DEVICE_WORDS = frozenset(_DEVICES.split())
"""A stop command that names one of these is about a device, a booking or an earlier order: process, not stop.

Not so a time: "be quiet for an hour" is said to the assistant.
"""


OPENER_WORDS = 4
"""What opens a dialogue with no more words than this ("hi there") opens many."""

_PER_SOURCE_TESTED = 6000
"""Utterances of a source that a test draws from: it stays the same whatever is trained on."""


class Pools:
    """The utterances and dialogues of one split, sampled from the files of a folder."""

    def __init__(self, folder: Path, recipe: Recipe, split: str, *, unseen: bool = False) -> None:
        """Read the sources of `split`; with `unseen`, whole sources that are not trained on instead.

        Dialogues for contexts always come from the split's own documents.
        """
        if split not in SPLITS:
            raise UsageError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        low, high = SPLITS[split]
        limit = _PER_SOURCE_TESTED if split == "test" else recipe.per_source
        rng = random.Random(f"{recipe.seed} {split} {unseen}")
        files = corpus.source_files(folder)
        stops = _stop_commands(files, recipe, limit, rng)
        hard_texts = {forms.spoken(item.text) for item in stops}
        # a corpus may have the opening of a dialogue among its queries, too, and a dialogue under several names
        kept_back = _openings_behind(high, files["dialogues"])

        def read(kind: str, keep: Callable[[Utterance], bool]) -> dict[str, list[Utterance]]:
            found = {}
            for source, path in files[kind].items():
                if (source in recipe.unseen) != unseen:
                    continue
                items = [
                    item
                    for item in corpus.utterances(path, source, limit, rng)
                    if (unseen or low <= item.part < high) and keep(item) and forms.spoken(item.text) not in kept_back
                ]
                if items:
                    found[source] = items
            return found

        # hard/ wins over queries/, where the same stop commands stand without being marked
        self.queries = read("queries", lambda u: u.kind == "assistant_query" and forms.spoken(u.text) not in hard_texts)
        self.background = read("background", lambda u: len(forms.words(u.text)) >= 1)
        self.hard = read("hard", lambda u: u.source != "stop_commands")
        self.stops = [item for item in stops if low <= item.part < high and _is_stop(item)]
        self.not_stops = [item for item in stops if low <= item.part < high and _is_command(item)]
        self.complaints = [item for item in stops if low <= item.part < high and item.kind == "negative_feedback"]
        self.dialogues: dict[str, list[Dialogue]] = {}
        for source, path in files["dialogues"].items():
            if source in recipe.unseen and split != "test":
                continue
            found = [d for d in corpus.dialogues(path, source, limit, rng) if low <= d.part < high]
            found = [d for d in found if forms.spoken(d.turns[0].text) not in kept_back]
            if found:
                self.dialogues[source] = found
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
                raise BadData(
                    f"{folder / name} leaves nothing for the split {split!r}"
                    + (f": none of the unseen sources {sorted(recipe.unseen)} is there" if unseen else "")
                )

    def is_whole(self, text: str) -> bool:
        """Whether somebody has said just `text` to an assistant, and no more."""
        return hash(forms.spoken(text)) in self._whole


def fixed_labels(folder: Path, recipe: Recipe) -> Iterator[tuple[str, InputState]]:
    """What words are, whatever other source has them, too: stop commands, by the hard set, and lines of our own."""
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
) -> list[Utterance]:
    """Those of the hard set, but for lines that come from a source which is not to be seen (its name begins the id)."""
    path = files["hard"].get("stop_commands")
    if path is None or "stop_commands" in recipe.unseen:
        return []
    found = corpus.utterances(path, "stop_commands", limit, rng)
    return [item for item in found if not any(item.id.startswith(f"{name}-") for name in recipe.unseen)]


def _openings_behind(part: float, dialogues: dict[str, Path]) -> set[str]:
    """What opens the dialogues of the splits behind `part`, in normal form, but for what opens any dialogue."""
    return {
        text
        for path in dialogues.values()
        for where, opening in corpus.openings(path)
        if where >= part and len((text := forms.spoken(opening)).split()) > OPENER_WORDS
    }


def _is_stop(item: Utterance) -> bool:
    return item.kind == "stop_command" and item.intent in STOP_INTENTS and not _names_device(item.text)


def _is_command(item: Utterance) -> bool:
    return item.kind == "stop_command" and _names_device(item.text) and item.intent != "cancel"


def _names_device(text: str) -> bool:
    return bool(_DEVICE_WORDS & set(forms.spoken(text).split()))
