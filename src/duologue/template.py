"""Text and roles to ids and back, for any model, from its own chat template."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from duologue.types import Token


class Tokenizer(Protocol):
    """What a template needs of a tokenizer; each backend that loads models brings one."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def chat_template(self) -> str | None:
        """The model's Jinja chat template, if it has one."""

    @property
    def special_text(self) -> Mapping[str, str]:
        """Names a chat template may use, such as `bos_token`, and their text."""

    @property
    def stop_tokens(self) -> frozenset[Token]:
        """Ids after which a generation ends, by the model's own account."""

    def encode(self, text: str, *, special: bool = False) -> list[Token]:
        """Ids of `text`, with nothing put before or after it.

        With `special`, the text of special tokens stands for them; without, they are ordinary characters.
        """

    def decode(self, tokens: Sequence[Token]) -> str:
        """Text of `tokens`, special ones included; bytes that are not (yet) UTF-8 become U+FFFD."""
