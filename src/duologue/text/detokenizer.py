"""Turns tokens into text as they arrive, using only `Tokenizer.decode`."""

from collections.abc import Sequence
from typing import final

from duologue.text.tokenizer import Tokenizer
from duologue.types import Token

_REPLACEMENT = "\ufffd"
_CONTEXT = 6  # earlier tokens that are decoded with the new ones, so that spaces between tokens are right
_LONGEST_CHARACTER = 3  # tokens of an unfinished character: a byte each, and the fourth finishes it
_MOST_HELD = 16  # tokens whose text is held back; more cannot be an unfinished character


@final
class Detokenizer:
    """Turns tokens into text deltas.

    The text of a token depends on its neighbours: a leading space is dropped only at the start of a text, and a
    character can span several tokens. Each token is therefore decoded together with a short tail of earlier ones, and
    the delta is what it adds. The cost per token is bounded, however long the text.

    The deltas and the `flush` together equal the text of all tokens. Where the bytes are not UTF-8, the number of
    U+FFFD may differ.
    """

    def __init__(self, tokenizer: Tokenizer, prefix: Sequence[Token] = (), *, skip: str = "") -> None:
        """Start after `prefix`, whose text is not returned.

        `skip` belongs to the format, such as the space that some templates put before an answer: it is left out once,
        if the text starts with all of it.
        """
        self._tokenizer = tokenizer
        self._tokens: list[Token] = list(prefix[-_CONTEXT:])
        self._num_told = len(self._tokens)  # tokens of the window whose text has been returned
        self._told = tokenizer.decode(self._tokens)  # their text
        self._skip = skip  # "" once it has been handled
        self._start = ""  # what may be the beginning of `skip`, held back

    def push(self, token: Token) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if not text.endswith(_REPLACEMENT):
            if text != self._told:
                return self._tell(text, len(self._tokens))
            # A token without text leaves the window, unless it may decide about a space at the start.
            if self._told or len(self._tokens) > _MOST_HELD:
                self._tokens.pop()
            return ""
        if len(self._tokens) - self._num_told > _MOST_HELD:
            return self._tell(*self._least_broken())
        return ""

    def flush(self) -> str:
        """The rest, with U+FFFD for an unfinished character. More tokens may follow."""
        return self._tell(self._tokenizer.decode(self._tokens), len(self._tokens), last=True)

    def _tell(self, text: str, end: int, *, last: bool = False) -> str:
        """Return what `text`, of the first `end` tokens of the window, adds to earlier text; move the window on."""
        delta = text[len(self._told) :]
        self._num_told = end
        drop = self._window_start(max(0, end - _CONTEXT), end)
        del self._tokens[:drop]
        self._num_told -= drop
        self._told = self._tokenizer.decode(self._tokens[: self._num_told])
        return self._without_skip(delta, last=last)

    def _least_broken(self) -> tuple[str, int]:
        """The text and end of a window that does not end in whole characters: up to a possible unfinished character.

        The end with the fewest U+FFFD is chosen, so that the character U+FFFD itself is kept whole.
        """
        ends = range(len(self._tokens), len(self._tokens) - 1 - _LONGEST_CHARACTER, -1)
        texts = [(self._tokenizer.decode(self._tokens[:end]), end) for end in ends]
        return min(texts, key=lambda text: text[0].count(_REPLACEMENT))

    def _window_start(self, start: int, end: int) -> int:
        """`start`, or a little earlier if it would cut a character: some decoders then return U+FFFD for many."""
        for earlier in range(start, max(-1, start - 1 - _LONGEST_CHARACTER), -1):
            if not self._tokenizer.decode(self._tokens[earlier:end]).startswith(_REPLACEMENT):
                return earlier
        return start

    def _without_skip(self, delta: str, *, last: bool) -> str:
        if not self._skip:
            return delta
        start = self._start = self._start + delta
        if not last and len(start) < len(self._skip) and self._skip.startswith(start):
            return ""
        skip, self._skip, self._start = self._skip, "", ""
        return start.removeprefix(skip)
