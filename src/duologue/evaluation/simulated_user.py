"""Simulated users for measurements of load: the words they say, a history, and how they hear an answer."""

import itertools
import random
from collections.abc import Iterator

from duologue.core.session import Session
from duologue.text.template import Template
from duologue.types import Role, Turn

SLICES = 4
"""Slices of an utterance."""
WORDS = 5
"""Words of a slice."""
_TEXT = (
    "the old harbour was quiet when we came back from a long walk and she asked whether anybody had seen her keys on "
    "that table by some window near our kitchen because this train leaves early every morning before most people wake "
    "up so I told him about it again while they were still looking for an open shop with good bread and fresh milk"
)
_STOCK = _TEXT.split()


def words(chance: random.Random, number: int) -> str:
    """This many words, without any particular meaning."""
    return " ".join(chance.choices(_STOCK, k=number))


def utterances(chance: random.Random) -> Iterator[tuple[str, str, bool]]:
    """Utterances without end: the name of the utterance, its text after each slice, and whether it is complete then."""
    for number in itertools.count():
        text = ""
        for index in range(SLICES):
            text = f"{text} {words(chance, WORDS)}".lstrip()
            yield f"u{number}", text, index == SLICES - 1


def history(template: Template, chance: random.Random, num_tokens: int) -> list[Turn]:
    """Whole exchanges of at least `num_tokens` tokens, and only slightly more."""
    turns: list[Turn] = []
    while (missing := num_tokens - len(template.lay_out(turns))) > 0:
        length = max(4, min(40, missing // 3))
        turns += [Turn(Role.USER, words(chance, length // 2)), Turn(Role.ASSISTANT, words(chance, length))]
    return turns


class Listener:
    """Hears an answer at `rate` tokens per second, and waits if the next token has not arrived.

    Each wait counts as one missed deadline.
    """

    def __init__(self, session: Session, rate: float) -> None:
        self.missed = 0
        self._position = 0.0  # tokens heard
        self._counted_from = 0.0
        self._session = session
        self._rate = rate
        self._ends: list[tuple[int, int]] = [(0, 0)]  # number of tokens, and characters of their text
        self._is_waiting = True
        self._now = 0.0

    @property
    def position(self) -> float:
        """Tokens heard since the last reset."""
        return self._position - self._counted_from

    def reset(self) -> None:
        """Count from now on."""
        self.missed, self._counted_from = 0, self._position

    def listen(self, now: float) -> int | None:
        """Advance to `now`. Returns the character up to which the answer has been heard; None before it begins."""
        elapsed, self._now = now - self._now, now
        answer = self._session.running
        if answer is not None and answer.num_tokens > self._ends[-1][0]:
            self._ends.append((answer.num_tokens, answer.num_said))
        available = self._ends[-1][0]
        if self._is_waiting:
            self._is_waiting = available <= self._position
            elapsed = 0.0
        wanted = self._position + elapsed * self._rate
        if wanted > available:
            self.missed += 1
            self._is_waiting = True
        self._position = min(wanted, float(available))
        while len(self._ends) > 1 and self._ends[1][0] <= self._position:
            del self._ends[0]
        if self._position == 0:
            return None
        (tokens, characters), (more_tokens, more_characters) = self._ends[0], self._ends[min(1, len(self._ends) - 1)]
        share = (self._position - tokens) / max(
            1, more_tokens - tokens
        )  # tokens that arrived together are heard evenly
        return characters + int(share * (more_characters - characters))
