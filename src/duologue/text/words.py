"""Where words begin and end: one rule for the whole package.

White space separates words. Within text of scripts that are written without it (Chinese, Japanese, Thai, …), words are
separated as well by Unicode's default word boundaries (UAX #29): a Chinese character is a word, and so is a run of
Katakana. Marks belong to the word before them, opening ones to the word behind them.
"""

import re
from collections.abc import Iterable, Iterator

import regex

DENSITY = 3
"""Characters of a script with spaces that take about as long to say as one of a script without."""

_UNSPACED = (
    r"(?!\p{M})[\p{Script=Han}\p{Script=Hiragana}\p{Script=Bopomofo}\p{Script=Yi}\p{Word_Break=Katakana}"
    r"\p{Line_Break=SA}]"
)
_OPENERS = r"[\p{Ps}\p{Pi}]*+"
_EXTENDERS = r"[\p{Word_Break=Extend}\p{Word_Break=Format}\p{Word_Break=ZWJ}]"
_CLUSTER = rf"(?:{_EXTENDERS}|[\p{{Grapheme_Cluster_Break=Extend}}\p{{Grapheme_Cluster_Break=SpacingMark}}])"
_JOINED = r"(?<=\u200d)\p{Extended_Pictographic}"  # by a zero-width joiner (rule WB3c)
_MARKS = rf"(?:(?:(?![\p{{Ps}}\p{{Pi}}])\p{{P}}|{_JOINED}){_EXTENDERS}*+)*+"
_KATAKANA = rf"(?:\p{{Word_Break=Katakana}}{_EXTENDERS}*+)++"

_CHUNK = re.compile(r"\S+")
_ANY_UNSPACED = regex.compile(_UNSPACED)
_WORD = regex.compile(
    rf"{_OPENERS}(?:{_KATAKANA}|(?={_UNSPACED})\S{_CLUSTER}*+){_MARKS}|(?:(?!{_OPENERS}{_UNSPACED})\S)++"
)
_BOUNDARY = regex.compile(r"\b", regex.WORD)
_ENDS_UNSPACED = regex.compile(rf"{_UNSPACED}{_EXTENDERS}*+\p{{P}}*+\Z")
_BEGINS_UNSPACED = regex.compile(rf"{_OPENERS}{_UNSPACED}")
_ENDS_KATAKANA = regex.compile(rf"{_KATAKANA}\Z")
_BEGINS_KATAKANA = regex.compile(r"\p{Word_Break=Katakana}")
_ENDS_OPEN = regex.compile(r"[\p{Ps}\p{Pi}]\Z")
_BEGINS_ATTACHED = regex.compile(rf"(?![\p{{Ps}}\p{{Pi}}])\p{{P}}|{_EXTENDERS}")
_NEAR = 16  # characters around a position that tell whether it is a boundary


def is_unspaced(text: str) -> bool:
    """Whether any of `text` is in a script that is written without spaces between words."""
    return not text.isascii() and _ANY_UNSPACED.search(text) is not None


def words_of(text: str) -> list[str]:
    """The words of `text` in order, punctuation attached."""
    return [text[start:end] for start, end in _spans(text)] if is_unspaced(text) else text.split()


def word_ends(text: str) -> list[int]:
    """Where the words of `text` end, in characters."""
    return [end for _, end in _spans(text)]


def unspaced_ends(text: str) -> list[int]:
    """Those of `word_ends` that no space, and not the end of the text, follows."""
    return [end for end in word_ends(text) if end < len(text) and not text[end].isspace()] if is_unspaced(text) else []


def needs_space(before: str, after: str) -> bool:
    """Whether words are told apart by a space only: the last of `before` and the first of `after`."""
    before = before[-_NEAR:]
    if _ENDS_OPEN.search(before) or _BEGINS_ATTACHED.match(after):
        return True
    if _BEGINS_KATAKANA.match(after) and _ENDS_KATAKANA.search(before):
        return True
    return not (_BEGINS_UNSPACED.match(after) or _ENDS_UNSPACED.search(before))


def join(parts: Iterable[str]) -> str:
    """Text of words, or of longer parts: with a space between two of them, unless one needs none."""
    joined: list[str] = []
    for part in filter(None, parts):
        if joined and needs_space(joined[-1], part):
            joined.append(" ")
        joined.append(part)
    return "".join(joined)


def first_words(text: str, num_words: int) -> str:
    """The first `num_words` words of `text`, with the spaces and line breaks between them unchanged."""
    ends = word_ends(text)[: max(0, num_words)]
    return text[: ends[-1]] if ends else ""


def is_word_end(text: str, position: int) -> bool:
    """Whether a word ends at `position`, which is inside `text`. A mark after a word is not part of it here."""
    before, after = text[position - 1], text[position]
    if before.isspace():
        return False
    is_inside = all(each.isalnum() or each in "'’_" for each in (before, after))
    if (before + after).isascii() or (is_inside and not is_unspaced(before + after)):
        return not is_inside
    start = max(0, position - _NEAR)
    return _BOUNDARY.match(text[start : position + _NEAR], position - start) is not None


def _spans(text: str) -> Iterator[tuple[int, int]]:
    for chunk in _CHUNK.finditer(text):
        if is_unspaced(chunk[0]):
            yield from (word.span() for word in _WORD.finditer(text, *chunk.span()))
        else:
            yield chunk.span()
