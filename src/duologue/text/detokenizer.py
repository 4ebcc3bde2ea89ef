"""Tokens into text while they arrive, through nothing but `Tokenizer.decode`."""

from collections.abc import Sequence
from typing import final

from duologue.text.tokenizer import Tokenizer
from duologue.types import Token

_REPLACEMENT = "\ufffd"
_CONTEXT = 6  # tokens before the new ones that are decoded along, so that spaces between tokens come out right
_LONGEST_CHARACTER = 3  # tokens an unfinished character can have: one byte each, the fourth would finish it
_MOST_HELD = 16  # tokens without a stable end; more cannot be a character in the making


@final
class Detokenizer:
    """Turns tokens into text deltas.

    A tokenizer's decoder looks at neighbours: a leading space is dropped at the start of a text only, and a
    character may be spread over several tokens. So each token is decoded together with a short tail of those before
    it, and what it adds is the delta. Each token costs the decoding of a bounded tail, however long the text.

    The deltas and the `flush` together are the decoded whole. For tokens that are no UTF-8 (noise, not text), the
    number of U+FFFD may differ from that of the whole.
    """

    def __init__(self, tokenizer: Tokenizer, prefix: Sequence[Token] = (), *, skip: str = "") -> None:
        """Start after `prefix`, whose text is not returned.

        `skip` belongs to the format, not to what is said (the space some templates put before an answer): it is
        left out once, at the very start, if the text starts with all of it.
        """
        self._tokenizer = tokenizer
        self._tokens: list[Token] = list(prefix[-_CONTEXT:])
        self._num_told = len(self._tokens)  # tokens of the window whose text has been returned
        self._told = tokenizer.decode(self._tokens)  # text of those
        self._skip = skip  # "" once it has been dealt with
        self._start = ""  # what may be the beginning of `skip`

    def push(self, token: Token) -> str:
        """The text that `token` completes; "" while a character is unfinished."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if not text.endswith(_REPLACEMENT):
            if text == self._told:
                self._forget_silent()
                return ""
            return self._tell(text, len(self._tokens))
        if len(self._tokens) - self._num_told > _MOST_HELD:
            return self._tell(*self._least_broken())
        return ""

    def flush(self) -> str:
        """The rest, with U+FFFD for a character that was never finished. Pushing may go on afterwards."""
        return self._tell(self._tokenizer.decode(self._tokens), len(self._tokens), last=True)

    def _tell(self, text: str, end: int, *, last: bool = False) -> str:
        """Return what `text`, the first `end` tokens of the window, has beyond what was told; move the window on."""
        delta = text[len(self._told) :]
        self._num_told = end
        drop = self._window_start(max(0, end - _CONTEXT), end)
        del self._tokens[:drop]
        self._num_told -= drop
        self._told = self._tokenizer.decode(self._tokens[: self._num_told])
        return self._without_skip(delta, last=last)

    def _least_broken(self) -> tuple[str, int]:
        """The text and end of a window that cannot be text to its end: up to where an unfinished character may start.

        The end is where fewest U+FFFD come out, so that the character U+FFFD itself, said again and again, is whole.
        """
        ends = range(len(self._tokens), len(self._tokens) - 1 - _LONGEST_CHARACTER, -1)
        texts = [(self._tokenizer.decode(self._tokens[:end]), end) for end in ends]
        return min(texts, key=lambda text: text[0].count(_REPLACEMENT))

    def _window_start(self, start: int, end: int) -> int:
        """`start`, or a little before it if a character would be cut there: some decoders then spoil a whole run."""
        for earlier in range(start, max(-1, start - 1 - _LONGEST_CHARACTER), -1):
            if not self._tokenizer.decode(self._tokens[earlier:end]).startswith(_REPLACEMENT):
                return earlier
        return start

    def _forget_silent(self) -> None:
        """Keep a token without text from filling the window, unless it may decide about a space at the start."""
        if self._told or len(self._tokens) > _MOST_HELD:
            self._tokens.pop()

    def _without_skip(self, delta: str, *, last: bool) -> str:
        if not self._skip:
            return delta
        start = self._start = self._start + delta
        if not last and len(start) < len(self._skip) and self._skip.startswith(start):
            return ""
        skip, self._skip, self._start = self._skip, "", ""
        return start.removeprefix(skip)
