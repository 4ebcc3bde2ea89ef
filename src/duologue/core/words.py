"""What the form of a text tells: whether it is words at all, ends with a question, or asks for a moment."""

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
_DEMAND = re.compile(
    r"(?:\bplease (?:tell|give|say|spell|choose|enter|provide|describe)\b[^.!?]*[.!]?"
    r"|请[您你]?[再先]?(?:告诉|给|说|提供|输入|选|描述|报)[^。！？!?]*[。！]?)[\s\"'”’)」』]*\Z"
)
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
_MANDARIN_HOLD = (
    r"(?:稍等(?:一下|片刻|一会儿?)?|稍候|等(?:等|一下|一等|一会儿?|会儿?)|等我(?:一下|一会儿?|一分钟)?|马上(?:就好|好)?|一会儿"
    r"|给我一?(?:点时间|点儿时间|分钟|秒钟))"
)
_MANDARIN_LOOK = (
    r"(?:让我|容我|等我|我)[先再去来得]*(?:想想|想一想|想一下"
    r"|(?:看看|看一看|看一?下|查查|查一?下|找找看?|找一?下|问问|问一?下|翻翻|翻一?下|确认一下|核对一下|拿一下)\w{0,6})"
)
_MANDARIN_FILLER = r"[嗯呃哦啊好的那你您请先就吧]*"
_MANDARIN_MOMENT = re.compile(rf"{_MANDARIN_FILLER}(?:(?:{_MANDARIN_HOLD}|{_MANDARIN_LOOK}){_MANDARIN_FILLER})+")
_MOST_WORDS = 20  # of a request for a moment
_MOST_CHARACTERS = 40  # of one in Mandarin
_QUESTION_LENGTH = 200  # characters at the end of what the assistant said


def bare(text: str) -> str:
    """The words of `text` alone: in lower case, without punctuation, separated by single spaces."""
    return " ".join(re.findall(r"[\w']+", text.lower().replace("’", "'")))


def asks_for_a_moment(text: str, question: str) -> bool:
    """Whether `text` is nothing but a request to wait, in English or Mandarin, such as "hang on, let me find it".

    Words of the `question` itself are a reply to it: "wait" is one behind "shall I go, or wait?".
    """
    words = bare(text)
    characters = words.replace(" ", "")
    if len(characters) <= _MOST_CHARACTERS and _MANDARIN_MOMENT.fullmatch(characters):
        return characters not in bare(question[-_QUESTION_LENGTH:])
    is_request = words.count(" ") < _MOST_WORDS and _MOMENT.fullmatch(words) is not None
    return is_request and f" {words} " not in f" {bare(question[-_QUESTION_LENGTH:])} "


def asks(text: str) -> bool:
    """Whether `text` ends with a question, or with a request such as "please tell me the date" or "请告诉我日期"."""
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
