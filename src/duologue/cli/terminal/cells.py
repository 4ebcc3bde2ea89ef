"""Text in terminal cells: its width, its line breaks, and which characters are safe to print."""

import unicodedata
from typing import TypeAlias

Fragment: TypeAlias = tuple[str, str]
"""Style class and text."""
Line: TypeAlias = list[Fragment]


def width_of(text: str) -> int:
    """Columns that `text` takes: two for wide East Asian characters and most emoji, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def visible(text: str) -> str:
    """`text` with control characters other than line breaks replaced, one for one, since terminals interpret them."""
    if text.isprintable():
        return text
    return "".join("\n" if c == "\n" else " " if c == "\t" else "·" if _acts(c) else c for c in text)


def _acts(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Cs")
        or "\u202a" <= character <= "\u202e"
        or ("\u2066" <= character <= "\u2069")
    )


def shortened(text: str, limit: int) -> str:
    """`text`; if it is longer than `limit` characters, its beginning, a count of words, and its end."""
    if len(text) <= limit:
        return text
    head, tail = text[: limit * 3 // 4], text[-(limit // 4) :]
    num = len(text[len(head) : -len(tail)].split())
    left_out = f" ({num:,} more words) … " if num > 1 else " "
    return f"{head} …{left_out}{tail}"


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


def counted(num: int, what: str) -> str:
    """`1 word`, `2 words`."""
    return f"{num} {what}" if num == 1 else f"{num} {what}s"


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
        used += _columns(character)
        if used > width:
            return i
    return len(word)
