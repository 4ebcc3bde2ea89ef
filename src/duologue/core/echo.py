"""Recognises the assistant's own words when they come back through a microphone."""

import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import final

_LEAST = 4.0  # words of an echo; fewer may be a question about them. A character without spaces is half a word
_CJK = "\u2e80"  # from here on, scripts are written without spaces
_KEPT_S = 30.0  # longer than an utterance that is nothing but an echo
_MAX_UTTERANCES = 32
_SIMILAR = 0.5  # of the letters: a word that was misheard
_WORD = re.compile(r"[\u2e80-\uffef]|(?:[^\W_\u2e80-\uffef]|['’])+")


@dataclass(slots=True)
class _Speech:
    """An utterance. `num_words` of its first words are known to be an echo."""

    begun_at: float
    num_words: int = 0


@final
class EchoGuard:
    """Compares the beginning of an utterance with what the user has just heard of the assistant's answers."""

    def __init__(self) -> None:
        self._heard: deque[tuple[float, str]] = deque()  # when, which word
        self._speech: OrderedDict[str, _Speech] = OrderedDict()

    def hear(self, text: str, now: float) -> None:
        """Record that the user has just heard `text`, which consists of whole words."""
        self._heard.extend((now, word) for word in _words(text))
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
        if within_s and text:
            num_repeated = _num_repeated(_words(text), list(self._heard), speech.begun_at - within_s)
            speech.num_words = max(speech.num_words, num_repeated)
        starts = [match.start() for match in _WORD.finditer(text)]
        return [0, *starts[1:], len(text)][min(speech.num_words, len(starts))] if starts else 0

    def end(self, utterance: str) -> None:
        """Record that the utterance has ended: its id may be used again."""
        self._speech.pop(utterance, None)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("’", "'"))


def _num_repeated(words: Sequence[str], heard: Sequence[tuple[float, str]], since: float) -> int:
    """How many of the first `words` occur in a row in `heard`, where at most one of any four may be another word.

    The first and the last of them are at most misheard: words around an echo are the user's. The last was heard at
    `since` or later.
    """
    longest = 0
    for start, (_, first) in enumerate(heard):
        last_other, size = -3, 0.0
        for count in range(1, min(len(words), len(heard) - start) + 1):
            word, (at, other) = words[count - 1], heard[start + count - 1]
            size += 0.5 if word >= _CJK else 1.0
            if word != other:
                if count - last_other < 4:
                    break
                last_other = count
            is_long = size >= _LEAST and count > longest and at >= since
            if is_long and _is_like(word, other) and _is_like(words[0], first):
                longest = count
    return longest


def _is_like(word: str, other: str) -> bool:
    return word == other or SequenceMatcher(None, word, other).ratio() >= _SIMILAR
