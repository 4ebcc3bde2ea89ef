"""The lines with which a user interrupts, and an assistant goes on: one file per language, in `lines/`.

A file has sections; see `SECTIONS`. In a line, `{turn}` is the user's turn that follows, `{topic}` is what it is about,
and `{statement}` is the sentence that was asked about.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from duologue.data.phrases import parse
from duologue.errors import BadData

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "terminate": ("turn",),  # the user has heard enough, and goes on
    "stop": (),  # the user has heard enough, and says nothing else
    "regenerate": ("turn",),  # the user says again what they want
    "reset": ("turn",),  # the user wants something else
    "ask_again": (),  # the user has not understood the last sentence
    "say_again": ("statement",),  # the assistant says it again
    "go_back": (),  # the assistant goes on where it was
}
"""Name of a section → what each of its lines must contain."""

_OPTIONAL = {"reset": {"topic"}}
_SLOT = re.compile(r"\{(\w+)\}")
_TOPIC = {
    "en": re.compile(r"\b(?:about|regarding)\s+((?:[\w'’-]+\s+){0,4}[\w'’-]+)\s*[.?!]*\s*$"),
    "zh": re.compile(r"关于([^，。？！,.?!]{1,12}?)(?:的|，|。|？|$)"),
}
_GREETING = {
    "en": re.compile(
        r"^\s*(?:(?:hi|hello|hey|good (?:morning|afternoon|evening))(?: there)?)\b[\s,.!]*", re.IGNORECASE
    ),
    "zh": re.compile(r"^\s*(?:你好|您好|嗨|哈喽)[\s，,。！!]*"),
}


@dataclass(frozen=True, slots=True)
class Transitions:
    """The lines of one language."""

    language: str
    sections: Mapping[str, tuple[str, ...]]

    def topic(self, turn: str) -> str | None:
        """What `turn` is about, where its form says so."""
        pattern = _TOPIC.get(self.language)
        found = pattern.search(turn) if pattern else None
        return found[1] if found else None

    def without_greeting(self, turn: str) -> str:
        """`turn` without a greeting before it: nobody greets in the middle of a dialogue."""
        pattern = _GREETING.get(self.language)
        return (pattern.sub("", turn) if pattern else turn).strip() or turn.strip()

    def lines(self, section: str, turn: str = "") -> tuple[str, ...]:
        """The lines of a section that suit `turn`."""
        has_topic = self.topic(turn) is not None
        return tuple(line for line in self.sections[section] if has_topic or "{topic}" not in line)


def shipped() -> dict[str, Transitions]:
    """Language → its transitions, of the files that come with the package."""
    folder = resources.files("duologue.data.duplex") / "lines"
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(".txt"))
    return {name[:-4]: _parsed(name[:-4], (folder / name).read_text(encoding="utf-8"), name) for name in files}


def read(path: Path) -> Transitions:
    """The transitions in a file of the user's; its name is the language ("de.txt").

    Raises:
        BadData: the file cannot be read, or a section or a slot is missing.
    """
    try:
        return _parsed(path.stem, path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read: {error}") from None


def _parsed(language: str, text: str, name: str) -> Transitions:
    sections = parse(text)
    for section, slots in SECTIONS.items():
        lines = sections.get(section, ())
        if not lines:
            raise BadData(f"{name} has no lines in [{section}]; it needs {', '.join(f'[{one}]' for one in SECTIONS)}")
        for line in lines:
            found = set(_SLOT.findall(line)) - _OPTIONAL.get(section, set())
            if found != set(slots):
                expected = " and ".join(f"{{{slot}}}" for slot in slots) or "no slot"
                raise BadData(f"{name}, [{section}]: {line!r} must contain {expected}")
    return Transitions(language, sections)
