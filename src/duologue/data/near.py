"""Texts that are near to the texts of a test: the same words, or most of the same content words."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import final

from duologue.data import forms
from duologue.data.samples import MIN_CONTENT_WORDS, content_words

SHARE = 0.8
"""Texts are near if at least this share of their content words together is in both."""

_MIN_WORDS = 3
"""Texts with fewer words are a closed set ("yes please") that everybody says; they are near to nothing. Of words that
are characters, twice as many are needed.
"""


@final
class NearTexts:
    """An index of texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        spoken = {forms.spoken(text) for text in texts}
        least = {text: _MIN_WORDS * (2 if forms.is_unspaced(text) else 1) for text in spoken}
        self._exact = {hash(text) for text in spoken if len(forms.words(text)) >= least[text]}
        sets = {words for text in spoken if len(words := content_words(text)) >= MIN_CONTENT_WORDS}
        self._sets = list(sets)
        self._with_word: defaultdict[str, list[int]] = defaultdict(list)  # word → numbers of the sets with it
        for number, words in enumerate(self._sets):
            for word in words:
                self._with_word[word].append(number)

    def __contains__(self, text: str) -> bool:
        plain = forms.spoken(text)
        if hash(plain) in self._exact:
            return True
        words = content_words(plain)
        if len(words) < MIN_CONTENT_WORDS:
            return False
        # a near set has `needed` of the words, so it has at least one of the rarest that are more than the others
        needed = math.ceil(SHARE * len(words))
        rarest = sorted(words, key=lambda word: len(self._with_word.get(word, ())))[: len(words) - needed + 1]
        found = Counter(number for word in rarest for number in self._with_word.get(word, ()))
        return any(len(words & self._sets[n]) >= SHARE * len(words | self._sets[n]) for n in found)
