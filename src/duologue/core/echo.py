"""Recognises the assistant's own words when they come back through a microphone."""

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import final

_LEAST = 4.0  # words of an echo; fewer may be a question about them. A word without spaces around it is half a word
_KEPT_S = 30.0  # longer than an utterance that is nothing but an echo
_MAX_UTTERANCES = 32
_SIMILAR = 0.5  # of the letters: a word that was misheard
_PART = re.compile(r"(?:[^\W_]|['’])+")  # of a word, without marks


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of an utterance, or of an answer."""

    start: int
    text: str
    size: float


@dataclass(slots=True)
class _Speech:
    """An utterance. `num_words` of its first words are known to be an echo."""

    begun_at: float
    num_words: int = 0


@final
class EchoGuard:
    """Compares the beginning of an utterance with what the user has just heard of the assistant's answers.

    `word_ends` is that of the template.
    """

    def __init__(self, word_ends: Callable[[str], Sequence[int]]) -> None:
        self._word_ends = word_ends
        self._heard: deque[tuple[float, str]] = deque()  # when, which word
        self._speech: OrderedDict[str, _Speech] = OrderedDict()

    def hear(self, text: str, now: float) -> None:
        """Record that the user has just heard `text`, which consists of whole words."""
        self._heard.extend((now, word.text) for word in self._words(text))
        while self._heard and self._heard[0][0] < now - _KEPT_S:
            self._heard.popleft()

    def num_echoed(self, utterance: str, text: str, now: float, within_s: float) -> int:
        """The length of the echo that `text`, all of `utterance` so far, begins with, in characters.

        Its last word was heard at most `within_s` seconds before the utterance began. With 0, it is as long as it was
        found to be before.
        """
        speech = self._speech.setdefault(utterance, _Speech(now))
        while len(self._speech) > _MAX_UTTERANCES:
            self._speech.popitem(last=False)
        words = self._words(text)
        if within_s and text:
            num_repeated = _num_repeated(words, list(self._heard), speech.begun_at - within_s)
            speech.num_words = max(speech.num_words, num_repeated)
        starts = [word.start for word in words]
        return [0, *starts[1:], len(text)][min(speech.num_words, len(starts))] if starts else 0

    def _words(self, text: str) -> list[_Word]:
        found, start = [], 0
        for end in self._word_ends(text):
            touches = (start and not text[start].isspace()) or (end < len(text) and not text[end].isspace())
            for part in _PART.finditer(text, start, end):
                word = part[0].lower().replace("’", "'")
                found.append(_Word(part.start(), word, 0.5 if touches else 1.0))
            start = end
        return found

    def end(self, utterance: str) -> None:
        """Record that the utterance has ended: its id may be used again."""
        self._speech.pop(utterance, None)


def _num_repeated(words: Sequence[_Word], heard: Sequence[tuple[float, str]], since: float) -> int:
    """How many of the first `words` occur in a row in `heard`, where at most one of any four may be another word.

    The first and the last of them are at most misheard: words around an echo are the user's. The last was heard at
    `since` or later.
    """
    longest = 0
    for start, (_, first) in enumerate(heard):
        last_other, size = -3, 0.0
        for count in range(1, min(len(words), len(heard) - start) + 1):
            word, (at, other) = words[count - 1].text, heard[start + count - 1]
            size += words[count - 1].size
            if word != other:
                if count - last_other < 4:
                    break
                last_other = count
            is_long = size >= _LEAST and count > longest and at >= since
            if is_long and _is_like(word, other) and _is_like(words[0].text, first):
                longest = count
    return longest


def _is_like(word: str, other: str) -> bool:
    return word == other or SequenceMatcher(None, word, other).ratio() >= _SIMILAR
