"""Errors as OpenAI's Realtime protocol tells them. The connection, and the conversation, go on after each."""

from typing import Any

from duologue.errors import UsageError

ACTIVE = "conversation_already_has_active_response"
EMPTY = "input_audio_buffer_commit_empty"
NOT_ACTIVE = "response_cancel_not_active"
NEEDS_VOICE = (
    "this server has no voice; it is started with --voice auto. Send text: an item with content of type input_text"
)


class Rejection(UsageError):
    """What a client asked for is not done. Clients tell cases apart by `code`; `param` names the field at fault."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "invalid_value",
        param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.kind = kind

    def as_json(self, event_id: str | None) -> dict[str, Any]:
        """The `error` of an error event; `event_id` is that of the client's event."""
        return {
            "type": self.kind, "code": self.code, "message": str(self), "param": self.param, "event_id": event_id,
        }  # fmt: skip
