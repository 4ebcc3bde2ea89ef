"""Cuts text into slices, as a speaker would say it period by period (DUO, section 2)."""

import random
from itertools import accumulate, islice

from duologue.errors import require


def slices(text: str, *, words: tuple[int, int] = (4, 6), seed: int) -> list[str]:
    """Cut `text` into slices of `words[0]` to `words[1]` words, drawn uniformly; the last slice has the rest.

    White space separates words; slices joined by single spaces have the same words. The same seed gives the same cuts.
    A text without words has no slices.

    Raises:
        UsageError: `words` is not a range of positive numbers.
    """
    least, most = words
    require(1 <= least <= most, f"words={words!r} is not a range of slice lengths; write for instance words=(4, 6)")
    chance = random.Random(seed)
    rest, cut = iter(text.split()), []
    while piece := list(islice(rest, chance.randint(least, most))):
        cut.append(" ".join(piece))
    return cut


def partials(text: str, *, words: tuple[int, int] = (4, 6), seed: int) -> list[str]:
    """The text so far after each slice of `slices`, as `Session.hear` takes it.

    The last one has all words of `text`, joined by single spaces.

    Raises:
        UsageError: as `slices`.
    """
    return list(accumulate(slices(text, words=words, seed=seed), "{} {}".format))
