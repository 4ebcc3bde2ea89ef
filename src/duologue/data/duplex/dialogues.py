"""Source dialogues, one by one and in a seeded order, from files of any size; what cannot be used is counted."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.data.corpus import part_of
from duologue.data.duplex.languages import language_of
from duologue.data.jsonl import read_rows
from duologue.errors import BadData, UsageError
from duologue.types import Role

MAX_TURN = 8000
"""Characters of a turn. A dialogue ends before a longer one."""

_BUFFER = 1000  # dialogues from which the next one is drawn
_GZIPPED = 3  # how much larger a gzipped file is when read
_ROLES = {"user": Role.USER, "human": Role.USER, "assistant": Role.ASSISTANT, "gpt": Role.ASSISTANT}


@dataclass(frozen=True, slots=True)
class SourceTurn:
    """A turn as it is in its source."""

    role: Role
    text: str
    index: int  # among the turns of the row


Round = tuple[tuple[SourceTurn, ...], tuple[SourceTurn, ...]]
"""What the user says, and what the assistant answers."""


@dataclass(frozen=True, slots=True)
class SourceDialogue:
    """A dialogue that begins with the user and ends with an answer."""

    id: str  # file, and the id or the number of the row in it
    language: str  # see `language_of`
    rounds: tuple[Round, ...]

    @property
    def part(self) -> float:
        """Its position in [0, 1): dialogues with the same opening are in the same split."""
        return part_of(" ".join(self.rounds[0][0][0].text.lower().split()))


def source_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Name → file, of all JSONL files that `paths` are or contain; of a folder of sources, those in `dialogues/`.

    Raises:
        UsageError: a path does not exist, or there is no file.
        BadData: two files have the same name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist; give files or folders with dialogues")
        folder = path / "dialogues" if (path / "dialogues").is_dir() else path
        files = [path] if path.is_file() else sorted(folder.rglob("*.jsonl*"))
        for file in files:
            if not file.name.endswith((".jsonl", ".jsonl.gz")):
                continue
            relative = file.name if path.is_file() else file.relative_to(folder).as_posix()
            name = relative.removesuffix(".gz").removesuffix(".jsonl")
            if name in found:
                raise BadData(f"{found[name]} and {file} are both called {name}; rename one of them")
            found[name] = file
    if not found:
        raise UsageError(f"no *.jsonl or *.jsonl.gz in {', '.join(map(str, paths))}")
    return found


def stream(
    files: Mapping[str, Path], *, seed: str, language: str | None = None, skipped: Counter[str]
) -> Iterator[SourceDialogue]:
    """All dialogues of `files`, mixed in an order that depends on `seed`; only a thousand are in memory.

    Args:
        language: that of all dialogues; None: found by their words.
        skipped: counts what cannot be used, by reason.

    Raises:
        BadData: a file cannot be read.
    """
    rng = random.Random(seed)
    readers = {name: _read(name, path, language, skipped) for name, path in files.items()}
    sizes = {name: path.stat().st_size * (_GZIPPED if path.suffix == ".gz" else 1) for name, path in files.items()}
    buffer: list[SourceDialogue] = []
    while readers:
        names = list(readers)
        name = rng.choices(names, [sizes[name] + 1 for name in names])[0]
        found = next(readers[name], None)
        if found is None:
            del readers[name]
        elif len(buffer) < _BUFFER:
            buffer.append(found)
        else:
            at = rng.randrange(_BUFFER)
            buffer[at], found = found, buffer[at]
            yield found
    rng.shuffle(buffer)
    yield from buffer


def _read(name: str, path: Path, language: str | None, skipped: Counter[str]) -> Iterator[SourceDialogue]:
    def skip(reason: str) -> None:
        skipped["a line that is not a JSON object"] += 1

    for number, row in read_rows(path, skip=skip):
        turns = list(_turns(row, skipped))
        rounds = tuple(_rounds(turns))
        if not rounds:
            skipped["no user turn with an answer"] += 1
            continue
        own = row.get("id")
        words = " ".join(turn.text for turn in turns)
        yield SourceDialogue(
            f"{name}/{own if isinstance(own, str | int) and own != '' else number}",
            language or language_of(words),
            rounds,
        )


def _turns(row: Mapping[str, Any], skipped: Counter[str]) -> Iterator[SourceTurn]:
    """The turns of a row up to the first that cannot be used; empty ones are left out.

    They are in `turns` or `messages`, with their words in `text` or `content`.
    """
    turns = row.get("turns", row.get("messages"))
    if not isinstance(turns, list):
        skipped["no list of turns"] += 1
        return
    for index, turn in enumerate(turns):
        text = turn.get("text", turn.get("content")) if isinstance(turn, dict) else None
        if not isinstance(text, str):
            skipped["a turn without text, and all after it"] += 1
            return
        if turn.get("role") == "system":
            continue
        role = _ROLES.get(turn.get("role") if isinstance(turn.get("role"), str) else "")
        if role is None:
            skipped["a turn of an unknown role, and all after it"] += 1
            return
        if len(text) > MAX_TURN:
            skipped[f"a turn of more than {MAX_TURN} characters, and all after it"] += 1
            return
        if text.strip():
            yield SourceTurn(role, text, index)
        else:
            skipped["an empty turn"] += 1


def _rounds(turns: Iterable[SourceTurn]) -> Iterator[Round]:
    """Consecutive turns of the same side belong together. An answer before the first question is left out."""
    asked: list[SourceTurn] = []
    answer: list[SourceTurn] = []
    for turn in turns:
        if turn.role is Role.USER and answer:
            yield tuple(asked), tuple(answer)
            asked, answer = [], []
        if turn.role is Role.USER:
            asked.append(turn)
        elif asked:
            answer.append(turn)
    if answer:
        yield tuple(asked), tuple(answer)
