"""Ids of a text in its place: what stands before it decides about spaces, who wrote it decides about special tokens.

A template's own text means its special tokens; what people say never does. A tokenizer of the SentencePiece kind puts
a space before a text, and some drop white space after a special token: whether that is right depends on the place.
All of it is found out by trying the tokenizer, not from its kind.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TypeAlias, final

from duologue.text.tokenizer import Tokenizer
from duologue.types import Token


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text. What was `said` is never parsed for special tokens."""

    text: str
    said: bool = False


class Place(Enum):
    """Where a text stands, when no special token is directly before it."""

    START = "at the very beginning"
    MIDDLE = "after ordinary text"


Context: TypeAlias = Place | str
"""What stands before a text: a place, or the text of the special token."""


@dataclass(frozen=True, slots=True)
class _Manner:
    """How a tokenizer treats what stands next to one special token."""

    space_after: bool  # text after it is tokenised as at the beginning, with a space put before it
    strips_after: bool
    strips_before: bool


@final
class Splicer:
    """Encodes spans in their context, with one tokenizer. Stateless but for what it has learned about it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._specials = dict(tokenizer.special_tokens)
        self._ids = frozenset(self._specials.values())
        longest_first = sorted((text for text in self._specials if text), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._anchors = self._find_anchors()
        self._manner = cache(self._find_manner)

    @property
    def puts_space(self) -> bool:
        """Whether the tokenizer puts a space before a text."""
        return bool(self._anchors)

    def is_special(self, context: Context) -> bool:
        """Whether a special token stands there."""
        return isinstance(context, str)

    def space_after(self, context: Context) -> bool:
        """Whether a text in this context gets a space put before it."""
        if isinstance(context, str):
            return self._manner(context).space_after
        return context is Place.START and self.puts_space

    def encode(self, spans: Iterable[Span], context: Context) -> tuple[list[Token], Context]:
        """Ids of the spans as they stand one after the other after `context`, and the context after them.

        Ordinary text of neighbouring spans is tokenised together.
        """
        tokens: list[Token] = []
        atoms = self._atoms(spans)
        for index, (text, is_special) in enumerate(atoms):
            if is_special:
                tokens.append(self._specials[text])
                context = text
                continue
            if index + 1 < len(atoms) and self._manner(atoms[index + 1][0]).strips_before:
                text = text.rstrip()
            if isinstance(context, str) and self._manner(context).strips_after:
                text = text.lstrip()
            if text:
                tokens += self._ordinary(text, context)
                context = Place.MIDDLE
        return tokens, context

    def split(self, text: str) -> list[Span]:
        """A template's text cut around its special tokens; these are not `said`, the rest is."""
        return [Span(atom, said=not is_special) for atom, is_special in self._atoms([Span(text)])]

    def _atoms(self, spans: Iterable[Span]) -> list[tuple[str, bool]]:
        """Special tokens one by one and the ordinary text between them, joined: (text, is it a special token)."""
        atoms: list[tuple[str, bool]] = []

        def ordinary(text: str) -> None:
            if text and atoms and not atoms[-1][1]:
                atoms[-1] = (atoms[-1][0] + text, False)
            elif text:
                atoms.append((text, False))

        for span in spans:
            end = 0
            for found in self._pattern.finditer(span.text) if self._pattern and not span.said else ():
                ordinary(span.text[end : found.start()])
                atoms.append((found[0], True))
                end = found.end()
            ordinary(span.text[end:])
        return atoms

    def _ordinary(self, text: str, context: Context) -> list[Token]:
        """Ids of `text` without any special token among them, whatever it spells."""
        tokens = self._in_place(text, self.space_after(context))
        if self._pattern is None or self._ids.isdisjoint(tokens):
            return tokens
        # Unbreakable words are matched even in plain text: break each one after its first character.
        ends = [found.start() + 1 for found in self._pattern.finditer(text)]
        pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
        tokens = self._in_place(pieces[0], self.space_after(context))
        for piece in pieces[1:]:
            tokens += self._in_place(piece, space=False)
        return tokens

    def _in_place(self, text: str, space: bool) -> list[Token]:
        """Ids of `text`, with a space put before it or not (tokenizers that never put one ignore that)."""
        if not space:
            for anchor, ids in self._anchors:
                tokens = self._tokenizer.encode(anchor + text)
                if tokens[: len(ids)] == ids and (len(tokens) > len(ids) or not text):
                    return tokens[len(ids) :]
        return self._tokenizer.encode(text)

    def _find_anchors(self) -> list[tuple[str, list[Token]]]:
        """Characters that can stand before a text to keep the space away, and their ids; none if none is put.

        A good one melts with nothing: a control character (bytes, for SentencePiece), or punctuation of a script of
        its own. One the tokenizer drops or does not know is of no use.
        """
        anchors: list[tuple[str, list[Token]]] = []
        for anchor in ("\x01", "\n", "。", "|", "."):
            ids = self._tokenizer.encode(anchor)
            if ids and self._tokenizer.decode(ids).strip(" ") == anchor:
                anchors.append((anchor, ids))
        words = ("a", "the", "x", "1")
        for anchor, ids in anchors:
            if all(self._tokenizer.encode(anchor + word) == [*ids, *self._tokenizer.encode(word)] for word in words):
                return []
        return anchors

    def _find_manner(self, special: str) -> _Manner:
        """Try what the tokenizer does around `special`."""

        def after(text: str) -> Sequence[Token]:
            tokens = self._tokenizer.encode(special + text, special=True)
            return tokens[1:] if tokens[:1] == [self._specials[special]] else tokens

        def before(text: str) -> Sequence[Token]:
            return self._tokenizer.encode(text + special, special=True)

        plain = after("x")
        return _Manner(
            space_after=self.puts_space and plain == self._tokenizer.encode("x"),
            strips_after=after(" \nx") == plain,
            strips_before=before("x \n") == before("x"),
        )
