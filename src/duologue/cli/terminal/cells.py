"""Text in terminal cells: its width and its line breaks."""

from bisect import bisect_right
from itertools import accumulate
from typing import TypeAlias

from prompt_toolkit.utils import get_cwidth

from duologue.text.words import unspaced_ends

width_of = get_cwidth
"""Columns that a text takes: two for wide East Asian characters and most emoji, none for combining marks."""

Fragment: TypeAlias = tuple[str, str]
"""Style class and text."""
Line: TypeAlias = list[Fragment]


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """Lines of at most `width` columns plus `indent`, broken between words, and within words that are too long."""
    words = " ".join(text.split())
    return [indent + words[start:stop] for start, stop in spans_of(words, 0, width) or [(0, 0)]]


def spans_of(text: str, start: int, width: int) -> list[tuple[int, int]]:
    """Start and end of each line of `text` from `start` on; broken at line breaks, between words, or in long words."""
    spans: list[tuple[int, int]] = []
    ends = set(unspaced_ends(text))
    while start < len(text):
        if text[start] in " \n":
            start += 1
            continue
        stop, used, space = start, 0, -1
        while stop < len(text) and text[stop] != "\n":
            used += width_of(text[stop])
            if used > width and stop > start:
                break
            if text[stop] == " " or stop in ends:
                space = stop
            stop += 1
        if stop < len(text) and text[stop] not in " \n" and stop not in ends and space > start:
            stop = space
        spans.append((start, stop))
        start = stop
    return spans


def padded(line: Line, width: int) -> Line:
    """`line` padded to `width` columns."""
    used = sum(width_of(text) for _, text in line)
    return [*line, ("", " " * max(0, width - used))]


def fitted(text: str, width: int) -> str:
    """`text` cut or padded to `width` columns."""
    num_fitting = bisect_right(list(accumulate(map(width_of, text))), width)
    shown = text[:num_fitting]
    return shown + " " * (width - width_of(shown))
