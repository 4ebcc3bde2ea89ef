"""One answer to a chat request: its text up to a stop sequence, with log probabilities if they are wanted."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, final

from duologue.core.answer import Answer, LogP
from duologue.core.events import Committed, Failed, Finished, Said
from duologue.errors import EngineError
from duologue.server.conversation import Conversation
from duologue.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer."""

    text: str
    log_p: Sequence[LogP] = ()  # of the tokens that end in it
    reason: str | None = None  # why the answer ends here


@final
class Choice:
    """An answer that is being made in a conversation of its own."""

    def __init__(self, index: int, conversation: Conversation, answer: Answer, stops: Sequence[str]) -> None:
        """The answer ends before the first of `stops`."""
        self.index = index
        self.answer = answer
        self._conversation = conversation
        self._stops = stops
        self._text = ""
        self._num_sent = 0  # characters
        self._num_tokens = 0  # that end in them

    def close(self) -> None:
        """Give the place back, whether or not the answer was wanted."""
        self._conversation.close("done")

    async def parts(self) -> AsyncGenerator[Part, None]:
        """The answer as it is made. The last part has the reason of its end.

        Raises:
            EngineError: the conversation failed.
        """
        reason = "stop"
        async for _, event in self._conversation.events.after(0):
            if isinstance(event, Said):
                self._text = self._text[: event.start] + event.text
                end, is_over = self._find_end()
                if is_over:
                    yield self._part(end, "stop")
                    self.close()  # the rest need not be made
                    return
                if end > self._num_sent:
                    yield self._part(end)
            elif isinstance(event, Finished):
                reason = event.reason  # the last words follow
            elif isinstance(event, Failed):
                raise EngineError(event.reason)
            elif isinstance(event, Committed):
                yield self._part(len(self._text), reason)
                return
        raise EngineError(f"the answer ended: {self._conversation.events.ended}")

    def _part(self, end: int, reason: str | None = None) -> Part:
        """The text from what was sent up to `end`."""
        text = self._text[self._num_sent : end]
        num_tokens = self.answer.num_tokens_until(end)
        log_p = self.answer.log_p[self._num_tokens : num_tokens]
        self._num_sent, self._num_tokens = end, num_tokens
        return Part(text, log_p, reason)

    def _find_end(self) -> tuple[int, bool]:
        """How much of the text can be sent, and whether a stop sequence follows."""
        text, start = self._text, self._num_sent
        found = [at for stop in self._stops if (at := text.find(stop, start)) >= 0]
        if found:
            return min(found), True
        longest = max(map(len, self._stops), default=1)
        for size in range(min(longest - 1, len(text) - start), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return len(text) - size, False  # what may become a stop sequence is held back
        return len(text), False


def log_probabilities(rows: Sequence[LogP], tokenizer: Tokenizer) -> dict[str, Any]:
    """Log probabilities in the format of OpenAI's clients."""
    content = []
    for (token, p), *alternatives in rows:
        content.append(
            {**_token(token, p, tokenizer), "top_logprobs": [_token(*one, tokenizer) for one in alternatives]}
        )
    return {"content": content, "refusal": None}


def _token(token: int, p: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.decode([token])
    return {"token": text, "logprob": p, "bytes": list(text.encode())}
