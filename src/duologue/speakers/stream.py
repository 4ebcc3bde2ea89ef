"""Reads the body of a streamed chat completion. Knows bytes and JSON, but no connections."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from duologue.errors import RemoteError

_MOST_BYTES = 1 << 20  # of a line, and of a body that is not a stream


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an answer. `reason`: it is the last one, and the answer ended by itself (`stop`) or at a limit."""

    text: str
    reason: str | None = None


class StreamReader:
    """Takes the bytes of an event stream as they arrive, and gives out the parts of the answer."""

    def __init__(self) -> None:
        self.is_over = False  # nothing more comes
        self._rest = b""  # the beginning of a line
        self._reason: str | None = None

    def feed(self, data: bytes) -> Iterator[Part]:
        """The parts that `data` completes.

        Raises:
            RemoteError: this is not a chat completion, or the endpoint reports an error.
        """
        *lines, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n")
        if len(self._rest) > _MOST_BYTES:
            raise RemoteError(f"the speaker sent a line of more than {_MOST_BYTES} bytes")
        for line in lines:
            if not self.is_over and line.startswith(b"data:"):
                yield from self._read(line[5:].strip())

    def close(self) -> Iterator[Part]:
        """The end of the bytes.

        Raises:
            RemoteError: the answer is not complete.
        """
        try:
            yield from self.feed(b"\n")
        except RemoteError:  # half a line
            self._reason = None
        if not self.is_over and self._reason is None:
            raise RemoteError("the speaker's stream broke off in the middle of the answer")
        if not self.is_over:
            yield self._end()

    def _read(self, data: bytes) -> Iterator[Part]:
        if data == b"[DONE]":
            yield self._end()
            return
        choice = _choice(_parsed(data))
        if choice is None:
            return
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(text, str) and text:
            yield Part(text)
        if isinstance(choice.get("finish_reason"), str):
            self._reason = choice["finish_reason"]

    def _end(self) -> Part:
        self.is_over = True
        return Part("", "length" if self._reason == "length" else "stop")


def read_whole(body: bytes) -> Iterator[Part]:
    """The parts of a completion that was not streamed. Raises `RemoteError` if it is none."""
    choice = _choice(_parsed(body))
    message = None if choice is None else choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if choice is None or not isinstance(text, str):
        raise RemoteError("the speaker's answer has no text")
    yield Part(text)
    yield Part("", "length" if choice.get("finish_reason") == "length" else "stop")


def message_of(body: bytes) -> str:
    """What an endpoint says about an error; empty if it says nothing that can be shown."""
    try:
        error = json.loads(body)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return " ".join(text.split())[:200] if isinstance(text, str) else ""


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        row = json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        raise RemoteError(f"the speaker sent something other than JSON: {data[:60]!r}") from None
    if not isinstance(row, dict):
        raise RemoteError(f"the speaker sent something other than a chat completion: {data[:60]!r}")
    if row.get("error"):
        raise RemoteError(f"the speaker reports an error: {message_of(data) or 'it does not say which'}")
    return row


def _choice(row: dict[str, Any]) -> dict[str, Any] | None:
    """The only choice; None for rows about something else, such as usage."""
    choices = row.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
