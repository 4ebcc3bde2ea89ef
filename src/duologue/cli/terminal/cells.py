"""Text in terminal cells: its width and its line breaks."""

from typing import TypeAlias

from prompt_toolkit.utils import get_cwidth

width_of = get_cwidth
"""Columns that a text takes: two for wide East Asian characters and most emoji, none for combining marks."""

Fragment: TypeAlias = tuple[str, str]
"""Style class and text."""
Line: TypeAlias = list[Fragment]


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """Lines of at most `width` columns plus `indent`, broken at white space, and within words that are too long."""
    lines: list[str] = []
    line, used = "", 0
    for word in text.split():
        size = width_of(word)
        if line and used + 1 + size <= width:
            line, used = f"{line} {word}", used + 1 + size
            continue
        if line:
            lines.append(line)
        while size > width:
            cut = max(1, _fitting(word, width))
            lines.append(word[:cut])
            word = word[cut:]
            size = width_of(word)
        line, used = word, size
    if line or not lines:
        lines.append(line)
    return [indent + line for line in lines]


def padded(line: Line, width: int) -> Line:
    """`line` padded to `width` columns."""
    used = sum(width_of(text) for _, text in line)
    return [*line, ("", " " * max(0, width - used))]


def fitted(text: str, width: int) -> str:
    """`text` cut or padded to `width` columns."""
    shown = text if width_of(text) <= width else text[: _fitting(text, width)]
    return shown + " " * (width - width_of(shown))


def _fitting(word: str, width: int) -> int:
    """How many characters of `word` fit into `width` columns."""
    used = 0
    for i, character in enumerate(word):
        used += width_of(character)
        if used > width:
            return i
    return len(word)
