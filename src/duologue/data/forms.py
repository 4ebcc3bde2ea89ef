"""The form of words: as a recogniser writes them or as people type them, whole or cut.

Corpora differ in case and punctuation, and a model that learns the style of a corpus looks perfect and is useless.
So every class goes through the same two forms with the same probabilities.
"""

import random
import re
from collections.abc import Callable, Sequence

_FUNCTION_WORDS = (
    "a an the my your his her its our their this these those some any every each no of to in on at for with "
    "from by about into onto over under between during through without than as like near and or but so "
    "because if when while that which who whose whom what where why how is are was were am be been do does "
    "did can could will would shall should may might must have has had i you he she we they it me us i'm "
    "you're it's what's where's who's how's that's there's let's i'd i'll i've isn't aren't don't doesn't "
    "didn't can't couldn't won't wouldn't shouldn't haven't hasn't very more most less least too also just "
    "only many much another other please could've um uh er hmm"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words after which an English request is hardly ever complete."""

_COMPLETE_ENDS = (
    "it me you them him her us i'm too also more much most please that this on in off up out over about am "
    "are is was do does did have has can will would should mine yours like for to at with from of by near"
)
COMPLETE_ENDS = frozenset(_COMPLETE_ENDS.split())
"""Function words that do end whole requests ("what is this for", "turn it on"): only early on is a cut there clear."""

_QUESTION_WORDS = (
    "what who whom whose which where when why how is are was were am do does did can could will would shall "
    "should may might must have has had isn't aren't don't doesn't didn't can't couldn't won't wouldn't "
    "what's who's where's when's how's"
)
QUESTION_WORDS = frozenset(_QUESTION_WORDS.split())

_NOT_SPOKEN = re.compile(r"[^\w\s'$%€£+&@.:/-]", re.UNICODE)
_LOOSE = re.compile(r"(?<!\w)['.:/-]+|['.:/-]+(?!\w)")
_SPACES = re.compile(r"\s+")
_ENDING = re.compile(r"[\s.!?,;:…-]+$")


def words(text: str) -> list[str]:
    """The words of `text` in order, punctuation attached."""
    return text.split()


def spoken(text: str) -> str:
    """The normal form: lower case, no punctuation, as a recogniser writes."""
    text = text.replace("’", "'").replace("—", " ").replace("–", " ").replace("--", " ")
    text = _NOT_SPOKEN.sub(" ", text.lower())
    return _SPACES.sub(" ", _LOOSE.sub(" ", text)).strip()


def typed(text: str, rng: random.Random, *, question: bool, whole: bool) -> str:
    """`text` as somebody might type it: capitals and a final mark, each present or not by the same chance for all.

    A cut text never has a final mark; the inner punctuation stays as the source has it.
    """
    text = _ENDING.sub("", _SPACES.sub(" ", text)).strip().strip("\"'")
    if not text:
        return text
    if rng.random() < 0.6:
        text = re.sub(r"\bi\b", "I", text[0].upper() + text[1:])
    elif rng.random() < 0.5:
        text = text.lower()
    if rng.random() < 0.3:
        text = text.replace(",", "")
    if whole and rng.random() < 0.6:
        text += "?" if question else rng.choices(".!", (9, 1))[0]
    return text


def is_question(text: str) -> bool:
    """Whether `text` asks something, by its mark or its first word."""
    first = spoken(text).split(" ", 1)[0]
    return text.rstrip().endswith("?") or first in QUESTION_WORDS


Ends = Callable[[Sequence[str]], list[Sequence[float]]]
"""For texts in their spoken form: how probable it is after each word that the request ends there."""

CLEARLY_OPEN = 0.015
"""Below this probability of an end, a cut is not complete in itself whatever its last word is."""
MAYBE_WHOLE = 0.05
"""Above it, a cut may be a request in itself whatever its last word is."""


def unfinished_cut(text: str, rng: random.Random, p: Sequence[float] = ()) -> str | None:
    """The beginning of `text`, cut at a random word so that it is clearly not complete; None where that is not found.

    A cut of a request is often a request in itself ("write a daily routine" of a longer one). Kept are cuts that end in
    a word after which something must come, the first few words of a question that lacks its verb, and, where a language
    model says how probable an end is after each word (`p`, as of `Ends`), those after which it expects none.
    """
    parts = words(text)
    clear = [n for n in range(1, len(parts)) if is_unfinished(parts[:n], len(parts))]
    other: list[int] = []
    if len(p) == len(parts):  # not where the spoken form has other words, as "--" alone
        clear = [n for n in clear if p[n - 1] < MAYBE_WHOLE]
        other = [
            n
            for n in range(2, len(parts))
            if n not in clear and p[n - 1] < CLEARLY_OPEN and not re.search(r"[.!?;:]$", parts[n - 1])
        ]
    cuts = other if other and (not clear or rng.random() < 0.5) else clear
    if not cuts:
        return None
    # longer cuts are rarer among the clear ones, so they are preferred
    return " ".join(parts[: rng.choices(cuts, cuts)[0]])


def is_cut_off(text: str) -> bool:
    """Whether a text that should be whole ends in a word after which something must come."""
    last = spoken(text).split(" ")[-1]
    return last in FUNCTION_WORDS and last not in COMPLETE_ENDS


def random_cut(text: str, rng: random.Random) -> str | None:
    """The beginning of `text`, cut at a random word (DUO, section 3.1); None if there is only one word."""
    parts = words(text)
    return " ".join(parts[: rng.randrange(1, len(parts))]) if len(parts) > 1 else None


def is_unfinished(head: list[str], num_words: int) -> bool:
    """Whether the words `head`, the beginning of a text of `num_words`, are clearly not complete in themselves."""
    if re.search(r"[.!?;:]$", head[-1]):
        return False
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
