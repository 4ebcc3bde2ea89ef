"""The next tokens of one answer, as one request draws them. Knows no vLLM."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import final

from duologue.core.backend import Draw, Step
from duologue.types import Token


@dataclass(frozen=True, slots=True)
class Wanted:
    """The token that `draw` draws behind `tokens`, and who waits for it."""

    tokens: tuple[Token, ...]
    draw: Draw
    future: Future[Step] = field(default_factory=Future)


@final
@dataclass(slots=True, eq=False)
class Lease:
    """Up to `num_tokens` tokens behind `prompt`, the first drawn by `draw` and the others as those that follow it.

    One thread adds what is drawn. Others may look at it meanwhile: it only grows.
    """

    prompt: tuple[Token, ...]
    draw: Draw
    num_tokens: int
    drawn: list[Step] = field(default_factory=list)
    is_over: bool = False  # no more will be drawn
    waiting: Wanted | None = None  # a sequence is continued once at a time

    def place_of(self, wanted: Wanted) -> int | None:
        """Which of its tokens, counted from 0, is `wanted`; None if none of them is or will be."""
        length, num_drawn = len(self.prompt), len(self.drawn)
        place, num_tokens = len(wanted.tokens) - length, num_drawn if self.is_over else self.num_tokens
        if not 0 <= place <= min(num_drawn, num_tokens - 1) or not self._is_at(place, wanted.draw):
            return None
        said = tuple(step.tokens[0] for step in self.drawn[:place])
        return place if wanted.tokens[length:] == said and wanted.tokens[:length] == self.prompt else None

    def _is_at(self, place: int, draw: Draw) -> bool:
        """Whether `draw` draws as the token at `place` is drawn."""
        first, ours, theirs = self.draw, self.draw.ahead, draw.ahead
        if (draw.sampling, draw.num_alternatives) != (first.sampling, first.num_alternatives):
            return False
        if ours is None or theirs is None:
            return place == 0 and draw.uniform == first.uniform
        return (theirs.seed, theirs.turn, theirs.index) == (ours.seed, ours.turn, ours.index + place)

    def add(self, drawn: list[Step]) -> None:
        """Add tokens, and hand out the one that is waited for."""
        self.drawn += drawn
        waiting = self.waiting
        if waiting is not None and (place := len(waiting.tokens) - len(self.prompt)) < len(self.drawn):
            self.waiting = None
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_result(self.drawn[place])
