"""What the form of a text tells: whether it is words at all, and whether it ends with a question."""

import re

_SAID = (
    "i|you|we|me|my|your|it|what|why|how|who|when|where|which|is|are|can|could|would|do|yes|okay|please|never|not|if"
    "|for"
)  # words of speech or code, which describe no sound
_SOUND = rf"(?![\w .…'’-]*\b(?:{_SAID})\b)\s*+(?:[^\W\d]{{2}}(?:[^\W\d]|[ .…'’-]){{0,60}}+|[\u2e80-\uffef])\s*+"
_PLACEHOLDERS = (
    "unk|unknown|noise|spoken_noise|spn|sil|silence|blank|nospeech|\\|nospeech\\||eps|music|laugh|laughter|cough"
    "|breath|inaudible|unintelligible|foreign|crosstalk"
)
_QUESTION = re.compile(r"[?？؟]\W{0,8}\Z")
_NON_SPEECH = re.compile(
    rf"(?:\[{_SOUND}\]|\({_SOUND}\)|\{{{_SOUND}\}}|[【［]{_SOUND}[】］]|（{_SOUND}）|\*{_SOUND}\*|♪[^♪]+♪"
    rf"|<(?:{_PLACEHOLDERS})>|[\s.,;:!?…¿¡·'\"‘’“”«»„。，、！？：；–—♩♪♫♬🎵🎶-])++",
    re.IGNORECASE,
)


def asks(text: str) -> bool:
    """Whether `text` ends with a question."""
    return _QUESTION.search(text) is not None


def words_in(text: str) -> str:
    """`text` without blanks at its ends; empty if it consists of nothing but non-speech text.

    That is the name of a sound in brackets or single asterisks ("[ Silence ]", "(music playing)", "*coughs*"), text
    between music notes, a placeholder ("<unk>"), or bare punctuation. Beside words, it is part of the text, since users
    write brackets, too.
    """
    text = text.strip()
    return "" if _NON_SPEECH.fullmatch(text) else text
