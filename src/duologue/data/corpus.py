"""Reading a folder of JSONL sources: `queries/`, `background/`, `dialogues/`, `hard/`, plain or gzipped.

Utterances have `id`, `text`, `kind` and perhaps `intent` and `doc`; dialogues have `id` and `turns`. The file's name is
the source. Rows are streamed: what is kept is a seeded sample of each file, never the whole corpus.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from duologue.data.jsonl import read_rows
from duologue.errors import BadData
from duologue.types import Role, Turn

T = TypeVar("T")

FOLDERS = ("queries", "background", "dialogues", "hard")


TURN_KINDS = frozenset({"assistant_turn", "topic_switch", "correction"})
"""Kinds whose id is that of a dialogue and the number of the turn: such rows belong to the dialogue's document."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One thing that somebody said."""

    text: str
    source: str
    kind: str
    part: float  # where its document falls in [0, 1): splits are by document
    id: str = ""
    intent: str = ""
    before: str = ""  # what was said just before, where the source knows
    answer: str = ""  # a reference answer, where the source knows


@dataclass(frozen=True, slots=True)
class Dialogue:
    """User and assistant in turn, the user first."""

    turns: tuple[Turn, ...]
    source: str
    part: float  # see `Utterance`


def part_of(document: str) -> float:
    """A number in [0, 1) that depends on the document's name alone."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:6], "big") / 2**48


def source_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Folder → source → file. Raises `BadData` where there is nothing to read."""
    found: dict[str, dict[str, Path]] = {name: {} for name in FOLDERS}
    for name in FOLDERS:
        for path in sorted((folder / name).glob("*.jsonl*")):
            if path.name.endswith((".jsonl", ".jsonl.gz")):
                source = path.name.removesuffix(".gz").removesuffix(".jsonl")
                if source in found[name]:
                    raise BadData(f"{folder / name} has {source} twice, plain and gzipped; leave one")
                found[name][source] = path
    for name in ("queries", "background"):
        if not found[name]:
            raise BadData(f"{folder / name} has no *.jsonl or *.jsonl.gz; training needs queries/ and background/")
    return found


def utterances(path: Path, source: str, limit: int, rng: random.Random) -> list[Utterance]:
    """A seeded sample of at most `limit` utterances of a file, in random order."""
    kept: list[Utterance] = []
    seen = 0
    for number, row in read_rows(path):
        text = row.get("text")
        if not isinstance(text, str):
            raise BadData(f"{path}, line {number}: no text; an utterance needs id and text")
        if not text.strip():
            continue
        document, kind = str(row.get("doc") or row.get("id") or text), str(row.get("kind", ""))
        if kind in TURN_KINDS:
            document = re.sub(r"-\d+$", "", document)
        item = Utterance(
            text=text.strip(),
            source=source,
            kind=kind,
            part=part_of(document),
            id=str(row.get("id") or ""),
            intent=str(row.get("intent") or ""),
            before=str(row.get("before") or ""),
            answer=_first(row.get("answer")),
        )
        seen = _reservoir(kept, item, seen, limit, rng)
    rng.shuffle(kept)
    return kept


def dialogues(path: Path, source: str, limit: int, rng: random.Random) -> list[Dialogue]:
    """A seeded sample of at most `limit` dialogues of a file that begin with a user and alternate, in random order."""
    kept: list[Dialogue] = []
    seen = 0
    for part, turns in _dialogues(path):
        seen = _reservoir(kept, Dialogue(turns, source, part), seen, limit, rng)
    rng.shuffle(kept)
    return kept


def openings(path: Path) -> Iterator[tuple[float, str]]:
    """Where each of a file's dialogues falls in [0, 1), and the first thing that its user says."""
    for part, turns in _dialogues(path):
        yield part, turns[0].text


def _dialogues(path: Path) -> Iterator[tuple[float, tuple[Turn, ...]]]:
    """Those of a file that begin with a user and alternate; those with the same beginning are one document."""
    for number, row in read_rows(path):
        try:
            turns = [Turn(Role(turn["role"]), turn["text"].strip()) for turn in row["turns"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadData(
                f"{path}, line {number}: bad turns ({error}); expected role user or assistant, and text"
            ) from None
        if turns and turns[0].role is Role.ASSISTANT:
            turns = turns[1:]
        expected = [Role.USER if i % 2 == 0 else Role.ASSISTANT for i in range(len(turns))]
        if len(turns) < 2 or [turn.role for turn in turns] != expected or not all(turn.text for turn in turns):
            continue
        yield part_of(" ".join(turns[0].text.lower().split())), tuple(turns)  # several paths of one tree, say


def _first(answer: object) -> str:
    """The first of several reference answers."""
    if isinstance(answer, list):
        answer = answer[0] if answer else ""
    return answer if isinstance(answer, str) else ""


def _reservoir(kept: list[T], item: T, seen: int, limit: int, rng: random.Random) -> int:
    """Keep a uniform sample of what has come by; returns how many have."""
    if len(kept) < limit:
        kept.append(item)
    elif (at := rng.randrange(seen + 1)) < limit:
        kept[at] = item
    return seen + 1
