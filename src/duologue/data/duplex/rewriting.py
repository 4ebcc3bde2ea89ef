"""How a transition and a turn become one utterance, and what is asked and answered that no source contains.

`Rules` needs nothing but the transitions. `ModelRewriter` asks a model, as the authors of Duplex-UltraChat did; where
its answer is not usable, the rules take over, and the reason is kept.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

from duologue.data import forms
from duologue.data.chat_client import Refused
from duologue.data.duplex.transitions import Transitions
from duologue.errors import RemoteError, UsageError
from duologue.types import Role, Turn

RULES = "rules"

MAX_FAILURES = 5
"""Requests in a row without an answer before a build ends."""

_SENTENCE_MARKS = tuple(".!?。！？…")
_MORE_WORDS = 40  # that a rewritten text may have beyond the original
_MIN_SHARED = 0.4  # share of the content words of a turn that its rewriting keeps
_ANSWER_WORDS = 200
_QUESTION_WORDS = 40

_FUSE = (
    "You write what a person says to a voice assistant. The person interrupts the assistant with the FIRST text and "
    "goes on with the SECOND one. Write both as one natural utterance in the language of the second text. Keep every "
    "detail of the second text, do not answer it, and write nothing else."
)
_ANSWER = (
    "You are a voice assistant. The user was not content with how your answer began. Answer the last question of the "
    "user from the start, in a few plain sentences, in the user's language."
)
_ASK = (
    "Somebody listens to a voice assistant and interrupts it with a short question about the STATEMENT, because "
    "something in it is not clear. Write two lines in the language of the statement, and nothing else:\n"
    "Q: the question\nA: the assistant's answer, in one or two sentences"
)
_PAIR = re.compile(r"\s*Q\s*[:：]\s*(\S[^\n]*?)\s*\n+\s*A\s*[:：]\s*(\S[^\n]*?)\s*", re.IGNORECASE)
_LABEL = re.compile(r"^\W*(?:utterance|output|result|answer|second|first)\s*[:：]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Written:
    """A text that is not in a source."""

    text: str
    by: str = RULES  # "rules", or the model that wrote it
    refused: str | None = None  # why the model's text was not used


class Rewriter(Protocol):
    """Writes what sources do not have. Has no state that affects the result, so that builds can be repeated."""

    @property
    def name(self) -> str:
        """What writes, for reports."""

    def fuse(self, line: str, turn: str, transitions: Transitions) -> Written:
        """One utterance of a transition (with `{turn}`, perhaps `{topic}`) and a user's turn."""

    def answer(self, turns: Sequence[Turn]) -> Written | None:
        """Another answer to the last of `turns`; None: there is only the source's."""

    def ask(self, statement: str) -> tuple[Written, Written] | None:
        """A question about what the assistant has said, and its answer; None: ask to hear it again."""


@final
class Rules:
    """Joins a transition and a turn as they are. Needs no network and no model."""

    name = RULES

    def fuse(self, line: str, turn: str, transitions: Transitions) -> Written:
        """See `Rewriter.fuse`."""
        said = transitions.without_greeting(turn)
        before = line.partition("{turn}")[0].rstrip()
        if before and not before.endswith(_SENTENCE_MARKS):
            said = _uncapitalised(said)
        elif turn.lstrip()[:1].isupper():
            said = forms.sentence(said)
        text = line.replace("{topic}", transitions.topic(turn) or "").replace("{turn}", said)
        return Written(forms.spoken(text) if _is_spoken(turn) and transitions.language == "en" else text)

    def answer(self, turns: Sequence[Turn]) -> None:
        """None: see `Rewriter.answer`."""

    def ask(self, statement: str) -> None:
        """None: see `Rewriter.ask`."""


@final
class ModelRewriter:
    """Asks a model; see `Rewriter`."""

    def __init__(self, ask: Callable[[str, str], str], name: str) -> None:
        """
        Args:
            ask: from a system prompt and a request to the model's answer; `ChatClient.ask`, for instance.
            name: of the model.
        """
        self.name = name
        self._ask, self._rules, self._num_failures = ask, Rules(), 0

    def fuse(self, line: str, turn: str, transitions: Transitions) -> Written:
        """See `Rewriter.fuse`."""
        plain = self._rules.fuse(line, turn, transitions)
        before = line.partition("{turn}")[0].replace("{topic}", transitions.topic(turn) or "").strip()
        if not before:
            return plain
        answer = self._asked(_FUSE, f"FIRST: {before}\nSECOND: {turn}")
        text, refused = _one_line(answer)
        refused = refused or _unlike(text, turn, plain.text)
        return Written(plain.text, refused=refused) if refused else Written(text, self.name)

    def answer(self, turns: Sequence[Turn]) -> Written | None:
        """See `Rewriter.answer`."""
        dialogue = "\n".join(f"{'User' if turn.role is Role.USER else 'Assistant'}: {turn.text}" for turn in turns)
        text, refused = _one_line(self._asked(_ANSWER, dialogue))
        if not refused and _num_words(text) > _ANSWER_WORDS:
            refused = "too long"
        return Written("", refused=refused) if refused else Written(text, self.name)

    def ask(self, statement: str) -> tuple[Written, Written] | None:
        """See `Rewriter.ask`."""
        found = _PAIR.fullmatch(self._asked(_ASK, f"STATEMENT: {statement}") or "")
        if found is None:
            return None
        if _num_words(found[1]) > _QUESTION_WORDS or _num_words(found[2]) > _ANSWER_WORDS:
            return None
        return Written(found[1], self.name), Written(found[2], self.name)

    def _asked(self, system: str, request: str) -> str | None:
        """The model's answer; None if there is none.

        Raises:
            RemoteError: the last `MAX_FAILURES` requests had no answer, or the server refuses them.
        """
        try:
            answer = self._ask(system, request)
        except UsageError:  # the request is too long for the model
            return None
        except RemoteError as error:
            self._num_failures += 1
            if self._num_failures >= MAX_FAILURES or isinstance(error, Refused):
                raise RemoteError(f"{error}. To continue with the rows that are done, repeat the command") from None
            return None
        self._num_failures = 0
        return answer


def _one_line(answer: str | None) -> tuple[str, str | None]:
    """An answer as one line of speech, or why it is none."""
    if answer is None:
        return "", "no answer"
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    text = " ".join(lines).strip("\"“”'").strip()
    if not text:
        return "", "empty"
    if _LABEL.match(text) or "<" in text:
        return "", "not speech"
    return text, None


def _unlike(text: str, turn: str, plain: str) -> str | None:
    """Why `text` cannot be a rewriting of `turn`; None if it can."""
    if _num_words(text) > _num_words(plain) + _MORE_WORDS:
        return "too long"
    content = _content(turn)
    if content and len(content & _content(text)) < _MIN_SHARED * len(content):
        return "another subject"
    return None


def _content(text: str) -> set[str]:
    """The words that a text is about; in Chinese, its characters."""
    words = {word for word in forms.spoken(text).split() if word not in forms.FUNCTION_WORDS}
    return {part for word in words for part in ([word] if word.isascii() else word)}


def _num_words(text: str) -> int:
    """Words, or characters where no spaces are written, two for a word."""
    return sum(1 if word.isascii() else 1 + len(word) // 2 for word in text.split())


def _is_spoken(turn: str) -> bool:
    """Whether a turn is in the form that recognisers write: neither capitals nor marks."""
    return turn == turn.lower() and not turn.rstrip().endswith(_SENTENCE_MARKS)


def _uncapitalised(text: str) -> str:
    """`text` with a small letter at its beginning, if its first word is one that is not a name."""
    first = text.split(" ", 1)[0]
    plain = first.lower().strip(",.!?")
    common = plain in forms.FUNCTION_WORDS | forms.QUESTION_WORDS and not plain.startswith("i'") and plain != "i"
    return text[0].lower() + text[1:] if common else text
