"""One response as a client sees it: `response.created`, its text, and `response.done`."""

from typing import Any, Protocol

from duologue.core.answer import Answer
from duologue.server.realtime.items import Item, new_id
from duologue.server.realtime.messages import ResponseRequest
from duologue.text.words import unspaced_ends


class Send(Protocol):
    """Sends an event to the client."""

    def __call__(self, kind: str, /, **fields: Any) -> None: ...


class Response:
    """An answer of the session, from character `base` of its text on, as one response with one item.

    It is done when the model has finished or the answer was cut. What was said may be heard much later.
    """

    def __init__(
        self,
        number: int,
        base: int,
        request: ResponseRequest,
        answer: Answer | None,
        *,
        conversation: str,
        send: Send,
        is_audio: bool = False,
    ) -> None:
        self.number = number  # of the answer
        self.base = base
        self.id = new_id("resp")
        self.item = Item("assistant", "", status="in_progress")
        self.said = ""
        self.num_heard = 0  # characters of `said`, whole words
        self.is_done = False
        self.cut_at: int | None = None  # where the client has truncated it
        self.is_onset_told = False  # whether the client knows that words cut it
        self._answer = answer  # for its counts; None where it had gone before it was told
        self._request = request
        self._conversation = conversation
        self._send = send
        self.is_audio = self.item.is_audio = is_audio
        self._place = {"response_id": self.id, "item_id": self.item.id, "output_index": 0, "content_index": 0}

    def begin(self, previous: str | None) -> None:
        """Report that it begins. Its item follows the one with the id `previous`."""
        send = self._send
        send("response.created", response=self._as_json("in_progress", None))
        send("response.output_item.added", response_id=self.id, output_index=0, item=self.item.as_json())
        send("conversation.item.added", previous_item_id=previous, item=self.item.as_json())
        send("response.content_part.added", **self._place, part=self._part(""))

    def add(self, start: int, text: str) -> None:
        """Report text of the answer, from its character `start` on."""
        self.said = self.item.text = self.said[: start - self.base] + text
        kind = "output_audio_transcript" if self.is_audio else "output_text"
        self._send(f"response.{kind}.delta", **self._place, delta=text)

    def sound(self, audio: str) -> None:
        """Report sound of the answer, in base64."""
        if not self.is_done:
            self._send("response.output_audio.delta", **self._place, delta=audio)

    def end(self, status: str, reason: str | None, previous: str | None) -> None:
        """Report that it is done. `status` is as in the protocol; `reason` explains one other than "completed"."""
        self.is_done = True
        self.item.status = "completed" if status == "completed" else "incomplete"
        send, item = self._send, self.item.as_json()
        if self.is_audio:
            send("response.output_audio.done", **self._place)
            send("response.output_audio_transcript.done", **self._place, transcript=self.said)
        else:
            send("response.output_text.done", **self._place, text=self.said)
        send("response.content_part.done", **self._place, part=self._part(self.said))
        send("response.output_item.done", response_id=self.id, output_index=0, item=item)
        send("conversation.item.done", previous_item_id=previous, item=item)
        details = None if reason is None else {"type": status, "reason": reason}
        send("response.done", response=self._as_json(status, details))

    def hear(self, position: int) -> None:
        """Record that the answer has been heard up to character `position`."""
        self.num_heard = max(0, min(len(self.said), position - self.base))

    @property
    def heard(self) -> str:
        """The text that remains after a cut: the whole words that were heard, and no more than the client left."""
        return whole_words(self.said[: self.num_heard], self.cut_at)

    def _part(self, text: str) -> dict[str, str]:
        return {"type": "audio", "transcript": text} if self.is_audio else {"type": "text", "text": text}

    def _as_json(self, status: str, details: dict[str, str] | None) -> dict[str, Any]:
        is_over = status != "in_progress"
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": [self.item.as_json()] if is_over else [],
            "output_modalities": ["audio" if self.is_audio else "text"],
            "conversation_id": self._conversation,
            "max_output_tokens": self._request.max_output_tokens or "inf",
            "metadata": self._request.metadata,
            "usage": self._usage() if is_over else None,
        }

    def _usage(self) -> dict[str, Any]:
        """Token counts: the context is the input; the part in the cache when the user's turn began counts as cached."""
        answer = self._answer
        asked, cached, made = (0, 0, 0) if answer is None else (answer.thought_at, answer.turn_at, answer.num_made)
        return {
            "total_tokens": asked + made,
            "input_tokens": asked,
            "output_tokens": made,
            "input_token_details": {
                "text_tokens": asked, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": cached,
                "cached_tokens_details": {"text_tokens": cached, "audio_tokens": 0, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": made, "audio_tokens": 0},
        }  # fmt: skip


def whole_words(text: str, length: int | None) -> str:
    """The words of `text` that end within `length` characters; None: all."""
    if length is None or length >= len(text):
        return text
    spaces = (i for i in range(length + 1) if text[i].isspace())
    return text[: max((*spaces, *(end for end in unspaced_ends(text) if end <= length)), default=0)].rstrip()
