"""A labelled sample: what was heard, where, and what the model should conclude from it. One JSON object a line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.data.jsonl import read_rows
from duologue.errors import BadData
from duologue.types import InputState, Role, Turn


@dataclass(frozen=True, slots=True)
class Sample:
    """Words heard so far and the state they are in."""

    text: str  # the words, in the form in which they would be heard or typed
    state: InputState
    source: str  # the corpus the words come from; splits and tables are by source
    kind: str = ""  # what sort of case it is, for tables
    accept: tuple[InputState, ...] = ()  # states that would be right too
    context: tuple[Turn, ...] = ()  # committed turns before the words, user and assistant in turn
    speaking: bool = False  # the last turn of `context` is a running answer, cut at what the user has heard
    system: str | None = None  # system prompt; None is the template's own
    response: str = ""  # what the assistant answers to words that are to be processed; "" where nobody knows

    @property
    def right(self) -> frozenset[InputState]:
        """Every state that counts as right."""
        return frozenset((self.state, *self.accept))

    def to_json(self) -> dict[str, Any]:
        """As one line of a sample file; what has its default is left out."""
        row: dict[str, Any] = {"text": self.text, "state": self.state.value, "source": self.source}
        if self.kind:
            row["kind"] = self.kind
        if self.accept:
            row["accept"] = [state.value for state in self.accept]
        if self.context:
            row["context"] = [{"role": turn.role.value, "text": turn.text} for turn in self.context]
        if self.speaking:
            row["speaking"] = True
        if self.system is not None:
            row["system"] = self.system
        if self.response:
            row["response"] = self.response
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Sample":
        """From one row. Raises `BadData` that says what is wrong with it."""
        try:
            return cls(
                text=_string(row, "text"),
                state=InputState(row["state"]),
                source=_string(row, "source"),
                kind=_string(row, "kind") if "kind" in row else "",
                accept=tuple(InputState(state) for state in _list(row, "accept")),
                context=tuple(_turn(turn) for turn in _list(row, "context")),
                speaking=_bool(row, "speaking"),
                system=None if row.get("system") is None else _string(row, "system"),
                response=_string(row, "response") if "response" in row else "",
            )
        except KeyError as error:
            raise BadData(f"a sample has no field {error}; it needs text, state and source") from None
        except (ValueError, TypeError) as error:
            raise BadData(f"a sample cannot be read: {error}; states are {[s.value for s in InputState]}") from None


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a JSONL file, one by one. Raises `BadData` naming the line."""
    for number, row in read_rows(path):
        try:
            yield Sample.from_json(row)
        except BadData as error:
            raise BadData(f"{path}, line {number}: {error}") from None


def write_samples(path: Path, samples: Iterable[Sample]) -> int:
    """Write samples as JSONL; returns how many."""
    num_samples = 0
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(sample.to_json(), ensure_ascii=False) + "\n")
            num_samples += 1
    return num_samples


def _string(row: Mapping[str, Any], field: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise TypeError(f"{field} is {type(value).__name__}, not a string")
    return value


def _list(row: Mapping[str, Any], field: str) -> list[Any]:
    value = row.get(field, [])
    if not isinstance(value, list):
        raise TypeError(f"{field} is {type(value).__name__}, not a list")
    return value


def _turn(row: Any) -> Turn:
    if not isinstance(row, dict) or not {"role", "text"} <= row.keys():
        raise TypeError("a turn of context needs role and text")
    return Turn(Role(row["role"]), _string(row, "text"))


def _bool(row: Mapping[str, Any], field: str) -> bool:
    value = row.get(field, False)
    if not isinstance(value, bool):
        raise TypeError(f"{field} is {value!r}, not true or false")
    return value
