"""Tokenises text for its place in a dialogue.

Special tokens are recognised in a template's own text, and never in what people say. SentencePiece tokenizers put a
space before a text, and some tokenizers drop white space after a special token; whether that is right depends on what
stands before the text. The tokenizer's behaviour is found by trying it, not from its type.
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
    """A piece of text. If `said` by somebody, it is never parsed for special tokens."""

    text: str
    said: bool = False


class Place(Enum):
    """The position of a text, if no special token is directly before it."""

    START = "at the very beginning"
    MIDDLE = "after ordinary text"


Context: TypeAlias = Place | str
"""What precedes a text: a place, or the text of a special token."""


@dataclass(frozen=True, slots=True)
class _Manner:
    """How a tokenizer treats text next to a special token."""

    space_after: bool  # a space is put before the text after it, as at the beginning
    strips_after: bool
    strips_before: bool


@final
class Splicer:
    """Encodes spans in their context. Its only state is what it has learned about the tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._specials = dict(tokenizer.special_tokens)
        self._ids = frozenset(self._specials.values())
        longest_first = sorted((text for text in self._specials if text), key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._anchors = self._find_anchors()
        self._puts_space = bool(self._anchors)  # whether the tokenizer puts a space before texts
        self._manner = cache(self._find_manner)

    def space_after(self, context: Context) -> bool:
        """Whether a space is put before a text in this context."""
        if isinstance(context, str):
            return self._manner(context).space_after
        return context is Place.START and self._puts_space

    def encode(self, spans: Iterable[Span], context: Context) -> tuple[list[Token], Context]:
        """Ids of the spans, one after the other, after `context`, and the context after them.

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
        """A template's text, split at its special tokens: these are not `said`, the rest is."""
        return [Span(atom, said=not is_special) for atom, is_special in self._atoms([Span(text)])]

    def _atoms(self, spans: Iterable[Span]) -> list[tuple[str, bool]]:
        """Special tokens, and the ordinary text between them: (text, whether it is a special token)."""
        atoms: list[tuple[str, bool]] = []
        for span in spans:
            for index, text in enumerate([span.text] if span.said else self._pattern.split(span.text)):
                is_special = index % 2 == 1
                if atoms and not is_special and not atoms[-1][1]:
                    text = atoms.pop()[0] + text
                if text:
                    atoms.append((text, is_special))
        return atoms

    def _ordinary(self, text: str, context: Context) -> list[Token]:
        """Ids of `text`, with no special token among them, whatever it spells."""
        tokens = self._in_place(text, self.space_after(context))
        if self._ids.isdisjoint(tokens):
            return tokens
        # Unbreakable words are matched even in ordinary text: split each one after its first character.
        ends = [found.start() + 1 for found in self._pattern.finditer(text)]
        pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
        tokens = self._in_place(pieces[0], self.space_after(context))
        for piece in pieces[1:]:
            tokens += self._in_place(piece, space=False)
        return tokens

    def _in_place(self, text: str, space: bool) -> list[Token]:
        """Ids of `text`, with or without a `space` put before it. Tokenizers that never put one ignore that."""
        if not space:
            for anchor, ids in self._anchors:
                tokens = self._tokenizer.encode(anchor + text)
                if tokens[: len(ids)] == ids and (len(tokens) > len(ids) or not text):
                    return tokens[len(ids) :]
        return self._tokenizer.encode(text)

    def _find_anchors(self) -> list[tuple[str, list[Token]]]:
        """Characters that prevent the space when they stand before a text, and their ids; empty if no space is put.

        A good one never merges with the text: a control character (bytes, in SentencePiece), or punctuation of another
        script. One that the tokenizer drops or does not know cannot be used.
        """
        encode, words = self._tokenizer.encode, ("a", "the", "x", "1")
        tried = [(anchor, encode(anchor)) for anchor in ("\x01", "\n", "。", "|", ".")]
        anchors = [(anchor, ids) for anchor, ids in tried if ids and self._tokenizer.decode(ids).strip(" ") == anchor]
        puts_none = any(all(encode(anchor + word) == ids + encode(word) for word in words) for anchor, ids in anchors)
        return [] if puts_none else anchors

    def _find_manner(self, special: str) -> _Manner:
        """Try how the tokenizer treats text around `special`."""

        def after(text: str) -> Sequence[Token]:
            tokens = self._tokenizer.encode(special + text, special=True)
            return tokens[1:] if tokens[:1] == [self._specials[special]] else tokens

        def before(text: str) -> Sequence[Token]:
            return self._tokenizer.encode(text + special, special=True)

        plain = after("x")
        return _Manner(
            space_after=self._puts_space and plain == self._tokenizer.encode("x"),
            strips_after=after(" \nx") == plain,
            strips_before=before("x \n") == before("x"),
        )
