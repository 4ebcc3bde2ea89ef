"""Cuts text into slices of 4 to 6 words, as a speaker would say it in each `SLICE_PERIOD_S` (DUO, section 2.1)."""

import random
import re
from itertools import accumulate, islice

from duologue.errors import require
from duologue.text.words import join, words_of

_SYLLABIC = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"  # Chinese, Japanese
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
_WORD = re.compile(
    rf"[{_SYLLABIC}]{{1,2}}[^\w\s]{{0,8}}|[{_UNSPACED}]{{1,5}}[^\w\s]{{0,8}}|[^\s{_SYLLABIC}{_UNSPACED}]{{1,40}}"
)
"""A word, in characters. Where no spaces are written, two syllables count as a word, as in most Chinese ones: at about
five syllables a second, a slice of two seconds has four to six of them. Longer strings than 40 are cut."""


def slices(text: str, *, words: tuple[int, int] = (4, 6), seed: int) -> list[str]:
    """Cut `text` into slices of `words[0]` to `words[1]` words, drawn uniformly; the last slice has the rest.

    What a word is, `duologue.text.words` says; slices that are joined as there have the same words. The same seed gives
    the same cuts. A text without words has no slices.

    Raises:
        UsageError: `words` is not a range of positive numbers.
    """
    least, most = words
    require(1 <= least <= most, f"words={words!r} is not a range of slice lengths; write for instance words=(4, 6)")
    chance = random.Random(seed)
    rest, cut = iter(words_of(text)), []
    while piece := list(islice(rest, chance.randint(least, most))):
        cut.append(join(piece))
    return cut


def partials(text: str, *, words: tuple[int, int] = (4, 6), seed: int) -> list[str]:
    """The text so far after each slice of `slices`, as `Session.hear` takes it.

    The last one has all words of `text`, with single spaces between those that need one.

    Raises:
        UsageError: as `slices`.
    """
    return list(accumulate(slices(text, words=words, seed=seed), lambda *parts: join(parts)))


def slice_spans(text: str, *, words: tuple[int, int] = (4, 6), chance: random.Random) -> list[tuple[int, int]]:
    """The start and end of each slice in `text`, of `words[0]` to `words[1]` words; the last slice has the rest.

    The white space between two slices belongs to neither. Scripts without spaces are cut between characters.
    """
    spans = [found.span() for found in _WORD.finditer(text)]
    cut, at = [], 0
    while at < len(spans):
        end = min(len(spans), at + chance.randint(*words))
        cut.append((spans[at][0], spans[end - 1][1]))
        at = end
    return cut
