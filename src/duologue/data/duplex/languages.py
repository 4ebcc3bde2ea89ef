"""Which language a dialogue is in, as far as its transitions depend on it."""

import re

from duologue.data.forms import FUNCTION_WORDS

OTHER = "other"
"""A language without transitions: its dialogues are sliced, but not interrupted."""

_SAMPLE = 2000  # characters that are looked at
_HAN = re.compile(r"[\u4e00-\u9fff]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_LETTERS = re.compile(r"[^\W\d_]")
_LATIN_WORDS = re.compile(r"[a-z']+")
_MIN_HAN = 0.4  # share of the letters
_MAX_KANA = 0.05
_MIN_FUNCTION_WORDS = 0.2  # share of the words of English; other languages have less than 0.1


def language_of(text: str) -> str:
    """ "zh" by its characters, "en" by its function words, or else `OTHER`."""
    sample = text[:_SAMPLE].lower()
    letters = len(_LETTERS.findall(sample))
    if len(_HAN.findall(sample)) > _MIN_HAN * letters and len(_KANA.findall(sample)) <= _MAX_KANA * letters:
        return "zh"
    words = _LATIN_WORDS.findall(sample)
    if words and sum(word in FUNCTION_WORDS for word in words) >= _MIN_FUNCTION_WORDS * len(words):
        is_latin = sum(map(len, words)) > letters / 2
        return "en" if is_latin else OTHER
    return OTHER
