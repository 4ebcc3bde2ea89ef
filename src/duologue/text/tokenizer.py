"""What a tokenizer must provide, whether it comes from transformers, from llama.cpp or from a test."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from duologue.types import Token


class Tokenizer(Protocol):
    """What a template needs from a tokenizer. Each backend that loads models has one."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def chat_template(self) -> str | None:
        """The model's Jinja chat template, if it has one."""

    @property
    def special_text(self) -> Mapping[str, str]:
        """Variables that a chat template may use, such as `bos_token`, and their text."""

    @property
    def special_tokens(self) -> Mapping[str, Token]:
        """Text and id of every control token: what `encode(special=True)` recognises.

        This includes markers that the model declares as ordinary, unbreakable words (`<think>`).
        """

    @property
    def bos(self) -> Token | None:
        """The id that the tokenizer prepends to every text, except in `encode`; None if there is none."""

    @property
    def stop_tokens(self) -> frozenset[Token]:
        """Ids that end a generation, as the model's files declare them."""

    def encode(self, text: str, *, special: bool = False) -> list[Token]:
        """Ids of `text`, with nothing added before or after it.

        With `special`, the texts of special tokens become these tokens; without, they are ordinary characters. Accepts
        any text: see `duologue.types.well_formed`.
        """

    def decode(self, tokens: Sequence[Token]) -> str:
        """Text of `tokens`, special ones included. Bytes that are not, or not yet, UTF-8 become U+FFFD.

        Ids outside the vocabulary have no text: rows that an adapter added, and padding of the output matrix.
        """


def is_mark(text: str) -> bool:
    """Whether the text of an unbreakable token is a marker such as `<think>`, not a word or white space."""
    return len(text) > 2 and (text[0], text[-1]) in {("<", ">"), ("[", "]")} and not any(map(str.isspace, text))
