"""Who takes part in `scale`: words to be heard, a history, and a listener who hears an answer token by token."""

import random
from dataclasses import dataclass, field

from duologue.core.events import Decision
from duologue.core.policy import Policy
from duologue.core.session import Session
from duologue.text.template import Template
from duologue.types import InputState, Role, Turn

_TEXT = (
    "the old harbour was quiet when we came back from a long walk and she asked whether anybody had seen her keys on "
    "that table by some window near our kitchen because this train leaves early every morning before most people wake "
    "up so I told him about it again while they were still looking for an open shop with good bread and fresh milk"
)
_STOCK = _TEXT.split()


@dataclass(slots=True)
class Verdict:
    """What is to be thought of the words that come next."""

    state: InputState = InputState.PROCESS


@dataclass(frozen=True)
class Taught(Policy):
    """Runs the probe like every other policy, and then decides as it is told."""

    verdict: Verdict = field(default_factory=Verdict)

    def decide(self, states: tuple[InputState, ...], p: tuple[float, ...], *, speaking: bool) -> Decision:
        decision = super().decide(states, p, speaking=speaking)
        return Decision(self.verdict.state, 1.0, decision.probabilities)


def words(chance: random.Random, number: int) -> str:
    """So many words that mean nothing in particular."""
    return " ".join(chance.choices(_STOCK, k=number))


def history(template: Template, chance: random.Random, num_tokens: int) -> list[Turn]:
    """Whole exchanges of `num_tokens` tokens at least, and only a few more."""
    turns: list[Turn] = []
    while (missing := num_tokens - len(template.lay_out(turns))) > 0:
        length = max(4, min(40, missing // 3))
        turns += [Turn(Role.USER, words(chance, length // 2)), Turn(Role.ASSISTANT, words(chance, length))]
    return turns


class Listener:
    """Hears an answer at `rate` tokens a second and waits where there is none yet.

    Each wait is a missed deadline: the token should have been there and was not.
    """

    def __init__(self, session: Session, rate: float) -> None:
        self.missed = 0
        self._position = 0.0  # tokens heard
        self._counted_from = 0.0
        self._session = session
        self._rate = rate
        self._ends: list[tuple[int, int]] = [(0, 0)]  # tokens, and characters of their text
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
        """It is `now`. Returns the character up to which the answer has been heard; None before it begins."""
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
        share = (self._position - tokens) / max(1, more_tokens - tokens)  # what came in one go is heard evenly
        return characters + int(share * (more_characters - characters))
