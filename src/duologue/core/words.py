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
_DEMAND = re.compile(r"\bplease (?:tell|give|say|spell|choose|enter|provide|describe)\b[^.!?]*[.!]?[\s\"'”’)]*\Z")
_NON_SPEECH = re.compile(
    rf"(?:\[{_SOUND}\]|\({_SOUND}\)|\{{{_SOUND}\}}|[【［]{_SOUND}[】］]|（{_SOUND}）|\*{_SOUND}\*|♪[^♪]+♪"
    rf"|<(?:{_PLACEHOLDERS})>|[\s.,;:!?…¿¡·'\"‘’“”«»„。，、！？：；–—♩♪♫♬🎵🎶-])++",
    re.IGNORECASE,
)

_TIME = r"(?:sec|second|seconds|moment|minute|minutes|bit)"
_FILLER = r"(?:u[hm]+|erm?|h?mm+|oh|ah|okay|ok|yeah|yes|sure|sorry|well|so|right|please|just|thanks)"
_HOLD = (
    rf"(?:(?:(?:can|could) you )?(?:wait|hang on|hold on|hold up)(?: (?:for )?(?:just )?(?:a|one) {_TIME})?"
    rf"|(?:(?:can|could) you )?(?:give me|gimme|i need|i just need|i'll need)(?: just)? (?:a|one|two|a few|another)"
    rf" {_TIME}"
    rf"|(?:just a|half a) {_TIME}|one (?:sec|second|moment)|bear with me)"
)
_LOOK = r"(?:see|check|find|look|think|search|ask|get|grab|fetch|open|go)"
_THAT = r"(?:it|that|this|them|it up|that up|for it|for that|about it|about that|my \w+(?: \w+)?)"
_REASON = (
    r"(?:let me|while i|until i|so i can|i need to|i have to|i'll|i will|i'm going to)(?: just| go and)?"
    rf" {_LOOK}(?: [^\W\d]+){{0,5}}"
)
_MOMENT = re.compile(
    rf"(?:{_FILLER} )*(?:{_HOLD}|let me(?: just)? {_LOOK}(?: {_THAT})?)(?: (?:{_FILLER}|{_HOLD}|{_REASON}))*"
)
_MOST_WORDS = 20  # of a request for a moment
_QUESTION_LENGTH = 200  # characters at the end of what the assistant said


def bare(text: str) -> str:
    """The words of `text` alone: in lower case, without punctuation, separated by single spaces."""
    return " ".join(re.findall(r"[\w']+", text.lower().replace("’", "'")))


def asks_for_a_moment(text: str, question: str) -> bool:
    """Whether `text` is nothing but a request to wait, in English, such as "hang on, let me find it".

    Words of the `question` itself are a reply to it: "wait" is one behind "shall I go, or wait?".
    """
    words = bare(text)
    is_request = words.count(" ") < _MOST_WORDS and _MOMENT.fullmatch(words) is not None
    return is_request and f" {words} " not in f" {bare(question[-_QUESTION_LENGTH:])} "


def asks(text: str) -> bool:
    """Whether `text` ends with a question, or in English with a request such as "please tell me the date"."""
    end = text[-_QUESTION_LENGTH:]
    return _QUESTION.search(end[-10:]) is not None or _DEMAND.search(end.lower()) is not None


def words_in(text: str) -> str:
    """`text` without blanks at its ends; empty if it consists of nothing but non-speech text.

    That is the name of a sound in brackets or single asterisks ("[ Silence ]", "(music playing)", "*coughs*"), text
    between music notes, a placeholder ("<unk>"), or bare punctuation. Beside words, it is part of the text, since users
    write brackets, too.
    """
    text = text.strip()
    return "" if _NON_SPEECH.fullmatch(text) else text
