"""Text that is safe and short enough to print."""

import unicodedata

from duologue.text.words import words_of


def visible(text: str) -> str:
    """`text` with control characters but line breaks and tabs replaced, one for one, since terminals act on them."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or not _acts(c) else "·" for c in text)


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
    num = len(words_of(text[len(head) : -len(tail)]))
    left_out = f" ({num:,} more words) … " if num > 1 else " "
    return f"{head} …{left_out}{tail}"


def counted(num: int, what: str) -> str:
    """`1 word`, `2 words`."""
    return f"{num} {what}" if num == 1 else f"{num} {what}s"
