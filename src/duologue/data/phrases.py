"""Lines written for this package (`english.txt`), of kinds that corpora of queries and of talk lack."""

import random
import re
from functools import cache
from importlib import resources

FILLERS = ("uh", "um", "uh", "um", "er", "hmm")
"""Said between words; repeated entries are more frequent."""

OPEN_NOISES = frozenset({"um", "uh", "so", "well", "like", "you know", "and so", "but um", "yeah um", "uh yeah", "er"})
"""Noises of a listener after which more may follow, so that waiting is right too."""


PAUSES = frozenset(
    {"hold on", "hold it", "hang on", "hang on a second", "wait", "wait wait", "wait a minute", "wait a second",
     "one moment", "one second", "just a second", "give me a second", "pause", "pause please", "pause there",
     "pause for a moment", "hold that thought", "whoa hold on", "not now"}
)  # fmt: skip
"""Stop lines that ask for a pause: over an answer it must pause; in silence the speaker asks for a moment."""


@cache
def sections() -> dict[str, tuple[str, ...]]:
    """Section → its lines."""
    return parse((resources.files("duologue.data") / "english.txt").read_text(encoding="utf-8"))


def parse(text: str) -> dict[str, tuple[str, ...]]:
    """Section → its lines, of a file in which `[name]` begins a section and `#` a comment."""
    _, *parts = re.split(r"^\[(\w+)\]$", re.sub(r"^#.*", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    bodies = zip(parts[::2], parts[1::2], strict=True)
    return {name: tuple(line.strip() for line in body.splitlines() if line.strip()) for name, body in bodies}


def lines(name: str) -> tuple[str, ...]:
    """The lines of a section, with unfilled slots."""
    return sections()[name]


def unseen() -> list[str]:
    """The lines of the test alone, questions and replies apart."""
    found = [line for name, section in sections().items() if name.startswith("unseen_") for line in section]
    return [part.strip() for line in found for part in line.split("|")]


def fill(template: str, rng: random.Random) -> str:
    """`template` with a random entry in each `{slot}`; `{topic2}` is a second draw from `topic`."""
    return re.sub(r"\{([a-z]+)2?\}", lambda match: rng.choice(lines(f"slot_{match[1]}")), template)


def stop_phrase(core: str, rng: random.Random) -> str:
    """`core` with words that people put around it."""
    if rng.random() < 0.25:
        core = f"{rng.choice(lines('stop_before'))} {core}"
    if rng.random() < 0.25:
        core = f"{core} {rng.choice(lines('stop_after'))}"
    return core


def hesitant(text: str, rng: random.Random) -> str:
    """`text` with a filler between two of its words."""
    parts = text.split(" ")
    at = rng.randint(1, max(1, len(parts) - 1))
    return " ".join([*parts[:at], rng.choice(FILLERS), *parts[at:]])


def repaired(head: list[str], tail: list[str], other: list[str], rng: random.Random) -> str:
    """A request with a self-correction: `head`, a few words of `other`, a repair, and then `tail`."""
    size = rng.randint(1, min(5, len(other)))
    at = rng.choice((0, rng.randint(0, len(other) - size)))  # from the start of another request, or from within
    repair = rng.choice(lines("repairs"))
    if rng.random() < 0.25:
        repair = f"{rng.choice(('uh', 'um', 'oh', 'er', 'no'))} {repair}"
    return " ".join([*head, *other[at : at + size], repair, *tail])
