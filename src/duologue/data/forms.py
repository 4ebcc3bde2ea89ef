"""The form of words: as a recogniser writes them or as people type them, whole or cut.

Corpora differ in case and punctuation, and a model that learns the style of a corpus scores well and is useless. So all
classes are written in the same two forms with the same probabilities.

What is known of words is English; `mandarin` has the same for text that is written without spaces.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence

from duologue.core import words as words_form
from duologue.data import mandarin
from duologue.text import words as boundaries


def word_set(words: str) -> frozenset[str]:
    """The words of a string that separates them by spaces."""
    return frozenset(words.split())


FUNCTION_WORDS = word_set(
    "a an the my your his her its our their this these those some any every each no of to in on at for with "
    "from by about into onto over under between during through without than as like near and or but so "
    "because if when while that which who whose whom what where why how is are was were am be been do does "
    "did can could will would shall should may might must have has had i you he she we they it me us i'm "
    "you're it's what's where's who's how's that's there's let's i'd i'll i've isn't aren't don't doesn't "
    "didn't can't couldn't won't wouldn't shouldn't haven't hasn't very more most less least too also just "
    "only many much another other please could've um uh er hmm"
)
"""Words after which an English request is rarely complete."""

COMPLETE_ENDS = word_set(
    "it me you them him her us i'm too also more much most please that this on in off up out over about am "
    "are is was do does did have has can will would should mine yours like for to at with from of by near"
)
"""Function words that can end a request ("what is this for", "turn it on"); a cut there is clear only early on."""

QUESTION_WORDS = word_set(
    "what who whom whose which where when why how is are was were am do does did can could will would shall "
    "should may might must have has had isn't aren't don't doesn't didn't can't couldn't won't wouldn't "
    "what's who's where's when's how's"
)

_NOT_SPOKEN = re.compile(r"[^\w\s'$%€£+&@.:/-]", re.UNICODE)
_LOOSE = re.compile(r"(?<!\w)['.:/-]+|['.:/-]+(?!\w)")
_SPACES = re.compile(r"\s+")
_SENTENCE_MARKS = tuple(".!?;:。！？；：")
_ENDING = re.compile(r"[\s.!?,;:…。！？，、；：-]+$")


def sentence(text: str) -> str:
    """`text` with a capital at its beginning, and "I" as one."""
    return re.sub(r"\bi\b(?!\.\w)", "I", text[:1].upper() + text[1:])


def is_unspaced(text: str) -> bool:
    """Whether most words of `text` are in a script without spaces. A foreign word among others changes nothing."""
    if not boundaries.is_unspaced(text):
        return False
    found = boundaries.words_of(text)
    return 2 * sum(map(boundaries.is_unspaced, found)) > len(found)


def words(text: str) -> list[str]:
    """The words of `text` in order, punctuation attached; see `duologue.text.words`."""
    return boundaries.words_of(text) if is_unspaced(text) else text.split()


def join(parts: Iterable[str]) -> str:
    """The text of `parts`, which are words or longer."""
    text = " ".join(filter(None, parts := list(parts)))
    return boundaries.join(parts) if is_unspaced(text) else text


def spoken(text: str) -> str:
    """The normal form: lower case without punctuation, as a recogniser writes."""
    text = text.replace("’", "'").replace("—", " ").replace("–", " ").replace("--", " ")
    text = _NOT_SPOKEN.sub(" ", text.lower())
    plain = _SPACES.sub(" ", _LOOSE.sub(" ", text)).strip()
    return join(words(plain)) if is_unspaced(plain) else plain


def typed(text: str, rng: random.Random, *, question: bool, whole: bool) -> str:
    """`text` as somebody might type it, with or without capitals and a final mark, equally likely for all classes.

    A cut text never has a final mark. The inner punctuation stays that of the source.
    """
    text = _ENDING.sub("", _SPACES.sub(" ", text)).strip().strip("\"'")
    if not text:
        return text
    if rng.random() < 0.6:
        text = re.sub(r"\bi\b", "I", text[0].upper() + text[1:])
    elif rng.random() < 0.5:
        text = text.lower()
    comma, marks = ("，", "？。！") if is_unspaced(text) else (",", "?.!")
    if rng.random() < 0.3:
        text = text.replace(comma, "")
    if whole and rng.random() < 0.6:
        text += marks[0] if question else rng.choices(marks[1:], (9, 1))[0]
    return text


def random_form(text: str, rng: random.Random, *, question: bool, whole: bool) -> str:
    """`text` in one of the two forms, with equal probability."""
    return spoken(text) if rng.random() < 0.5 else typed(text, rng, question=question, whole=whole)


def is_question(text: str) -> bool:
    """Whether `text` is a question, by its final mark, its first word, or in Mandarin by any."""
    if is_unspaced(text):
        return text.rstrip().endswith(("?", "？")) or mandarin.is_question(spoken(text))
    return text.rstrip().endswith("?") or spoken(text).split(" ", 1)[0] in QUESTION_WORDS


_SENTENCE_ENDS = re.compile(r"(?<=[.!?])[\s\"')\]]+(?=\S)|(?<=[。！？])[\s”’」』）]*(?=\w)")
_OFFER = re.compile(r"\blet me know\b")


def last_sentence(text: str) -> str:
    """The last sentence of `text`, or all of it if it has no marks."""
    return _SENTENCE_ENDS.split(text.strip())[-1]


def asks(text: str) -> bool:
    """Whether what the assistant said ends with a question, or with a request to say something."""
    return words_form.asks(text) or bool(_OFFER.search(last_sentence(text).lower()))


_REPLY_STARTS = word_set("yes yeah yep no nope ok okay sure thanks thank great perfect that that's it and they he she")


def stands_alone(text: str) -> bool:
    """Whether a turn of a dialogue can be said without the turn before it."""
    if is_unspaced(text):
        return mandarin.stands_alone(spoken(text))
    plain = spoken(text).split()
    return len(plain) >= 5 and plain[0] not in _REPLY_STARTS


_CONJUNCTIONS = word_set("and but because so if or since although then")


def joints(text: str) -> list[int]:
    """The numbers of words after which a turn could have ended, but goes on: its sentences, and clauses."""
    parts = words(text)
    if is_unspaced(text):
        return [
            n
            for n in range(5, len(parts) - 2)
            if parts[n - 1][-1] in "。？！" or (n >= 8 and mandarin.goes_on("".join(parts[n : n + 2])))
        ]
    return [
        n
        for n in range(3, len(parts) - 1)
        if parts[n - 1][-1] in ".?!"
        or (parts[n].lower() in _CONJUNCTIONS and (parts[n - 1][-1] == "," or n >= 5) and len(parts) - n >= 3)
    ]


_SIMILAR = {
    "for": "four", "to": "two", "two": "to", "their": "there", "there": "their", "your": "you're", "an": "and",
    "and": "an", "in": "and", "of": "have", "it": "at", "is": "as", "this": "these", "than": "then", "i'd": "i",
    "i'm": "i am", "what's": "what", "can": "could", "the": "a", "a": "the", "right": "write", "by": "buy",
}  # fmt: skip


def misrecognised(text: str, rng: random.Random) -> str:
    """`text` in spoken form with one or two errors such as recognisers make."""
    if is_unspaced(text):
        return mandarin.misrecognised(text, rng) if len(words(text)) >= 6 else text
    parts = text.split()
    if len(parts) < 4:
        return text
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(parts))
        word, draw = parts[at], rng.random()
        if word in _SIMILAR and draw < 0.5:
            parts[at] = _SIMILAR[word]
        elif draw < 0.4 and len(word) >= 6:
            cut = rng.randint(2, len(word) - 2)
            parts[at] = f"{word[:cut]} {word[cut:]}"
        elif draw < 0.6 and len(word) >= 4:
            cut = rng.randint(1, len(word) - 1)
            parts[at] = word[:cut] + rng.choice("aeiounrst") + word[cut + 1 :]
        elif draw < 0.75 and len(parts) > 2 and word in FUNCTION_WORDS:
            del parts[at]
        elif draw < 0.85 and len(parts) > 3 and at:
            parts[at - 1 : at + 1] = [parts[at - 1] + word]
    return " ".join(parts)


EndOfTurn = Callable[[Sequence[str]], list[Sequence[float]]]
"""For texts in spoken form: the probability, after each word, that the request ends there."""

CLEARLY_OPEN = 0.015
"""Below this probability of an end, a cut is not a complete request, whatever its last word is."""
MAYBE_WHOLE = 0.05
"""Above it, a cut may be a complete request, whatever its last word is."""


def unfinished_cut(text: str, rng: random.Random, p: Sequence[float] = ()) -> str | None:
    """The beginning of `text`, cut at a random word so that it is clearly incomplete; None if there is no such cut.

    A cut request is often a complete request ("write a daily routine" of a longer one). Possible cuts end in a word
    that requires a continuation, or are the first words of a question that lacks its verb. If a language model gives
    the probability of an end after each word (`p`, see `EndOfTurn`), cuts after which it expects none are possible too.
    """
    parts = words(text)
    clear = [n for n in range(1, len(parts)) if is_unfinished(parts[:n], len(parts))]
    other: list[int] = []
    if len(p) == len(parts):  # the spoken form may have fewer words, for example without "--"
        clear = [n for n in clear if p[n - 1] < MAYBE_WHOLE]
        other = [
            n
            for n in range(2, len(parts))
            if n not in clear and p[n - 1] < CLEARLY_OPEN and not parts[n - 1].endswith(_SENTENCE_MARKS)
        ]
    cuts = other if other and (not clear or rng.random() < 0.5) else clear
    if not cuts:
        return None
    # long cuts are rarer among the clear ones, so they get higher weights
    return join(parts[: rng.choices(cuts, cuts)[0]])


def ends_in_function_word(text: str) -> bool:
    """Whether the last word of `text` is a function word."""
    if is_unspaced(text):
        return mandarin.ends_open(spoken(text))
    return spoken(text).split(" ")[-1] in FUNCTION_WORDS


def is_cut_off(text: str) -> bool:
    """Whether a text that should be whole ends in a word that requires a continuation."""
    if is_unspaced(text):
        return mandarin.is_cut_off(spoken(text))
    return spoken(text).split(" ")[-1] in FUNCTION_WORDS - COMPLETE_ENDS


def random_cut(text: str, rng: random.Random) -> str | None:
    """The beginning of `text`, cut at a random word (DUO, section 3.1); None if there is only one word."""
    parts = words(text)
    return join(parts[: rng.randrange(1, len(parts))]) if len(parts) > 1 else None


def is_unfinished(head: list[str], num_words: int) -> bool:
    """Whether the words `head`, the beginning of a text of `num_words`, are clearly not a complete request."""
    if head[-1].endswith(_SENTENCE_MARKS):
        return False
    if is_unspaced("".join(head)):
        return mandarin.is_unfinished(spoken(join(head)), num_words)
    plain = [spoken(word) for word in head]
    last, rest = plain[-1], num_words - len(head)
    if len(head) == 1:  # a lone noun or verb may be a whole command
        return num_words >= 3 and last in FUNCTION_WORDS | QUESTION_WORDS
    if last in FUNCTION_WORDS:
        return (
            last not in COMPLETE_ENDS or (len(head) <= 3 and plain[0] in QUESTION_WORDS) or last in {"of", "to", "is"}
        )
    if plain[0] not in QUESTION_WORDS or rest < 3 or len(head) > 5:
        return False
    if plain[0] in {"can", "could", "would", "will", "do", "did", "does"}:
        return len(head) <= 3
    # "how many people" lacks its verb; "who is plato" does not
    return not any(word in FUNCTION_WORDS and word not in {"many", "much", "other", "most"} for word in plain[1:])
