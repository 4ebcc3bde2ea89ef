"""What a client may send to `/v1/realtime`: the fields of each event, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from duologue.server.realtime.errors import Rejection


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an event from a client."""

    kind: type
    default: Any = None
    is_needed: bool = False


EVENTS: Mapping[str, Mapping[str, Field]] = {
    "session.update": {"session": Field(dict, is_needed=True)},
    "conversation.item.create": {"item": Field(dict, is_needed=True), "previous_item_id": Field(str)},
    "conversation.item.retrieve": {"item_id": Field(str, is_needed=True)},
    "conversation.item.delete": {"item_id": Field(str, is_needed=True)},
    "conversation.item.truncate": {
        "item_id": Field(str, is_needed=True),
        "content_index": Field(int, 0),
        "audio_end_ms": Field(int, is_needed=True),
    },
    "response.create": {"response": Field(dict)},
    "response.cancel": {"response_id": Field(str)},
    "input_audio_buffer.append": {"audio": Field(str, is_needed=True)},
    "input_audio_buffer.commit": {},
    "input_audio_buffer.clear": {},
    "output_audio_buffer.clear": {},
}
"""The client events of the protocol; each may have an `event_id`, which comes back in an error."""

EXTENSIONS: Mapping[str, Mapping[str, Field]] = {
    "input.text.append": {
        "text": Field(str, is_needed=True),
        "utterance": Field(str, "user"),
        "final": Field(bool, False),
    },
    "input.cancel": {"utterance": Field(str)},
    "playback.ack": {
        "item_id": Field(str),
        "response_id": Field(str),
        "played_chars": Field(int),
        "played_ms": Field(int),
    },
}
"""What is added with `?duplex=1`."""

_JSON = {str: "text", int: "a whole number", bool: "true or false", dict: "an object"}
MOST_ID = 128  # characters of an id that a client gives


def read(message: Mapping[str, Any], *, is_duplex: bool) -> dict[str, Any]:
    """The fields of an event. What it does not have is passed over.

    Raises:
        Rejection: there is no such event, or a field is missing or of another type.
    """
    kind = message["type"]
    fields = EVENTS.get(kind)
    if fields is None and kind in EXTENSIONS:
        if not is_duplex:
            raise Rejection(f"{kind} belongs to the duplex extension: connect to /v1/realtime?duplex=1", param="type")
        fields = EXTENSIONS[kind]
    if fields is None:
        known = ", ".join((*EVENTS, *(EXTENSIONS if is_duplex else ())))
        raise Rejection(f"there is no event {kind!r:.60}; there are {known}", param="type")
    return {name: _value(kind, name, item, message.get(name)) for name, item in fields.items()}


def _value(kind: str, name: str, item: Field, value: Any) -> Any:
    if value is None:
        if item.is_needed:
            raise Rejection(f'{kind} needs "{name}"', code="missing_required_parameter", param=name)
        return item.default
    if item.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, item.kind) or (isinstance(value, bool) and item.kind is not bool):
        raise Rejection(f'"{name}" is {value!r:.60}; it must be {_JSON[item.kind]}', code="invalid_type", param=name)
    if isinstance(value, str) and (name.endswith("_id") or name == "utterance") and not 1 <= len(value) <= MOST_ID:
        raise Rejection(f'"{name}" must have 1 to {MOST_ID} characters', param=name)
    if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value < 1 << 53:
        raise Rejection(f'"{name}" is {value:.6g}; it must not be negative', param=name)
    return value


def event_id(message: Mapping[str, Any]) -> str | None:
    """The client's id of an event."""
    value = message.get("event_id")
    return value[:MOST_ID] if isinstance(value, str) else None
