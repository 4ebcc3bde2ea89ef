"""Lines written for this package, of kinds that corpora of queries and of talk lack: `english.txt`, `mandarin.txt`."""

import random
import re
from functools import cache
from importlib import resources

from duologue.data import mandarin
from duologue.data.forms import is_unspaced, join

FILES = {"en": "english.txt", "zh": "mandarin.txt"}
"""By language."""

FILLERS = ("uh", "um", "uh", "um", "er", "hmm")
"""Said between words; repeated entries are more frequent."""

GREETING = {"en": "Hello, I need some help.", "zh": "你好，我需要帮忙。"}
"""By language: said where it is not known what the user said first."""

_FILLERS = {"en": FILLERS, "zh": ("嗯", "呃", "那个", "嗯", "这个")}
_BEFORE_REPAIR = {"en": ("uh", "um", "oh", "er", "no"), "zh": ("呃", "嗯", "哦", "啊", "不")}

OPEN_NOISES = frozenset(
    {"um", "uh", "so", "well", "like", "you know", "and so", "but um", "yeah um", "uh yeah", "er", "呃", "那个", "然后",
     "就是", "那么", "但是呃"}
)  # fmt: skip
"""Noises of a listener after which more may follow, so that waiting is right too."""


PAUSES = frozenset(
    {"hold on", "hold it", "hang on", "hang on a second", "wait", "wait wait", "wait a minute", "wait a second",
     "one moment", "one second", "just a second", "give me a second", "pause", "pause please", "pause there",
     "pause for a moment", "hold that thought", "whoa hold on", "not now", "等等", "等一下", "等会儿", "等一等", "稍等",
     "稍等一下", "先等等", "先等一下", "你先等一下", "暂停", "暂停一下", "先暂停", "先停一下", "慢着", "且慢", "打住"}
)  # fmt: skip
"""Stop lines that ask for a pause: over an answer it must pause; in silence the speaker asks for a moment."""


@cache
def sections(language: str = "en") -> dict[str, tuple[str, ...]]:
    """Section → its lines."""
    return parse((resources.files("duologue.data") / FILES[language]).read_text(encoding="utf-8"))


def parse(text: str) -> dict[str, tuple[str, ...]]:
    """Section → its lines, of a file in which `[name]` begins a section and `#` a comment."""
    _, *parts = re.split(r"^\[(\w+)\]$", re.sub(r"^#.*", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    bodies = zip(parts[::2], parts[1::2], strict=True)
    return {name: tuple(line.strip() for line in body.splitlines() if line.strip()) for name, body in bodies}


def lines(name: str, language: str = "en") -> tuple[str, ...]:
    """The lines of a section, with unfilled slots."""
    return sections(language)[name]


def unseen(language: str = "en") -> list[str]:
    """The lines of the test alone, questions and replies apart."""
    found = [line for name, section in sections(language).items() if name.startswith("unseen_") for line in section]
    return [part.strip() for line in found for part in line.split("|")]


def fill(template: str, rng: random.Random, language: str = "en") -> str:
    """`template` with a random entry in each `{slot}`; `{topic2}` is a second draw from `topic`."""
    return re.sub(r"\{([a-z]+)2?\}", lambda match: rng.choice(lines(f"slot_{match[1]}", language)), template)


def stop_phrase(core: str, rng: random.Random, language: str = "en") -> str:
    """`core` with words that people put around it."""
    if rng.random() < 0.25:
        core = join([rng.choice(lines("stop_before", language)), core])
    if rng.random() < 0.25:
        core = join([core, rng.choice(lines("stop_after", language))])
    return core


def filler(language: str, rng: random.Random) -> str:
    """A hesitation."""
    return rng.choice(_FILLERS[language])


def hesitant(text: str, rng: random.Random) -> str:
    """`text` with a filler between two of its words; in Mandarin also in front of them."""
    if is_unspaced(text):
        at = mandarin.hesitation_at(text)
        return text[:at] + filler("zh", rng) + text[at:]
    parts = text.split(" ")
    at = rng.randint(1, max(1, len(parts) - 1))
    return " ".join([*parts[:at], rng.choice(FILLERS), *parts[at:]])


def repaired(head: list[str], tail: list[str], other: list[str], rng: random.Random, language: str = "en") -> str:
    """A request with a self-correction: `head`, a few words of `other`, a repair, and then `tail`."""
    if is_unspaced("".join(other)):
        size, at = rng.choice((2, 4)), 0  # many words have two characters
    else:
        size = rng.randint(1, min(5, len(other)))
        at = rng.choice((0, rng.randint(0, len(other) - size)))  # from the start of another request, or from within
    repair = rng.choice(lines("repairs", language))
    if rng.random() < 0.25:
        repair = join([rng.choice(_BEFORE_REPAIR[language]), repair])
    return join([*head, *other[at : at + size], repair, *tail])
