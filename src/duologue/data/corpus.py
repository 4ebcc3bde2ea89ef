"""Reading a folder of JSONL sources: `queries/`, `background/`, `dialogues/`, `hard/`, plain or gzipped.

Utterances have `id`, `text`, `kind` and perhaps `intent` and `doc`; dialogues have `id` and `turns`. The name of a file
is the name of its source. Files are streamed; only a seeded sample of each is kept, never the whole corpus.
"""

import hashlib
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from duologue.data.jsonl import read_rows
from duologue.errors import BadData
from duologue.types import Role, Turn

T = TypeVar("T")

FOLDERS = ("queries", "background", "dialogues", "hard")
QUERY_KIND = "assistant_query"
"""The kind of rows in `queries/` that can be asked on their own."""

TURN_KINDS = frozenset({"assistant_turn", "topic_switch", "correction"})
"""Kinds whose id is that of a dialogue and the number of a turn: such rows belong to the document of the dialogue."""


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


def source_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Folder → source → file. Raises `BadData` if there is nothing to read."""
    found: dict[str, dict[str, Path]] = {name: {} for name in FOLDERS}
    for name, files in found.items():
        for path in sorted((folder / name).glob("*.jsonl*")):
            if path.name.endswith((".jsonl", ".jsonl.gz")):
                source = path.name.removesuffix(".gz").removesuffix(".jsonl")
                if source in files:
                    raise BadData(f"{folder / name} has {source} twice, plain and gzipped; remove one of them")
                files[source] = path
    for name in ("queries", "background"):
        if not found[name]:
            raise BadData(f"{folder / name} has no *.jsonl or *.jsonl.gz; training needs queries/ and background/")
    return found


def utterances(path: Path, source: str, limit: int, rng: random.Random) -> list[CorpusUtterance]:
    """A seeded sample of at most `limit` utterances of a file, in random order. Empty ones are left out."""
    return _random_sample(_utterances(path, source), limit, rng)


def dialogues(path: Path, source: str, limit: int, rng: random.Random) -> list[CorpusDialogue]:
    """A seeded sample of at most `limit` dialogues of a file, in random order. Those without an answer are left out."""
    found = (CorpusDialogue(turns, source, part) for part, turns in _dialogues(path) if turns)
    return _random_sample(found, limit, rng)


def openings(path: Path) -> Iterator[tuple[float, str]]:
    """The position in [0, 1) of each of a file's dialogues, and the first turn of its user."""
    for part, turns in _dialogues(path):
        if turns:
            yield part, turns[0].text


def left_out(files: Mapping[str, Mapping[str, Path]]) -> dict[str, int]:
    """How many rows of the given files (see `source_files`) cannot be used, by reason."""
    counts: Counter[str] = Counter()
    for folder in ("queries", "background"):
        for source, path in files[folder].items():
            for _, row in read_rows(path):
                if not str(row.get("text", "")).strip():
                    counts[f"{folder}/{source}: empty text"] += 1
                elif folder == "queries" and row.get("kind") != QUERY_KIND:
                    counts[f"{folder}/{source}: kind is not {QUERY_KIND}"] += 1
    for source, path in files["dialogues"].items():
        counts[f"dialogues/{source}: no user turn with an answer"] += sum(not turns for _, turns in _dialogues(path))
    return {reason: num for reason, num in counts.items() if num}


def _utterances(path: Path, source: str) -> Iterator[CorpusUtterance]:
    """All utterances of a file that are not empty."""
    for number, row in read_rows(path):
        text = row.get("text")
        if not isinstance(text, str):
            raise BadData(f"{path}, line {number}: no text; an utterance needs id and text")
        if not text.strip():
            continue
        named = (str(row[name]) for name in ("doc", "id") if row.get(name) not in (None, ""))
        document, kind = next(named, text), str(row.get("kind", ""))
        if kind in TURN_KINDS:
            document = re.sub(r"-\d+$", "", document)
        known = {name: str(row.get(name) or "") for name in ("id", "intent", "before")}
        answers = row.get("answer")  # one reference answer, or several
        answer = answers[0] if isinstance(answers, list) and answers else answers
        yield CorpusUtterance(
            text.strip(), source, kind, part_of(document), **known, answer=answer if isinstance(answer, str) else ""
        )


def _dialogues(path: Path) -> Iterator[tuple[float, tuple[Turn, ...]]]:
    """The dialogues of a file, beginning with a user; those with the same opening are one document.

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
        turns = [Turn(role, " ".join(turn.text for turn in same)) for role, same in grouped]
        if turns and turns[0].role is Role.ASSISTANT:
            turns = turns[1:]
        if len(turns) < 2:
            yield 0.0, ()
        else:  # branches of one conversation tree have the same opening
            yield part_of(" ".join(turns[0].text.lower().split())), tuple(turns)


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
