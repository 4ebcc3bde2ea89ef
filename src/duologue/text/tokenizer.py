"""What a tokenizer must be able to do, whoever brings it: the transformers library, llama.cpp, a test."""

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
    def special_tokens(self) -> Mapping[str, Token]:
        """Text and id of every token that is a mark rather than words: what `encode(special=True)` recognises.

        Marks that the model's makers declared as ordinary but unbreakable words (`<think>`) are here, too.
        """

    @property
    def bos(self) -> Token | None:
        """The id this tokenizer itself puts before every text (`encode` here never does); None if it puts none."""

    @property
    def stop_tokens(self) -> frozenset[Token]:
        """Ids after which a generation ends, by the model's own account."""

    def encode(self, text: str, *, special: bool = False) -> list[Token]:
        """Ids of `text`, with nothing put before or after it.

        With `special`, the text of special tokens stands for them; without, they are ordinary characters. Never
        raises for a text, whatever it holds: see `duologue.types.well_formed`.
        """

    def decode(self, tokens: Sequence[Token]) -> str:
        """Text of `tokens`, special ones included; bytes that are not (yet) UTF-8 become U+FFFD.

        Ids outside the vocabulary (rows an adapter added, padding of the output matrix) have no text.
        """


def is_mark(text: str) -> bool:
    """Whether the text of an unbreakable token is a mark such as `<think>`, not a word or a run of white space."""
    return len(text) > 2 and (text[0], text[-1]) in {("<", ">"), ("[", "]")} and not any(map(str.isspace, text))
