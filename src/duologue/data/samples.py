"""A labelled sample: what was heard, where, and what the model should decide. One JSON object per line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from duologue.data.jsonl import read_rows
from duologue.errors import BadData
from duologue.types import InputState, Role, Turn

T = TypeVar("T", str, bool, list[Any])

_DEFAULTS: dict[str, Any] = {
    "kind": "", "accept": [], "context": [], "speaking": False, "system": None, "response": "",
}  # fmt: skip
"""Fields that a line may leave out."""

_TYPES = {str: "a string", list: "a list", bool: "true or false"}


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

    @property
    def right(self) -> frozenset[InputState]:
        """All states that count as right."""
        return frozenset((self.state, *self.accept))

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
