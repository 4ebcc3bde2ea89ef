"""Text into slices: what a speaker says in one period (DUO, section 2). Knows words and chance, and no model."""

import random

from duologue.errors import UsageError


def slices(text: str, *, words: tuple[int, int] = (4, 6), seed: int) -> list[str]:
    """Cut `text` into slices of `words[0]` to `words[1]` words each, drawn evenly; the last takes what is left.

    Words are what white space separates, and slices joined with single spaces give them back. The same seed gives
    the same cuts; a text without words gives no slices.

    Raises:
        UsageError: `words` is not a range of positive numbers.
    """
    least, most = words
    if not 1 <= least <= most:
        raise UsageError(f"words={words!r} is not a range of slice lengths; write for instance words=(4, 6)")
    chance = random.Random(seed)
    said = text.split()
    cut: list[str] = []
    start = 0
    while start < len(said):
        end = start + chance.randint(least, most)
        cut.append(" ".join(said[start:end]))
        start = end
    return cut


def partials(text: str, *, words: tuple[int, int] = (4, 6), seed: int) -> list[str]:
    """What has been said after each slice of `slices`: the growing text that `Session.hear` takes.

    The last one holds all words of `text`, joined with single spaces.

    Raises:
        UsageError: as `slices`.
    """
    grown: list[str] = []
    for piece in slices(text, words=words, seed=seed):
        grown.append(f"{grown[-1]} {piece}" if grown else piece)
    return grown
