"""What a `response.create` asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from duologue.server.realtime.config import check_modalities, check_tools, text, tokens
from duologue.server.realtime.errors import Rejection

_MOST_PAIRS = 16
_MOST_KEY = 64
_MOST_VALUE = 512


@dataclass(frozen=True, slots=True)
class Request:
    """One `response.create`. `instructions` and `max_output_tokens` None: those of the session."""

    event_id: str | None = None
    metadata: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None

    @property
    def is_special(self) -> bool:
        """Whether it wants something that an answer under way was not begun with."""
        return self.instructions is not None or self.max_output_tokens is not None

    @property
    def is_tracked(self) -> bool:
        """Whether the client waits for this very response. LiveKit's does, by this name, and gives up what it waits for
        when speech starts."""
        return "client_event_id" in (self.metadata or {})

    @classmethod
    def from_json(cls, row: Mapping[str, Any] | None, event_id: str | None) -> "Request":
        """What a client asks for. Raises `Rejection` for what is not supported."""
        row = row or {}
        if row.get("conversation") not in (None, "auto"):
            raise Rejection(
                "responses outside the conversation are not supported; leave conversation out, or connect once more",
                code="unsupported_parameter",
                param="response.conversation",
            )
        for name in ("input", "prompt"):
            if row.get(name) is not None:
                raise Rejection(
                    f"response.{name} is not supported; create items, then a response",
                    code="unsupported_parameter",
                    param=f"response.{name}",
                )
        check_tools(row, "response")
        check_modalities(row.get("output_modalities"), "response.output_modalities")
        told = row.get("instructions")
        return cls(
            event_id,
            _metadata(row.get("metadata")),
            None if told is None else text(told, "response.instructions"),
            tokens(row.get("max_output_tokens"), "response.max_output_tokens"),
        )


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    is_whole = isinstance(value, dict) and len(value) <= _MOST_PAIRS
    if not is_whole or not all(
        isinstance(key, str) and len(key) <= _MOST_KEY and isinstance(one, str) and len(one) <= _MOST_VALUE
        for key, one in value.items()
    ):
        raise Rejection(
            f"metadata is an object of at most {_MOST_PAIRS} texts (keys of {_MOST_KEY}, values of {_MOST_VALUE} "
            "characters)",
            param="response.metadata",
        )
    return dict(value)
