"""Estimates when each word of a synthesised text ends, for synthesisers that do not report it."""

import numpy as np

from duologue.text.words import is_unspaced, word_ends, words_of
from duologue.voice.engines.interfaces import Mark, Speech
from duologue.voice.sound import Samples, silence

_PAUSES = {",": 4, ";": 5, ":": 5, ".": 7, "!": 7, "?": 7, "…": 7}  # lengths, in letters
_PAUSES |= {"、": 4, "，": 4, "；": 5, "：": 5, "。": 7, "！": 7, "？": 7}
_QUIET = 0.01  # of full scale; quieter samples count as silence


def estimated(text: str, samples: Samples, rate: int) -> Speech:
    """`text` spoken as `samples`, `[n]`, with one mark per word: time is divided by the number of letters."""
    words = words_of(text)
    if not words or not len(samples):
        return Speech(samples, rate, (Mark(len(samples), len(text)),))
    first, last = _bounds(samples)
    weights = np.array([_letters(word) for word in words], np.float64)
    pauses = np.array([_PAUSES.get(word[-1], 0) for word in words], np.float64)
    pauses[-1] = 0.0  # the pause after the last word is outside of the bounds
    begins = np.cumsum(weights + pauses) - (weights + pauses)
    ends = first + (begins + weights) / float(weights.sum() + pauses.sum()) * (last - first)
    return Speech(samples, rate, marks_of(text, ends.astype(int).tolist(), len(samples)))


def marks_of(text: str, ends: list[int], length: int) -> tuple[Mark, ...]:
    """Marks for the words of `text`, which end at the samples `ends`; the last one is at `length`."""
    spans = word_ends(text)
    marks = [Mark(min(end, length), at) for end, at in zip(ends[:-1], spans[:-1], strict=True)]
    return (*marks, Mark(length, len(text)))


def trimmed(speech: Speech, *, before: float, behind: float) -> Speech:
    """`speech` with at most `before` and `behind` seconds of silence at its ends, so that clauses follow naturally."""
    first, last = _bounds(speech.samples)
    begin = max(0, first - int(before * speech.rate))
    end = last + int(behind * speech.rate)
    samples = speech.samples[begin:end]
    samples = np.concatenate([samples, silence(end - begin - len(samples))])
    marks = tuple(Mark(min(max(0, mark.sample - begin), len(samples)), mark.position) for mark in speech.marks)
    return Speech(samples, speech.rate, marks)


def _bounds(samples: Samples) -> tuple[int, int]:
    """The first sample that is not silent, and the one after the last."""
    loud = np.flatnonzero(np.abs(samples) > _QUIET)
    return (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, 0)


def _letters(word: str) -> float:
    """The approximate duration of a word, in letters. Digits count more, since they are spoken as words."""
    letters = sum(3.0 if c.isdigit() else 1.0 if c.isalpha() else 0.2 for c in word)
    return letters + (3.0 if is_unspaced(word) else 1.0)
