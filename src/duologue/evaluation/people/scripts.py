"""What the user says in a study: the papers' recipe (DUO, section 3.2).

Fifteen examples of three to seven turns. A turn is cut into slices of four to six words, one every two seconds, and
between two turns there are three to ten empty slices.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from duologue.data.duplex.dialogues import source_files, stream
from duologue.data.jsonl import read_rows
from duologue.errors import UsageError
from duologue.text.slicing import partials
from duologue.text.words import join, words_of
from duologue.types import SLICE_PERIOD_S

NUM_EXAMPLES = 15
TURNS = (3, 7)
IDLE_SLICES = (3, 10)
MAX_WORDS = 40
"""Words of a turn. A dialogue is used up to a longer one."""

EXAMPLES = Path(__file__).with_name("examples.jsonl")
"""Fifteen examples that were written for this package; in some, a turn is meant for somebody else."""


@dataclass(frozen=True, slots=True)
class Example:
    """The user's side of a conversation."""

    name: str
    turns: tuple[str, ...]
    source: str  # where the words are from


def own_examples(num: int = NUM_EXAMPLES) -> list[Example]:
    """The first `num` examples of the package."""
    rows = [row for _, row in read_rows(EXAMPLES)][:num]
    return [Example(row["id"], tuple(row["say"]), "written for Duologue") for row in rows]


def from_dialogues(paths: Sequence[Path], *, num: int = NUM_EXAMPLES, seed: int) -> list[Example]:
    """The user's side of `num` dialogues, each cut to a random number of turns.

    Raises:
        UsageError: there are fewer dialogues that can be used; the message says why others cannot.
        BadData: a file cannot be read.
    """
    skipped: Counter[str] = Counter()
    chance = random.Random(seed)
    found: list[Example] = []
    for dialogue in stream(source_files(paths), seed=str(seed), skipped=skipped):
        turns = []
        for asked, _ in dialogue.rounds:
            words = words_of(" ".join(turn.text for turn in asked))
            if len(words) > MAX_WORDS:
                break
            turns.append(join(words))
        if len(turns) < TURNS[0]:
            skipped[f"fewer than {TURNS[0]} turns of at most {MAX_WORDS} words"] += 1
            continue
        num_turns = chance.randint(TURNS[0], min(TURNS[1], len(turns)))
        found.append(Example(f"example-{len(found) + 1:02}", tuple(turns[:num_turns]), dialogue.id))
        if len(found) == num:
            return found
    reasons = "; ".join(f"{count} × {reason}" for reason, count in skipped.most_common())
    raise UsageError(f"{len(found)} dialogues can be used, and {num} are needed ({reasons or 'there are no more'})")


def write_scripts(folder: Path, examples: Iterable[Example], *, seed: int) -> None:
    """Write a script for `duologue replay` for each example. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    for example in examples:
        lines = [f"# {json.dumps(example.source, ensure_ascii=False)}"]
        at = 0.0
        for turn in example.turns:
            lines.append(json.dumps({"at": at, "say": turn}, ensure_ascii=False))
            num_slices = len(partials(turn, seed=len(lines)))  # as `read_script` cuts this line
            at += SLICE_PERIOD_S * (num_slices + chance.randint(*IDLE_SLICES))
        (folder / f"{example.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
