"""Labelled samples: what was heard, where, and what the model should decide; and which of them repeat another.

A file has one JSON object per line. The same words may occur in many contexts, and "yeah" may answer the assistant's
question but mean nothing over its speech. So words are duplicates only after the same context, and contradictions only
behind the same last turn of the assistant. The first label given to words in a place wins.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from duologue.data import forms
from duologue.data.jsonl import read_rows
from duologue.errors import BadData
from duologue.types import InputState, Role, Turn

T = TypeVar("T", str, bool, list[Any])

_DEFAULTS: dict[str, Any] = {
    "kind": "", "accept": [], "context": [], "speaking": False, "system": None, "response": "", "ends": None,
}  # fmt: skip
"""Fields that a line may leave out."""

_TYPES = {str: "a string", list: "a list", bool: "true or false"}

MIN_CONTENT_WORDS = 4
"""Texts with fewer content words are never near duplicates ("please stop", "can you stop")."""

_CONTENT_FUNCTION_WORDS = forms.word_set("what who where when why how which no don't doesn't can't won't without")
"""Function words that count as content: with another of them, it is another question."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The words heard so far, and the state they are in."""

    text: str  # the words, as they would be heard or typed
    state: InputState
    source: str  # corpus of the words; splits and tables are by source
    kind: str = ""  # type of the case, for tables
    accept: tuple[InputState, ...] = ()  # other states that count as right
    context: tuple[Turn, ...] = ()  # committed turns before the words, user and assistant alternating
    speaking: bool = False  # the last turn of `context` is a running answer, cut where the user has heard it
    system: str | None = None  # system prompt; None is the template's own
    response: str = ""  # the assistant's answer to words that are to be processed; "" if unknown
    ends: bool | None = None  # whether the speaker's turn ends with these words; None: unknown, not learned from

    @property
    def right(self) -> frozenset[InputState]:
        """All states that count as right."""
        return frozenset((self.state, *self.accept))

    @property
    def is_asked(self) -> bool:
        """Whether the assistant has just asked something, and waits."""
        return not self.speaking and bool(self.context) and forms.asks(self.context[-1].text)

    def to_json(self) -> dict[str, Any]:
        """One line of a sample file; default values are left out."""
        row = {**asdict(self), "accept": list(self.accept), "context": [asdict(turn) for turn in self.context]}
        return {name: value for name, value in row.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Sample":
        """The sample of one line. Raises `BadData` that says what is wrong with it."""
        row = {**_DEFAULTS, **row}
        try:
            return cls(
                text=_checked(row, "text", str),
                state=InputState(row["state"]),
                source=_checked(row, "source", str),
                kind=_checked(row, "kind", str),
                accept=tuple(InputState(state) for state in _checked(row, "accept", list)),
                context=tuple(_turn(turn) for turn in _checked(row, "context", list)),
                speaking=_checked(row, "speaking", bool),
                system=None if row["system"] is None else _checked(row, "system", str),
                response=_checked(row, "response", str),
                ends=None if row["ends"] is None else _checked(row, "ends", bool),
            )
        except KeyError as error:
            raise BadData(f"a sample has no field {error}; it needs text, state and source") from None
        except (ValueError, TypeError) as error:
            raise BadData(f"a sample cannot be read: {error}; states are {[s.value for s in InputState]}") from None


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a JSONL file, one by one. Raises `BadData` that names the line."""
    for number, row in read_rows(path):
        try:
            yield Sample.from_json(row)
        except BadData as error:
            raise BadData(f"{path}, line {number}: {error}") from None


def write_samples(path: Path, samples: Iterable[Sample]) -> int:
    """Write samples as JSONL; returns their number."""
    num_samples = 0
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(sample.to_json(), ensure_ascii=False) + "\n")
            num_samples += 1
    return num_samples


def _checked(row: Mapping[str, Any], field: str, kind: type[T]) -> T:
    value = row[field]
    if not isinstance(value, kind):
        raise TypeError(f"{field} must be {_TYPES[kind]}, got {type(value).__name__}")
    return value


def _turn(row: Any) -> Turn:
    if not isinstance(row, dict) or not {"role", "text"} <= row.keys():
        raise TypeError("a turn of context needs role and text")
    return Turn(Role(row["role"]), _checked(row, "text", str))


class DuplicateKind(StrEnum):
    """Why a sample is not kept."""

    EXACT = "exact duplicate"  # the same words after the same context
    NEAR = "near duplicate"  # the same content words, state and context; other order, function words or form
    CONFLICT = "another label"  # the same words have another state in this place, and neither accepts the other


class Duplicates:
    """Remembers the samples kept so far. Texts are not kept, only their hashes."""

    def __init__(self) -> None:
        self._fixed: dict[bytes, tuple[InputState, Collection[InputState]]] = {}  # state and accepted states
        self._labels: dict[bytes, tuple[InputState, Collection[InputState]]] = {}
        self._kept: set[bytes] = set()

    def claim(self, text: str, state: InputState, accept: Collection[InputState] = ()) -> None:
        """Fix the label of words wherever they are said, but behind a question of the assistant."""
        self._fixed.setdefault(_key(forms.spoken(text)), (state, accept))

    def admit(self, sample: Sample) -> DuplicateKind | None:
        """Why `sample` must not be kept; None if it is kept, and remembered."""
        text = forms.spoken(sample.text)
        prefix = "\x1f".join([str(sample.system), *(f"{turn.role.value}\x1f{turn.text}" for turn in sample.context)])
        place = _key("label", sample.speaking, sample.context[-1].text if sample.context else "", text)
        mine = sample.state, sample.accept
        fixed = mine if sample.is_asked else self._fixed.get(_key(text), mine)
        for state, accept in (fixed, self._labels.get(place, mine)):
            if state not in sample.right and sample.state not in accept:
                return DuplicateKind.CONFLICT
        exact = _key("exact", sample.speaking, prefix, text)
        if exact in self._kept:
            return DuplicateKind.EXACT
        content = content_words(text)
        if len(content) >= MIN_CONTENT_WORDS:
            near = _key("near", sample.speaking, prefix, sample.state.value, *sorted(content))
            if near in self._kept:
                return DuplicateKind.NEAR
            self._kept.add(near)
        self._kept.add(exact)
        self._labels.setdefault(place, mine)
        return None


def content_words(spoken: str) -> frozenset[str]:
    """The words of a text in normal form that distinguish it from other texts."""
    return frozenset(forms.words(spoken)) - (forms.FUNCTION_WORDS - _CONTENT_FUNCTION_WORDS)


def _key(*parts: object) -> bytes:
    return hashlib.blake2b("\x1e".join(map(str, parts)).encode(), digest_size=8).digest()
