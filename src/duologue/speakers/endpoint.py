"""An endpoint with OpenAI's chat completions (`/v1/chat/completions`), and what it is asked for an answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from duologue.core.config import SessionConfig
from duologue.errors import refuse
from duologue.types import Role, Turn

KEY_VARIABLE = "DUOLOGUE_SPEAKER_KEY"
"""The environment variable with the key of the endpoint."""

_PATH = "/chat/completions"
_GO_ON = (
    "Go on exactly where your last message breaks off. Do not repeat any of it, and do not comment on this request."
)
_BEGIN = "Please begin."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served. Durations are in seconds.

    Raises:
        UsageError: the URL is none of an endpoint, the model has no name, the key cannot be sent, or a number is wrong.
    """

    url: str  # with or without /v1 and /chat/completions
    model: str
    key: str = field(default="", repr=False)
    continues: bool = False  # it can be given the beginning of an answer (vLLM, llama-server)
    most_silence: float = 30.0  # before the first words, and between any two
    most_retries: int = 3  # of a request that was refused before the first words
    most_wait: float = 20.0  # before such a retry

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        refuse(
            [
                (
                    parts.scheme not in ("http", "https") or not parts.hostname,
                    f"the speaker {self.url!r:.80} is not an address such as http://127.0.0.1:8000/v1",
                ),
                (
                    "@" in parts.netloc,
                    f"a key does not belong into the speaker's address; put it into {KEY_VARIABLE}",
                ),
                (not self.model.strip(), "the speaker needs the name of a model: --speaker-model"),
                (
                    not self.key.isascii() or any(character.isspace() for character in self.key),
                    f"the key in {KEY_VARIABLE} has characters that cannot be sent",
                ),
                (
                    not self.most_silence > 0 or self.most_retries < 0 or self.most_wait < 0,
                    "the speaker's most_silence must be positive, most_retries and most_wait not negative",
                ),
            ]
        )

    @property
    def address(self) -> str:
        """The URL that requests go to."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        if not path.endswith(_PATH):
            path = (path or "/v1") + _PATH
        return parts._replace(path=path, fragment="").geturl()

    def hidden(self, text: str) -> str:
        """`text` without the key."""
        return text.replace(self.key, "***") if self.key else text


@dataclass(frozen=True, slots=True)
class Question:
    """What an answer follows."""

    system: str | None
    turns: Sequence[Turn]  # the history as it was heard, and the user's turn, if there is one
    begun: str = ""  # what is known of the answer, which is to go on

    def body(self, endpoint: Endpoint, config: SessionConfig) -> dict[str, Any]:
        """The request for the answer, with the limits and the sampling of `config`."""
        messages = self._messages(endpoint)
        is_continued = bool(self.begun) and endpoint.continues
        return {
            "model": endpoint.model,
            "messages": messages,
            "stream": True,
            "max_tokens": config.max_answer,
            "temperature": config.sampling.temperature,
            "top_p": config.sampling.top_p,
            **({"seed": config.seed} if config.seed else {}),
            **({"continue_final_message": True, "add_generation_prompt": False} if is_continued else {}),
        }

    def _messages(self, endpoint: Endpoint) -> list[dict[str, str]]:
        turns = [Turn(Role.SYSTEM, self.system)] if self.system else []
        turns += self.turns
        if self.begun:
            turns.append(Turn(Role.ASSISTANT, self.begun))
        if self.begun and not endpoint.continues:
            turns.append(Turn(Role.USER, _GO_ON))
        elif not self.begun and (not turns or turns[-1].role is not Role.USER):
            turns.append(Turn(Role.USER, _BEGIN))
        messages: list[dict[str, str]] = []
        for turn in turns:
            if not turn.text.strip():
                continue
            if messages and messages[-1]["role"] == turn.role.value:  # many chat formats need roles that alternate
                messages[-1]["content"] += "\n" + turn.text
            else:
                messages.append({"role": turn.role.value, "content": turn.text})
        return messages
