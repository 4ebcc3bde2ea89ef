"""What a session tells: facts in the past tense, frozen, in the order in which they happened."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from duologue.errors import BadData
from duologue.types import InputState, Role, Turn


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy concluded from one probe."""

    state: InputState
    p: float  # probability of `state` among the watched states
    probabilities: tuple[tuple[InputState, float], ...]  # of all watched states


@dataclass(frozen=True, slots=True)
class Event:
    """A fact. `at` is the session's time in seconds."""

    at: float


@dataclass(frozen=True, slots=True)
class Received(Event):
    """Words of an utterance came in; `text` is all of it so far."""

    utterance: str
    text: str
    final: bool


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """Something was not done; nothing else changed. `what` is an utterance's id or a command's name."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decided(Event):
    """The model judged the words of the input channel."""

    utterance: str
    text: str
    decision: Decision
    speaking: bool  # whether the user was hearing an answer
    heard_at: float  # session time at which these words had come in: `at - heard_at` is the decision latency


@dataclass(frozen=True, slots=True)
class Held(Event):
    """Incomplete: the input waits for more words. `deferred`: it waits for an answer that may not be interrupted."""

    utterance: str
    deferred: bool


@dataclass(frozen=True, slots=True)
class Dropped(Event):
    """Words were given up; `reason` is ignore, stop, patience, retracted, too long, no room, edit or deaf."""

    utterance: str
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Promoted(Event):
    """The input channel became the output channel of `answer`. `text` is the whole user turn."""

    utterance: str
    text: str
    answer: int


@dataclass(frozen=True, slots=True)
class Released(Event):
    """A prepared answer may be heard from now on."""

    answer: int


@dataclass(frozen=True, slots=True)
class Said(Event):
    """Text of a released answer; it starts at character `start` of the answer."""

    answer: int
    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Heard(Event):
    """The user has heard the answer up to character `position` (whole words)."""

    answer: int
    position: int


@dataclass(frozen=True, slots=True)
class TakenBack(Event):
    """An answer of which nothing had been heard was rolled back: its turn goes on."""

    answer: int


@dataclass(frozen=True, slots=True)
class Withdrawn(Event):
    """An answer of which nothing had been heard was freed, and its user turn with it."""

    answer: int


@dataclass(frozen=True, slots=True)
class Suspended(Event):
    """An answer was cut; it can be resumed. `heard` and `unheard` are its text before and after the cut."""

    answer: int
    heard: str
    unheard: str


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """A suspended answer goes on as `answer`: on its own KV (`exact`), or replayed on the live branch."""

    answer: int
    suspended: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The model ended its answer (`stop`), or it met a limit (`length`). It may not have been heard to the end."""

    answer: int
    reason: str


@dataclass(frozen=True, slots=True)
class Committed(Event):
    """An answer was finished and heard to the end: its turn is history."""

    answer: int
    text: str


@dataclass(frozen=True, slots=True)
class Trimmed(Event):
    """The oldest turns were left out to make room; suspended answers were released."""

    turns_dropped: int
    length: int  # tokens of the rebuilt context


@dataclass(frozen=True, slots=True)
class Edited(Event):
    """The history was replaced."""

    history: tuple[Turn, ...]


def as_dict(event: Event) -> dict[str, Any]:
    """`event` as plain values for JSON: `at`, `type` (`taken_back` for `TakenBack`), then its own fields."""
    out: dict[str, Any] = {"at": round(event.at, 6), "type": _type_name(type(event))}
    for field in fields(event):
        if field.name == "at":
            continue
        value = getattr(event, field.name)
        if isinstance(value, Decision):
            out["state"] = str(value.state)
            out["p"] = round(value.p, 6)
            out["probabilities"] = {str(state): round(p, 6) for state, p in value.probabilities}
        elif isinstance(value, tuple):
            out[field.name] = [{"role": str(turn.role), "text": turn.text} for turn in value]
        else:
            out[field.name] = round(value, 6) if isinstance(value, float) else value
    return out


def from_dict(row: Mapping[str, Any]) -> Event | None:
    """The event that `as_dict` wrote; None if there is no event of that type. Fields it does not have are passed over.

    Raises:
        BadData: a field is missing or not what it should be.
    """
    kind = EVENT_TYPES.get(str(row.get("type")))
    if kind is None:
        return None
    try:
        values = {field.name: _value(field.name, field.type, row) for field in fields(kind)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadData(f"this is no event of type {row['type']}: {type(error).__name__}: {error}") from error
    return kind(**values)


def _value(name: str, kind: Any, row: Mapping[str, Any]) -> Any:
    if kind is Decision:
        probabilities = tuple((InputState(state), float(p)) for state, p in row["probabilities"].items())
        return Decision(InputState(row["state"]), float(row["p"]), probabilities)
    value = row[name]
    if kind not in (float, str, int, bool):
        return tuple(Turn(Role(turn["role"]), _checked(turn["text"], str)) for turn in value)
    return float(_checked(value, (int, float))) if kind is float else _checked(value, kind)


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{value!r:.60} is not of the type that it should be")
    return value


def _type_name(kind: type[Event]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


EVENT_TYPES: dict[str, type[Event]] = {_type_name(kind): kind for kind in Event.__subclasses__()}
"""Every kind of event by the name that it has in JSON."""


class EventLog:
    """Collects what happens in a session, for all its parts. `now` is the session's time in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[Event] = []

    def add(self, event: Event) -> None:
        """`event` has happened."""
        self._events.append(event)

    def drain(self) -> list[Event]:
        """All events since the last call, in order."""
        events, self._events = self._events, []
        return events
