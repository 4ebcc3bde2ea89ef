"""The messages that a client may send to `/v1/realtime`: events, session configurations and response requests."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from duologue.errors import DuologueError, EngineError
from duologue.server.fields import Field, Rejection, Table, read

ACTIVE = "conversation_already_has_active_response"
EMPTY = "input_audio_buffer_commit_empty"
NOT_ACTIVE = "response_cancel_not_active"
EAGERNESS = {"low": -1.0, "medium": 0.0, "auto": 0.0, "high": 1.0}
"""The policy's eagerness by that of `semantic_vad`."""
MOST_ID = 128  # characters of an id that a client gives
_MOST_TOKENS = 4096  # maximum of `max_output_tokens` in the protocol
_AUDIO = {"type": "audio/pcm", "rate": 24000}


class ServerFault(EngineError):
    """An error that is not the client's fault; `code` identifies it."""

    def __init__(self, message: str, *, code: str = "server_error") -> None:
        super().__init__(message)
        self.code = code


def as_error(error: DuologueError, event_id: str | None = None) -> dict[str, Any]:
    """The `error` of an error event; `event_id` is that of the client's event."""
    is_ours = isinstance(error, EngineError)
    code = error.code if isinstance(error, Rejection | ServerFault) else "server_error" if is_ours else "invalid_value"
    return {
        "type": "server_error" if is_ours else "invalid_request_error",
        "code": code,
        "message": str(error),
        "param": error.param if isinstance(error, Rejection) else None,
        "event_id": event_id,
    }


# ----------------------------------------------------------------------------------------------------------- events

_ID = Field(str, least=1, most=MOST_ID)
_NEEDED_ID = replace(_ID, is_needed=True)
_COUNT = Field(int, least=0, most=(1 << 53) - 1)

EVENTS: Mapping[str, Table] = {
    "session.update": {"session": Field(dict, is_needed=True)},
    "conversation.item.create": {"item": Field(dict, is_needed=True), "previous_item_id": _ID},
    "conversation.item.retrieve": {"item_id": _NEEDED_ID},
    "conversation.item.delete": {"item_id": _NEEDED_ID},
    "conversation.item.truncate": {
        "item_id": _NEEDED_ID,
        "content_index": replace(_COUNT, default=0),
        "audio_end_ms": replace(_COUNT, is_needed=True),
    },
    "response.create": {"response": Field(dict, {})},
    "response.cancel": {"response_id": _ID},
    "input_audio_buffer.append": {"audio": Field(str, is_needed=True)},
    "input_audio_buffer.commit": {},
    "input_audio_buffer.clear": {},
    "output_audio_buffer.clear": {},
}
"""The client events of the protocol. Each may have an `event_id`, which comes back in an error."""

EXTENSIONS: Mapping[str, Table] = {
    "input.text.append": {
        "text": Field(str, is_needed=True),
        "utterance": replace(_ID, default="user"),
        "final": Field(bool, False),
    },
    "input.cancel": {"utterance": _ID},
    "playback.ack": {"item_id": _ID, "response_id": _ID, "played_chars": _COUNT, "played_ms": _COUNT},
}
"""The client events that `?duplex=1` adds."""


def read_event(message: Mapping[str, Any], *, is_duplex: bool) -> dict[str, Any]:
    """The fields of an event. Unknown fields are ignored.

    Raises:
        Rejection: there is no such event, or a field is missing or invalid.
    """
    kind = message["type"]
    if kind in EXTENSIONS and not is_duplex:
        raise Rejection(f"{kind} belongs to the duplex extension: connect to /v1/realtime?duplex=1", param="type")
    known = {**EVENTS, **EXTENSIONS} if is_duplex else EVENTS
    if kind not in known:
        raise Rejection(f"unknown event {kind!r:.60}; known are {', '.join(known)}", param="type")
    return read(known[kind], message)


def event_id(message: Mapping[str, Any]) -> str | None:
    """The client's id of an event."""
    value = message.get("event_id")
    return value[:MOST_ID] if isinstance(value, str) else None


# ---------------------------------------------------------------------------------------------------- configuration


def _modalities(value: list[Any]) -> list[Any]:
    if not all(one in ("text", "audio") for one in value):
        raise ValueError('["text"] or ["audio"]')
    return value


def _tokens(value: Any) -> int | None:
    if value == "inf":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_TOKENS:
        raise ValueError(f'"inf" or a whole number from 1 to {_MOST_TOKENS}')
    return value


def _no_tools(value: Any) -> None:
    if value:
        raise ValueError("empty: tools are not supported")


def _in_new_words(row: Mapping[str, Any]) -> dict[str, Any]:
    """A session or a response with the field names of the beta protocol replaced by today's, which take precedence."""
    found = {name: value for name, value in row.items() if name not in _BETA}
    for old in _BETA.keys() & row.keys():
        *parents, name = _BETA[old].split(".")
        at: dict[str, Any] | None = found
        for parent in parents:
            child = {} if at is None else at.get(parent)
            if at is None or not isinstance(child, Mapping | None):
                at = None  # the reader of the fields will refuse it
            else:
                at[parent] = at = dict(child or {})
        value = row[old]
        if at is not None:
            at.setdefault(name, _BETA_FORMATS.get(value, value) if isinstance(value, str) else value)
    return found


_BETA = {
    "modalities": "output_modalities",
    "max_response_output_tokens": "max_output_tokens",
    "turn_detection": "audio.input.turn_detection",
    "input_audio_format": "audio.input.format",
    "input_audio_transcription": "audio.input.transcription",
    "input_audio_noise_reduction": "audio.input.noise_reduction",
    "output_audio_format": "audio.output.format",
    "voice": "audio.output.voice",
    "speed": "audio.output.speed",
}
_BETA_FORMATS: Mapping[str, Any] = {
    "pcm16": _AUDIO,
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}


def _metadata(value: dict[str, Any]) -> dict[str, Any]:
    if len(value) > 16 or not all(
        isinstance(text, str) and len(key) <= 64 and len(text) <= 512 for key, text in value.items()
    ):
        raise ValueError("at most 16 texts (keys of 64, values of 512 characters)")
    return value


_DETECTION: Table = {
    "type": Field(str, choices=("semantic_vad", "server_vad")),
    "eagerness": Field(str, "auto", choices=tuple(EAGERNESS)),
    "create_response": Field(bool),
    "interrupt_response": Field(bool),
}
_COMMON: Table = {
    "instructions": Field(str),
    "output_modalities": Field(list, parse=_modalities),
    "max_output_tokens": Field(object, parse=_tokens),
    "tools": Field(object, parse=_no_tools),
    "tool_choice": Field(str, choices=("auto", "none")),
}
_SESSION: Table = {
    **_COMMON,
    "type": Field(str, choices=("realtime",)),
    "temperature": Field(float, least=0, most=10),
    "audio": Field(
        dict,
        fields={
            "input": Field(dict, fields={"format": Field(object), "turn_detection": Field(object)}),
            "output": Field(dict, fields={"format": Field(object)}),
        },
    ),
}
_RESPONSE: Table = {**_COMMON, "metadata": Field(dict, parse=_metadata)}


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """What happens to words that arrive while an answer is heard. The model decides, whatever type the client names."""

    eagerness: str = "auto"
    create_response: bool = True  # processed words are answered without a request
    interrupt_response: bool = True  # an answer may be cut

    @classmethod
    def from_json(cls, row: Any, before: "TurnDetection | None") -> "TurnDetection | None":
        """Read what a client requests. Raises `Rejection`."""
        where = "session.audio.input.turn_detection"
        if row is None or row is False:
            return None
        if not isinstance(row, Mapping):
            raise Rejection("turn_detection is null, or of type semantic_vad or server_vad", param=where)
        found = read(_DETECTION, row, f"{where}.")
        del found["type"]
        return replace(before or cls(), **{name: value for name, value in found.items() if value is not None})


@dataclass(frozen=True, slots=True)
class RealtimeConfig:
    """The configuration of one session. Without a voice, requests for audio are answered in text."""

    instructions: str = ""
    turn_detection: TurnDetection | None = TurnDetection()
    max_output_tokens: int | None = None  # None: the server's limit
    temperature: float = 0.0  # of the beta protocol
    has_voice: bool = False  # the server can speak
    is_audio: bool = False  # answers are spoken

    def changed(self, row: Mapping[str, Any]) -> "RealtimeConfig":
        """This configuration with the changes in `row`, the `session` of a `session.update`.

        Raises:
            Rejection: a value is invalid.
        """
        found = read(_SESSION, _in_new_words(row), "session.", only_given=True)
        changes = {"max_output_tokens": found["max_output_tokens"]} if "max_output_tokens" in found else {}
        if found.get("instructions") is not None:
            changes["instructions"] = found["instructions"]
        if found.get("temperature") is not None:
            changes["temperature"] = found["temperature"]
        if "output_modalities" in found:
            changes["is_audio"] = self.has_voice and "audio" in (found["output_modalities"] or ["audio"])
        audio = {side: wanted or {} for side, wanted in (found.get("audio") or {}).items()}
        for side in ("input", "output") if self.has_voice else ():
            wanted = audio.get(side, {}).get("format")
            if wanted is not None and (not isinstance(wanted, Mapping) or {**_AUDIO, **wanted} != _AUDIO):
                message = 'the only supported format is {"type": "audio/pcm", "rate": 24000}'
                raise Rejection(message, param=f"session.audio.{side}.format")
        if "turn_detection" in audio.get("input", {}):
            changes["turn_detection"] = TurnDetection.from_json(audio["input"]["turn_detection"], self.turn_detection)
        return replace(self, **changes)

    def as_json(self, name: str, model: str) -> dict[str, Any]:
        """The effective configuration in the form of the protocol; `name` is the session's."""
        detection = self.turn_detection
        return {
            "id": name,
            "object": "realtime.session",
            "type": "realtime",
            "model": model,
            "output_modalities": ["audio" if self.is_audio else "text"],
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens or "inf",
            "tools": [],
            "tool_choice": "none",
            "truncation": "auto",
            "audio": {
                "input": {
                    "format": _AUDIO,
                    "transcription": None,
                    "noise_reduction": None,
                    "turn_detection": None if detection is None else {"type": "semantic_vad", **asdict(detection)},
                },
                "output": {"format": _AUDIO, "speed": 1.0},
            },
        }


# --------------------------------------------------------------------------------------------------------- responses


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """One `response.create`. `instructions` and `max_output_tokens` None: those of the session."""

    event_id: str | None = None
    metadata: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    is_started: bool = False  # the server has begun an answer to it

    @property
    def is_special(self) -> bool:
        """Whether it asks for something that applies only if the answer is begun again."""
        return self.instructions is not None or self.max_output_tokens is not None

    @property
    def is_tracked(self) -> bool:
        """Whether the client waits for exactly this response.

        LiveKit marks its requests by this name, and abandons the response when speech starts."""
        return "client_event_id" in (self.metadata or {})

    @classmethod
    def from_json(cls, row: Mapping[str, Any], event_id: str | None) -> "ResponseRequest":
        """Read what a client requests. Raises `Rejection` for unsupported fields."""
        for name in ("conversation", "input", "prompt"):
            if row.get(name) is not None and (name, row[name]) != ("conversation", "auto"):
                raise Rejection(
                    f"response.{name} is not supported: create items, then a response in the conversation",
                    code="unsupported_parameter",
                    param=f"response.{name}",
                )
        found = read(_RESPONSE, _in_new_words(row), "response.")
        return cls(event_id, found["metadata"], found["instructions"], found["max_output_tokens"])
