"""What a session reports: facts in the past tense, in the order in which they happened."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from duologue.errors import BadData
from duologue.types import InputState, Role, Turn


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy concluded from one probe."""

    state: InputState
    p: float  # probability of `state` among the watched states
    probabilities: tuple[tuple[InputState, float], ...]  # of all watched states
    p_ends: float | None = None  # probability that the speaker's turn ends here; None: the adapter does not say

    def as_incomplete(self) -> "Decision":
        """The same probabilities, with the decision to wait."""
        return replace(self, state=InputState.INCOMPLETE, p=dict(self.probabilities)[InputState.INCOMPLETE])


@dataclass(frozen=True, slots=True)
class Event:
    """A fact. `at` is the session's time in seconds."""

    at: float


@dataclass(frozen=True, slots=True)
class UtteranceEvent(Event):
    """Something happened to words being heard. `utterance` is the id of the newest utterance in them."""

    utterance: str


@dataclass(frozen=True, slots=True)
class AnswerEvent(Event):
    """Something happened to an answer. `answer` is its id."""

    answer: int


@dataclass(frozen=True, slots=True)
class Received(UtteranceEvent):
    """Words of an utterance were received. `text` is all of it so far. A text that is too long is refused instead."""

    text: str
    final: bool


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """Something was refused and changed nothing. `what` is the id of an utterance or the name of a command."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decided(UtteranceEvent):
    """The state of the words in the input channel was read, and a decision was made."""

    text: str
    decision: Decision
    speaking: bool  # whether the user was hearing an answer
    heard_at: float  # session time when these words were received: `at - heard_at` is the decision latency


@dataclass(frozen=True, slots=True)
class Held(UtteranceEvent):
    """The input waits for more words, or, if `deferred`, until it can be answered."""

    deferred: bool


@dataclass(frozen=True, slots=True)
class Dropped(UtteranceEvent):
    """Words were dropped. `reason` is ignore, stop, patience, retracted, no words, echo, too long, no room, edit or
    deaf.

    If a text was refused as too long, `text` is its beginning, or the part that had been received before.
    """

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Promoted(UtteranceEvent):
    """The input channel became the output channel of `answer`. `text` is the whole user turn."""

    text: str
    answer: int


@dataclass(frozen=True, slots=True)
class Released(AnswerEvent):
    """A prepared answer may be heard from now on."""


@dataclass(frozen=True, slots=True)
class Thought(AnswerEvent):
    """A reasoning model thought before it answered: text of the thought, from its character `start` on.

    It is no part of the answer or of the history, and not meant for the user.
    """

    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Said(AnswerEvent):
    """Text of a released answer, from its character `start` on."""

    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Heard(AnswerEvent):
    """The user has heard the answer up to character `position`, the end of a word."""

    position: int


@dataclass(frozen=True, slots=True)
class TakenBack(AnswerEvent):
    """An answer of which nothing had been heard was rolled back, because its turn continues."""


@dataclass(frozen=True, slots=True)
class Withdrawn(AnswerEvent):
    """An answer of which nothing had been heard was rolled back, and its user turn with it."""


@dataclass(frozen=True, slots=True)
class Suspended(AnswerEvent):
    """An answer was cut; it can be resumed. `heard` and `unheard` are its text before and after the cut."""

    heard: str
    unheard: str


@dataclass(frozen=True, slots=True)
class Resumed(AnswerEvent):
    """A suspended answer continues as `answer`: with its own KV (`exact`), or replayed as a new turn."""

    suspended: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Finished(AnswerEvent):
    """The model ended its answer (`stop`), it reached a limit (`length`), or the speaker failed (`failed`).

    Some of it may still be unheard.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Failed(AnswerEvent):
    """The speaker elsewhere could not give the answer, or not all of it, for `reason`, which is for people.

    If nothing of it had come, it is `unanswered`: the user's turn stays in the history. Otherwise the answer ends here.
    """

    reason: str
    unanswered: bool


@dataclass(frozen=True, slots=True)
class Noticed(AnswerEvent):
    """A speaker elsewhere tells people about its answer: that it is late, or that it is asked for in another way."""

    text: str


@dataclass(frozen=True, slots=True)
class Committed(AnswerEvent):
    """An answer was finished and heard to its end: its turn is now part of the history."""

    text: str


@dataclass(frozen=True, slots=True)
class Trimmed(Event):
    """The oldest turns were left out to make room; suspended answers were given up."""

    turns_dropped: int
    length: int  # tokens of the compacted context


@dataclass(frozen=True, slots=True)
class Edited(Event):
    """The history was replaced."""

    history: tuple[Turn, ...]


def as_dict(event: Event) -> dict[str, Any]:
    """`event` as JSON values: `at`, `type` (`taken_back` for `TakenBack`), then its own fields."""
    out: dict[str, Any] = {"at": round(event.at, 6), "type": _type_name(type(event))}
    for field in fields(event)[1:]:
        value = getattr(event, field.name)
        if isinstance(value, Decision):
            out["state"] = str(value.state)
            out["p"] = round(value.p, 6)
            out["probabilities"] = {str(state): round(p, 6) for state, p in value.probabilities}
            if value.p_ends is not None:
                out["p_ends"] = round(value.p_ends, 6)
        elif isinstance(value, tuple):
            out[field.name] = [{"role": str(turn.role), "text": turn.text} for turn in value]
        else:
            out[field.name] = round(value, 6) if isinstance(value, float) else value
    return out


def from_dict(row: Mapping[str, Any]) -> Event | None:
    """The event that `as_dict` wrote; None if its type is unknown. Unknown fields are ignored.

    Raises:
        BadData: a field is missing or has a wrong type.
    """
    kind = EVENT_TYPES.get(str(row.get("type")))
    if kind is None:
        return None
    try:
        values = {field.name: _value(field.name, field.type, row) for field in fields(kind)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadData(f"not a valid event of type {row['type']}: {type(error).__name__}: {error}") from error
    return kind(**values)


def _value(name: str, kind: Any, row: Mapping[str, Any]) -> Any:
    if kind is Decision:
        probabilities = tuple((InputState(state), float(p)) for state, p in row["probabilities"].items())
        p_ends = row.get("p_ends")
        return Decision(
            InputState(row["state"]), float(row["p"]), probabilities, None if p_ends is None else float(p_ends)
        )
    value = row[name]
    if kind not in (float, str, int, bool):
        return tuple(Turn(Role(turn["role"]), _checked(turn["text"], str)) for turn in value)
    return float(_checked(value, (int, float))) if kind is float else _checked(value, kind)


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{value!r:.60} has the wrong type")
    return value


def _type_name(kind: type[Event]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


EVENT_TYPES: dict[str, type[Event]] = {
    _type_name(kind): kind
    for group in (Event, UtteranceEvent, AnswerEvent)
    for kind in group.__subclasses__()
    if not kind.__name__.endswith("Event")
}
"""Every kind of event, by its name in JSON."""


class EventLog:
    """Collects the events of all parts of a session. `now` is the session's time in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[Event] = []

    def add(self, event: Event) -> None:
        """Append `event`."""
        self._events.append(event)

    def drain(self) -> list[Event]:
        """All events since the last call, in order."""
        events, self._events = self._events, []
        return events
