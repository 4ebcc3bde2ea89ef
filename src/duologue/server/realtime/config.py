"""The configuration of a Realtime session: what a client chooses of it, and what holds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from duologue.server.realtime.errors import Rejection

EAGERNESS = {"low": -1.0, "medium": 0.0, "auto": 0.0, "high": 1.0}
"""Of `semantic_vad`, as the policy's."""
MOST_TOKENS = 4096  # of `max_output_tokens`, by the protocol
_AUDIO = {"type": "audio/pcm", "rate": 24000}


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """What becomes of words that come while an answer is heard. Whatever kind is asked for, the model decides."""

    eagerness: str = "auto"
    create_response: bool = True  # what is processed is answered without being asked for it
    interrupt_response: bool = True  # an answer may be cut

    def as_json(self) -> dict[str, Any]:
        """As the protocol shows it."""
        return {
            "type": "semantic_vad",
            "eagerness": self.eagerness,
            "create_response": self.create_response,
            "interrupt_response": self.interrupt_response,
        }

    @classmethod
    def from_json(cls, row: Any, before: "TurnDetection | None") -> "TurnDetection | None":
        """What a client asks for. Raises `Rejection`."""
        where = "session.audio.input.turn_detection"
        if row is None or row is False:
            return None
        if not isinstance(row, Mapping) or row.get("type", "semantic_vad") not in ("semantic_vad", "server_vad"):
            raise Rejection("turn_detection is null, or of type semantic_vad or server_vad", param=where)
        eagerness = "auto" if row.get("eagerness") is None else row["eagerness"]
        if not isinstance(eagerness, str) or eagerness not in EAGERNESS:
            raise Rejection(f"eagerness must be one of {', '.join(EAGERNESS)}", param=f"{where}.eagerness")
        before = before or cls()
        return cls(
            eagerness,
            _flag(row, "create_response", before.create_response, where),
            _flag(row, "interrupt_response", before.interrupt_response, where),
        )


@dataclass(frozen=True, slots=True)
class RealtimeConfig:
    """Of one session. Without a voice, text is the only modality: who asks for audio is answered in text."""

    instructions: str = ""
    turn_detection: TurnDetection | None = TurnDetection()
    max_output_tokens: int | None = None  # None: as many as the server allows
    has_voice: bool = False  # the server can speak
    is_audio: bool = False  # answers are spoken

    def changed(self, row: Mapping[str, Any]) -> "RealtimeConfig":
        """This one with what `row`, the `session` of a `session.update`, names. Other names are passed over.

        Raises:
            Rejection: a value cannot be used.
        """
        if row.get("type", "realtime") != "realtime":
            raise Rejection("session.type must be realtime: this server does not transcribe", param="session.type")
        found: dict[str, Any] = {}
        if row.get("instructions") is not None:
            found["instructions"] = text(row["instructions"], "session.instructions")
        if "output_modalities" in row:
            check_modalities(row["output_modalities"], "session.output_modalities")
            found["is_audio"] = self.has_voice and "audio" in (row["output_modalities"] or ["audio"])
        if "max_output_tokens" in row:
            found["max_output_tokens"] = tokens(row["max_output_tokens"], "session.max_output_tokens")
        check_tools(row, "session")
        heard = _object(_object(row, "audio"), "input")
        if self.has_voice:
            _check_format(heard, "session.audio.input.format")
            _check_format(_object(_object(row, "audio"), "output"), "session.audio.output.format")
        if "turn_detection" in heard:
            found["turn_detection"] = TurnDetection.from_json(heard["turn_detection"], self.turn_detection)
        return replace(self, **found)

    def as_json(self, name: str, model: str) -> dict[str, Any]:
        """The effective configuration as the protocol shows it; `name` is the session's."""
        detection = None if self.turn_detection is None else self.turn_detection.as_json()
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
                    "format": _AUDIO, "transcription": None, "noise_reduction": None, "turn_detection": detection,
                },
                "output": {"format": _AUDIO, "speed": 1.0},
            },
        }  # fmt: skip


def text(value: Any, param: str) -> str:
    """Text. Raises `Rejection`."""
    if not isinstance(value, str):
        raise Rejection(f"{param} must be text", code="invalid_type", param=param)
    return value


def tokens(value: Any, param: str) -> int | None:
    """A number of tokens, or None for "inf". Raises `Rejection`."""
    if value is None or value == "inf":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TOKENS:
        raise Rejection(f'{param} must be "inf" or a whole number from 1 to {MOST_TOKENS}', param=param)
    return value


def check_modalities(value: Any, param: str) -> None:
    """Whatever is asked for, text is what there is; but it must be something. Raises `Rejection`."""
    if value is not None and (not isinstance(value, list) or not all(one in ("text", "audio") for one in value)):
        raise Rejection(f'{param} must be ["text"] or ["audio"]', param=param)


def check_tools(row: Mapping[str, Any], where: str) -> None:
    """Refuse tools, and the choice of one. Raises `Rejection`."""
    if row.get("tools"):
        raise Rejection("tools are not supported; leave tools out, or empty", param=f"{where}.tools")
    if row.get("tool_choice") not in (None, "auto", "none"):
        raise Rejection("tools are not supported; tool_choice may be auto or none", param=f"{where}.tool_choice")


def _object(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = {} if row.get(name) is None else row[name]
    if not isinstance(value, Mapping):
        raise Rejection(f"{name} must be an object", code="invalid_type", param=f"session.{name}")
    return value


def _check_format(row: Mapping[str, Any], where: str) -> None:
    """Refuse all sound but the one that there is. Raises `Rejection`."""
    value = row.get("format")
    if value is not None and (not isinstance(value, Mapping) or {**_AUDIO, **value} != _AUDIO):
        raise Rejection('the format is {"type": "audio/pcm", "rate": 24000}: there is no other here', param=where)


def _flag(row: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = row.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Rejection(f"{name} must be true or false", code="invalid_type", param=f"{where}.{name}")
    return value
