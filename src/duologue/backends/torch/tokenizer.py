"""Adapts a tokenizer of the transformers library to the `Tokenizer` protocol."""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, final

from transformers import PreTrainedTokenizerBase

from duologue.text.tokenizer import is_mark
from duologue.types import Token, well_formed

_DEFAULT_TEMPLATE = "default"  # the name transformers gives the chat template among several


@final
class HfTokenizer:
    """A `Tokenizer` over a `PreTrainedTokenizerBase`, which it does not modify."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_tokens: Sequence[Token] = ()) -> None:
        """`stop_tokens`: additional ids that end a generation, as listed in the model's generation config."""
        self._tokenizer: Any = tokenizer
        self.wrapped = tokenizer  # the tokenizer of the transformers library
        self._more_stops = tuple(stop_tokens)

    @property
    def vocab_size(self) -> int:
        """The number of ids. A model's output matrix may be padded to more."""
        return len(self._tokenizer)

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's chat template; the default one if there are several."""
        source: str | dict[str, str] | None = self._tokenizer.chat_template
        return source.get(_DEFAULT_TEMPLATE) if isinstance(source, dict) else source

    @cached_property
    def special_text(self) -> Mapping[str, str]:
        """`bos_token`, `eos_token` and the other special tokens that the tokenizer declares."""
        return {name: str(text) for name, text in self._tokenizer.special_tokens_map.items() if isinstance(text, str)}

    @cached_property
    def special_tokens(self) -> Mapping[str, Token]:
        """Special tokens, and added tokens that look like markup rather than words or white space."""
        added = self._tokenizer.added_tokens_decoder.items()
        return {token.content: id for id, token in added if token.special or is_mark(token.content)}

    @cached_property
    def bos(self) -> Token | None:
        """BOS if the tokenizer prepends it to a text."""
        bos: Token | None = self._tokenizer.bos_token_id
        first = self._tokenizer.encode("x", add_special_tokens=True)[:1]
        return bos if bos is not None and first == [bos] else None

    @cached_property
    def stop_tokens(self) -> frozenset[Token]:
        """EOS and the ids given to the constructor."""
        eos: Token | None = self._tokenizer.eos_token_id
        return frozenset(self._more_stops) | (frozenset() if eos is None else {eos})

    def encode(self, text: str, *, special: bool = False) -> list[Token]:
        """See `Tokenizer.encode`."""
        text = well_formed(text)
        if special or self._literal is None:
            ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)
        else:
            ids = self._literal.encode(text, add_special_tokens=False).ids
        return list(ids)

    def decode(self, tokens: Sequence[Token]) -> str:
        """See `Tokenizer.decode`."""
        known = [token for token in tokens if 0 <= token < self.vocab_size]
        return str(self._tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @cached_property
    def _literal(self) -> Any | None:
        """A copy of the fast tokenizer that encodes special tokens as plain text; None if there is no fast one.

        The flag belongs to the shared Rust object, so switching it for each call would not be thread-safe. The copy is
        also several times faster than a call through transformers.
        """
        if not self._tokenizer.is_fast:
            return None
        fast = copy.deepcopy(self._tokenizer.backend_tokenizer)
        fast.encode_special_tokens = True
        fast.no_truncation()
        fast.no_padding()
        return fast
