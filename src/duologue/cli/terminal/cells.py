"""Text in terminal cells: its width and its line breaks."""

from bisect import bisect_right
from itertools import accumulate
from typing import TypeAlias

from prompt_toolkit.utils import get_cwidth

from duologue.text.words import unspaced_ends

TAB = 4


def width_of(text: str) -> int:
    """Columns that a text takes: two for wide East Asian characters and most emoji, none for combining marks.

    A tab takes as many as `drawn` writes for it.
    """
    return get_cwidth(text.replace("\t", " " * TAB))


def drawn(text: str) -> str:
    """`text` without tabs, whose width terminals decide."""
    return text.replace("\t", " " * TAB)


Fragment: TypeAlias = tuple[str, str]
"""Style class and text."""
Line: TypeAlias = list[Fragment]


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """Lines of at most `width` columns plus `indent`, with their own indentation; see `spans_of`."""
    text = text.expandtabs(TAB)
    return [indent + text[start:stop] for start, stop in spans_of(text, 0, width) or [(0, 0)]]


def spans_of(text: str, start: int, width: int) -> list[tuple[int, int]]:
    """Start and end of each line of `text` from `start` on.

    Lines end at line breaks, at spaces, or within words that are too long. Those of the text keep their indentation, as
    far as there is room, and blank ones within it are kept.
    """
    spans: list[tuple[int, int]] = []
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if text[start:end].strip():
            is_whole = start == 0 or text[start - 1] == "\n"
            spans += _spans_of_line(text, start, end, width, keeps_indent=is_whole)
        elif spans and end < len(text):
            spans.append((start, start))
        start = end + 1
    while spans and spans[-1][0] == spans[-1][1]:
        spans.pop()
    return spans


def _spans_of_line(text: str, start: int, end: int, width: int, *, keeps_indent: bool) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    ends = {start + position for position in unspaced_ends(text[start:end])}
    words_at = end - len(text[start:end].lstrip(" \t"))
    while start < words_at and not (keeps_indent and width_of(text[start:words_at]) <= width // 2):
        start += 1
    while start < end:
        stop, used, space = start, 0, -1
        while stop < end:
            used += width_of(text[stop])
            if used > width and stop > start:
                break
            if (text[stop] == " " or stop in ends) and stop > words_at:
                space = stop
            stop += 1
        if stop < end and text[stop] != " " and stop not in ends and space > start:
            stop = space
        spans.append((start, max(start + 1, start + len(text[start:stop].rstrip(" ")))))
        start = stop
        while start < end and text[start] == " ":
            start += 1
    return spans


def padded(line: Line, width: int) -> Line:
    """`line` padded to `width` columns."""
    used = sum(width_of(text) for _, text in line)
    return [*line, ("", " " * max(0, width - used))]


def fitted(text: str, width: int) -> str:
    """`text` cut or padded to `width` columns."""
    text = drawn(text)
    num_fitting = bisect_right(list(accumulate(map(width_of, text))), width)
    shown = text[:num_fitting]
    return shown + " " * (width - width_of(shown))
