"""Folders of JSONL sources, and the pools of one split that samples are drawn from.

The folders are `queries/`, `background/`, `dialogues/` and `hard/`, with plain or gzipped files. Utterances have `id`,
`text`, `kind` and perhaps `intent` and `doc`; dialogues have `id` and `turns`. The name of a file is the name of its
source. Files are streamed; only a seeded sample of each is kept, never the whole corpus.

The files of another language than English are in folders of these folders, such as `queries/zh/`, and the language is
part of their sources' names (`zh/xquad`). A corpus that has no such folders may be in any one language.
"""

import hashlib
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from duologue.data import forms, phrases
from duologue.data.jsonl import read_rows
from duologue.data.recipes import INCOMPLETE, PROCESS, STOP, Recipe
from duologue.errors import BadData, refuse
from duologue.types import InputState, Role, Turn

T = TypeVar("T")

FOLDERS = ("queries", "background", "dialogues", "hard")
QUERY_KIND = "assistant_query"
"""The kind of rows in `queries/` that can be asked on their own."""

TURN_KIND = "assistant_turn"
"""The kind of rows in `queries/` that need the assistant's turn before them (`before`)."""

REPLY_KINDS = frozenset({TURN_KIND, "assistant_acknowledgement", "topic_switch", "correction"})
"""Kinds that are a reply where `before` asks something."""

SPLITS = {"train": (0.0, 0.82), "dev": (0.82, 0.9), "test": (0.9, 1.0)}
"""Which documents of a training source belong to which split (`part_of`)."""

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


@dataclass(frozen=True, slots=True)
class CorpusUtterance:
    """One thing that somebody said."""

    text: str
    source: str
    kind: str
    part: float  # position of its document in [0, 1): splits are by document
    id: str = ""
    intent: str = ""
    before: str = ""  # what was said just before, if the source knows
    earlier: str = ""  # what the user asked before, where its answer is not known
    answer: str = ""  # a reference answer, if the source knows


@dataclass(frozen=True, slots=True)
class CorpusDialogue:
    """User and assistant in turn, the user first."""

    turns: tuple[Turn, ...]
    source: str
    part: float  # see `CorpusUtterance`


def part_of(document: str) -> float:
    """A number in [0, 1) that depends on the document's name alone."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:6], "big") / 2**48


def source_files(folder: Path, language: str = "en", *, is_only: bool = True) -> dict[str, dict[str, Path]]:
    """Folder → source → file, of a language. Raises `BadData` if there is nothing to read.

    If it `is_only` one that is read, and no folder is named by it, the files beside such folders are in it.
    """
    has_own = any((folder / name / language).is_dir() for name in FOLDERS)
    prefix = language if has_own or (language != "en" and not is_only) else ""
    found: dict[str, dict[str, Path]] = {name: {} for name in FOLDERS}
    for name, files in found.items():
        for path in sorted((folder / name / prefix).glob("*.jsonl*")):
            if path.name.endswith((".jsonl", ".jsonl.gz")):
                source = f"{prefix}/{path.name.removesuffix('.gz').removesuffix('.jsonl')}".removeprefix("/")
                if source in files:
                    raise BadData(f"{path.parent} has {source} twice, plain and gzipped; remove one of them")
                files[source] = path
    for name in ("queries", "background"):
        if not found[name]:
            raise BadData(
                f"{folder / name / prefix} has no *.jsonl or *.jsonl.gz; training needs queries/ and background/"
            )
    return found


def files_by_language(folder: Path, recipe: Recipe) -> dict[str, dict[str, dict[str, Path]]]:
    """Language → folder → source → file."""
    is_only = len(recipe.languages) == 1
    return {language: source_files(folder, language, is_only=is_only) for language in recipe.languages}


def utterances(
    path: Path, source: str, limit: int, rng: random.Random, origins: Mapping[str, float]
) -> list[CorpusUtterance]:
    """A seeded sample of at most `limit` utterances of a file, in random order. Empty ones are left out."""
    return _random_sample(_utterances(path, source, origins), limit, rng)


def dialogues(path: Path, source: str, limit: int, rng: random.Random) -> list[CorpusDialogue]:
    """A seeded sample of at most `limit` dialogues of a file, in random order. Those without an answer are left out."""
    found = (CorpusDialogue(turns, source, part) for _, part, turns in _dialogues(path) if turns)
    return _random_sample(found, limit, rng)


def openings(path: Path) -> Iterator[tuple[float, str]]:
    """The position in [0, 1) of each of a file's dialogues, and the first turn of its user."""
    return ((part, turns[0].text) for _, part, turns in _dialogues(path) if turns)


def origins_of(files: Iterable[Path]) -> dict[str, float]:
    """The position in [0, 1) of every dialogue, by its `id` and its `doc`.

    A turn of a dialogue may stand in several files; all of them follow the dialogue into its split.
    """
    return {name: part for path in files for names, part, turns in _dialogues(path) if turns for name in names}


def unseen_texts(folder: Path, recipe: Recipe) -> Iterator[str]:
    """Everything that the unseen sources say, and what they mean by it (`fluent`)."""
    for files in files_by_language(folder, recipe).values():
        for source, path in ((source, path) for paths in files.values() for source, path in paths.items()):
            if source in recipe.unseen:
                for _, row in read_rows(path):
                    yield from (row[name] for name in ("text", "fluent") if isinstance(row.get(name), str))


def left_out(files: Mapping[str, Mapping[str, Path]]) -> dict[str, int]:
    """How many rows of the given files (see `source_files`) cannot be used, by reason."""
    counts: Counter[str] = Counter()
    for folder in ("queries", "background"):
        for source, path in files[folder].items():
            for _, row in read_rows(path):
                if not str(row.get("text", "")).strip():
                    counts[f"{folder}/{source}: empty text"] += 1
                elif folder == "queries" and row.get("kind") not in (QUERY_KIND, TURN_KIND):
                    counts[f"{folder}/{source}: kind is not {QUERY_KIND} or {TURN_KIND}"] += 1
    for source, path in files["dialogues"].items():
        counts[f"dialogues/{source}: no user turn with an answer"] += sum(not turns for _, _, turns in _dialogues(path))
    return {reason: num for reason, num in counts.items() if num}


def _utterances(path: Path, source: str, origins: Mapping[str, float]) -> Iterator[CorpusUtterance]:
    """All utterances of a file that are not empty; origins: see `origins_of`."""
    for number, row in read_rows(path):
        text = row.get("text")
        if not isinstance(text, str):
            raise BadData(f"{path}, line {number}: no text; an utterance needs id and text")
        if not text.strip():
            continue
        kind = str(row.get("kind", ""))
        doc, own_id = (str(row[name]) if row.get(name) not in (None, "") else "" for name in ("doc", "id"))
        dialogue = re.sub(r"-\d+$", "", own_id)  # the id of a turn is that of its dialogue and a number
        document = doc or (dialogue if kind in REPLY_KINDS else own_id) or text
        part = next((origins[name] for name in (doc, own_id, dialogue) if name in origins), None)
        known = {name: str(row.get(name) or "") for name in ("id", "intent", "before")}
        yield CorpusUtterance(
            text.strip(),
            source,
            kind,
            part_of(document) if part is None else part,
            **known,
            earlier=_one_of(row.get("earlier"), -1),
            answer=_one_of(row.get("answer"), 0),
        )


def _one_of(value: Any, at: int) -> str:
    """A text, or one of several; "" where there is none."""
    value = value[at] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else ""


def _dialogues(path: Path) -> Iterator[tuple[tuple[str, ...], float, tuple[Turn, ...]]]:
    """The names, positions and turns of a file's dialogues.

    Dialogues begin with a user; those with the same opening are one document.

    Consecutive turns of the same role are joined. No turns: the user says nothing that is answered.
    """
    for number, row in read_rows(path):
        try:
            turns = [Turn(Role(turn["role"]), turn["text"].strip()) for turn in row["turns"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadData(
                f"{path}, line {number}: bad turns ({error}); expected role user or assistant, and text"
            ) from None
        grouped = itertools.groupby((turn for turn in turns if turn.text), key=lambda turn: turn.role)
        turns = [Turn(role, forms.join(turn.text for turn in same)) for role, same in grouped]
        if turns and turns[0].role is Role.ASSISTANT:
            turns = turns[1:]
        if len(turns) < 2:
            yield (), 0.0, ()
        else:  # branches of one conversation tree have the same opening
            names = tuple(str(row[name]) for name in ("id", "doc") if row.get(name) not in (None, ""))
            yield names, part_of(" ".join(turns[0].text.lower().split())), tuple(turns)


def _random_sample(items: Iterable[T], limit: int, rng: random.Random) -> list[T]:
    """At most `limit` of `items`, each with the same probability, in random order (reservoir sampling)."""
    kept: list[T] = []
    for seen, item in enumerate(items):
        if len(kept) < limit:
            kept.append(item)
        elif (at := rng.randrange(seen + 1)) < limit:
            kept[at] = item
    rng.shuffle(kept)
    return kept


class Pools:
    """The utterances and dialogues of one split, sampled from the files of a folder."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        split: str,
        *,
        language: str | None = None,
        unseen: bool = False,
        requires: Collection[str] = ("queries", "background"),
        is_left_out: Callable[[str], bool] = lambda text: False,
    ) -> None:
        """Read the sources of `split`; with `unseen`, read the sources that are held out as a whole instead.

        They are in `language`, by default the first of the recipe. Utterances whose text `is_left_out` are not used.
        The folders that it `requires` must leave something.

        Dialogues for contexts always come from the split's own documents.

        Raises:
            BadData: a file cannot be read, or no query or no background line is left for the split.
        """
        refuse([(split not in SPLITS, f"no split {split!r}; there are {', '.join(SPLITS)}")])
        self._recipe, self._split, self._unseen, self._is_left_out = recipe, split, unseen, is_left_out
        self._low, self._high = SPLITS[split]
        self._limit = _PER_SOURCE_TESTED if split == "test" else recipe.per_source
        self.language = language or recipe.languages[0]
        self._rng = random.Random(f"{recipe.seed} {split} {unseen}")
        files = files_by_language(folder, recipe)[self.language]
        self._origins = origins_of(files["dialogues"].values())
        stops = _stop_commands(files, recipe, self._limit, self._rng)
        hard_texts = {forms.spoken(item.text) for item in stops}
        # a corpus may repeat the opening of a dialogue among its queries, and a dialogue under several names
        self._held_back = _openings_after(self._high, files["dialogues"])

        # hard/ takes precedence over queries/, where the same stop commands occur without a mark
        said = self._utterances(files["queries"], lambda u: forms.spoken(u.text) not in hard_texts)
        self.queries = _of(said, lambda u: u.kind == QUERY_KIND)
        # what is said to others is no turn of a dialogue, whatever it is called
        self.background = self._utterances(files["background"], lambda u: bool(forms.words(u.text)), {})
        self.hard = self._utterances(files["hard"], lambda u: u.source != "stop_commands")
        self.replies = _of({**said, **self.hard}, lambda u: u.kind in REPLY_KINDS and forms.asks(u.before))
        self.switches = _of(
            self.hard,
            lambda u: u.kind in ("topic_switch", "correction") and bool(u.before) and not forms.asks(u.before),
        )
        self.later_queries = _of(said, lambda u: bool(u.earlier))
        self.statements = _of(said, lambda u: u.kind == TURN_KIND and not u.earlier and forms.stands_alone(u.text))
        self.human_questions = _of(self.hard, lambda u: u.kind == "human_question")
        stops = [item for item in stops if self._is_in_split(item)]
        self.stops = [item for item in stops if _state_of(item) is STOP]
        self.not_stops = [item for item in stops if _state_of(item) is PROCESS]
        self.complaints = [item for item in stops if item.kind == "negative_feedback"]
        self.dialogues = self._read(
            dialogues,
            {name: path for name, path in files["dialogues"].items() if split == "test" or name not in recipe.unseen},
            lambda d: self._is_in_split(d) and forms.spoken(d.turns[0].text) not in self._held_back,
        )
        self._whole = {hash(forms.spoken(text)) for text in self._said_to_assistants(said)}
        for name, pool in (("queries", self.queries), ("background", self.background)):
            if not pool and name in requires:
                raise BadData(f"{folder / name} leaves nothing for the split {split!r}: {self._why_empty()}")

    def _said_to_assistants(self, said: Mapping[str, Sequence[CorpusUtterance]]) -> Iterator[str]:
        """What was said to an assistant as a whole turn."""
        for pool in (said, self.replies):
            yield from (item.text for items in pool.values() for item in items)
        for talks in self.dialogues.values():
            yield from (turn.text for talk in talks for turn in talk.turns if turn.role is Role.USER)

    def _why_empty(self) -> str:
        if self._unseen:
            return f"none of the unseen sources {sorted(self._recipe.unseen)} is there"
        return (
            "rows are assigned to splits by their doc, or else by their id, so it needs more distinct doc values, or "
            "more sources"
        )

    def is_whole(self, text: str) -> bool:
        """Whether somebody said exactly `text` to an assistant."""
        return hash(forms.spoken(text)) in self._whole

    def _utterances(
        self,
        files: Mapping[str, Path],
        keep: Callable[[CorpusUtterance], bool],
        origins: Mapping[str, float] | None = None,
    ) -> dict[str, list[CorpusUtterance]]:
        """Source → its utterances in this split, without empty sources; `origins` are those of the dialogues."""
        origins = self._origins if origins is None else origins
        whole = self._whole_sources(files)
        chosen = files.keys() - self._recipe.unseen - self._recipe.calibration if whole is None else whole
        return self._read(
            lambda path, source, limit, rng: utterances(path, source, limit, rng, origins),
            {source: path for source, path in files.items() if source in chosen},
            lambda u: (
                (whole is not None or self._is_in_split(u))
                and keep(u)
                and forms.spoken(u.text) not in self._held_back
                and not self._is_left_out(u.text)
            ),
        )

    def _whole_sources(self, files: Mapping[str, Path]) -> Collection[str] | None:
        """The sources that this split uses as a whole; None if it takes some documents of every other source."""
        if self._unseen:
            held_out = files.keys() & self._recipe.unseen
            is_one = len(files) == 1 and self.language != "en"  # of which documents have to do
            return None if is_one and not held_out else held_out
        return (files.keys() & self._recipe.calibration or None) if self._split == "dev" else None

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


def _of(
    pool: Mapping[str, Sequence[CorpusUtterance]], keep: Callable[[CorpusUtterance], bool]
) -> dict[str, list[CorpusUtterance]]:
    """The utterances of `pool` that are kept, without empty sources."""
    found = {source: [item for item in items if keep(item)] for source, items in pool.items()}
    return {source: items for source, items in found.items() if items}


def fixed_labels(folder: Path, recipe: Recipe) -> Iterator[tuple[str, InputState]]:
    """Words whose state is fixed, whatever other sources say: stop commands of the hard set, and lines of our own."""
    rng = random.Random(f"{recipe.seed} labels")
    for language, files in files_by_language(folder, recipe).items():
        for item in _stop_commands(files, recipe, recipe.per_source, rng):
            if (state := _state_of(item)) is not None:
                yield item.text, state
        if recipe.own_lines:
            for section, state in (("go_on", PROCESS), ("complaints", PROCESS), ("unfinished", INCOMPLETE)):
                for line in phrases.lines(section, language):
                    yield line, state


def _stop_commands(
    files: dict[str, dict[str, Path]], recipe: Recipe, limit: int, rng: random.Random
) -> list[CorpusUtterance]:
    """The stop commands of the hard set, without those from an unseen source, whose name begins their id."""
    path = files["hard"].get("stop_commands")
    if path is None or "stop_commands" in recipe.unseen:
        return []
    found = utterances(path, "stop_commands", limit, rng, {})
    return [item for item in found if not any(item.id.startswith(f"{name}-") for name in recipe.unseen)]


def _openings_after(part: float, dialogues: dict[str, Path]) -> set[str]:
    """Openings, in normal form, of the dialogues in the splits after `part`; short ones are left out."""
    return {
        text
        for path in dialogues.values()
        for where, opening in openings(path)
        if where >= part and len(forms.words(text := forms.spoken(opening))) > OPENER_WORDS
    }


def _state_of(item: CorpusUtterance) -> InputState | None:
    """The state of a stop command, which may be meant for a device; None if that is unclear."""
    names_device = not _DEVICE_WORDS.isdisjoint(forms.spoken(item.text).split())
    is_clear = item.intent != "cancel" if names_device else item.intent in STOP_INTENTS
    if item.kind != "stop_command" or not is_clear:
        return None
    return PROCESS if names_device else STOP
