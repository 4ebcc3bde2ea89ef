"""Splits a growing answer into clauses, which are synthesised one at a time."""

import re
from dataclasses import dataclass

from duologue.text.words import DENSITY, is_unspaced, unspaced_ends, words_of

_CLOSERS = "[\"'”’)\\]）」』】》]*"
_SENTENCE = re.compile(rf"[.!?…]+{_CLOSERS}(?:\s+|$)|[。！？]+{_CLOSERS}\s*|\n+")
_CLAUSE = re.compile(rf"[,;:.!?…]+{_CLOSERS}\s+|[，、；：。！？]+{_CLOSERS}\s*|\s[–—-]\s+|\n+")


@dataclass(frozen=True, slots=True)
class Clause:
    """A part of an answer; `start` is its first character in the answer."""

    start: int
    text: str

    @property
    def end(self) -> int:
        """The position after its last character."""
        return self.start + len(self.text)


class Clauses:
    """The clauses of one answer. The first is short, so that it is heard soon; the others are as long as allowed, since
    longer clauses sound better. Lengths are in characters, of which a script without spaces needs a third.
    """

    def __init__(self, *, first: int = 12, least: int = 30, most: int = 100) -> None:
        self._first, self._least, self._most = first, least, most
        self._start = 0  # of the pending text
        self._text = ""
        self._is_first = True
        self.is_finished = False  # no more text will come

    @property
    def has_text(self) -> bool:
        """Whether text is pending."""
        return bool(self._text)

    def add(self, start: int, text: str) -> None:
        """Add the answer's `text` from character `start` on. It replaces the pending text if it does not follow it."""
        if start != self._start + len(self._text):
            self._start, self._text, self._is_first = start, "", True
        self._text += text

    def next(self, *, buffer_low: bool, most: int | None = None) -> Clause | None:
        """The next clause, if there is one, of at most `most` characters. With `buffer_low`, a few words are enough."""
        most = self._most if most is None else max(self._least, min(most, self._most))
        dense = DENSITY if is_unspaced(self._text[: self._least]) else 1
        size = self._first_cut(dense) if self._is_first else self._cut(most // dense, self._least // dense)
        if size == 0 and self.is_finished:
            size = len(self._text)
        if size == 0 and buffer_low:
            size = self._last_boundary(most // dense, least=2)
        if size == 0:
            return None
        clause = Clause(self._start, self._text[:size])
        self._start, self._text, self._is_first = self._start + size, self._text[size:], False
        return clause

    def _first_cut(self, dense: int) -> int:
        first, least, most = self._first // dense, self._least // dense, self._most // dense
        for match in _CLAUSE.finditer(self._text):
            if match.end() >= first:
                return match.end() if match.end() <= most else self._last_boundary(most)
        return self._last_boundary(least) if len(self._text) > least else 0

    def _cut(self, most: int, least: int) -> int:
        """The length up to the end of a sentence, or else of the last clause that is long enough; 0 for none."""
        sentence = next((m.end() for m in _SENTENCE.finditer(self._text) if m.end() >= least), 0)
        if self.is_finished and sentence == 0:
            sentence = len(self._text)
        if 0 < sentence <= most and (sentence < len(self._text) or self.is_finished):
            return sentence
        if len(self._text) <= most:
            return 0
        ends = [m.end() for m in _CLAUSE.finditer(self._text) if least <= m.end() <= most]
        return ends[-1] if ends else self._last_boundary(most)

    def _last_boundary(self, most: int, *, least: int = 1) -> int:
        """The length up to the last word boundary among the first `most` characters, after at least `least` words."""
        space = self._text.rfind(" ", 0, most) + 1
        cut = max((end for end in unspaced_ends(self._text[: most + 1]) if end > space), default=space)
        return cut if len(words_of(self._text[:cut])) >= least else 0
