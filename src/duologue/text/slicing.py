"""Cuts text into slices, as a speaker would say it period by period (DUO, section 2)."""

import random

from duologue.errors import UsageError


def slices(text: str, *, words: tuple[int, int] = (4, 6), seed: int) -> list[str]:
    """Cut `text` into slices of `words[0]` to `words[1]` words, drawn uniformly; the last has the rest.

    White space separates words; slices joined by single spaces have the same words. The same seed gives the same cuts.
    A text without words has no slices.

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
    """The text so far after each slice of `slices`, as `Session.hear` takes it.

    The last one has all words of `text`, joined by single spaces.

    Raises:
        UsageError: as `slices`.
    """
    grown: list[str] = []
    for piece in slices(text, words=words, seed=seed):
        grown.append(f"{grown[-1]} {piece}" if grown else piece)
    return grown
