"""Cuts what is said into the slices of one period: words of the user, tokens of the assistant."""

import itertools
import random
from typing import Any, final

from duologue.text.slicing import slice_spans

Span = tuple[int, int]
"""Start and end in a text, in characters."""

USER_WORDS = (4, 6)
"""Words of a user's slice: two seconds at 110 to 170 words a minute (MiniCPM-Duplex)."""
ASSISTANT_TOKENS = 10
"""Tokens of an assistant's slice."""


@final
class Slicer:
    """Can be sent to another process; it then loads the library `tokenizers`, but no model."""

    def __init__(self, tokenizer: Any, *, words: tuple[int, int] = USER_WORDS, tokens: int = ASSISTANT_TOKENS) -> None:
        """`tokenizer` is one of the library `tokenizers`."""
        self._tokenizer, self._words, self._tokens = tokenizer, words, tokens

    def user(self, text: str, rng: random.Random) -> list[Span]:
        """The slices of what a user says; what separates them belongs to none."""
        return slice_spans(text, words=self._words, chance=rng)

    def assistant(self, text: str, start: int = 0) -> list[Span]:
        """The slices of what an assistant says from `start` on. They cover all of it but the white space at its ends.

        A slice ends between characters. It therefore may have fewer tokens.
        """
        start = len(text) - len(text[start:].lstrip())
        said = text[start:].rstrip()
        cuts, size, last = [0], 0, 0
        # the tokens of one character all end behind it
        for end, same in itertools.groupby(self._ends(said)):
            num = len(list(same))
            if size + num > self._tokens and said[cuts[-1] : last].strip():
                cuts.append(last)
                size = 0
            size += num
            last = end
        return [(start + a, start + b) for a, b in itertools.pairwise([*cuts, len(said)]) if a < b]

    def num_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _ends(self, text: str) -> list[int]:
        """Where the tokens of `text` end."""
        return [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]
