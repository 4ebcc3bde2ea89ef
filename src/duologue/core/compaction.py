"""Context compaction: a shorter context is built beside the old one, which stays in use until the new one is cached.

Positions are never shifted: shifted KV is not what the model would compute (choice 10).
"""

from collections.abc import Sequence
from typing import final

from duologue.core.cache import CacheOperations, Place
from duologue.core.prompt import Template
from duologue.types import Role, Turn


@final
class Compaction:
    """The system prompt and the newest turns of `history` that fit into `budget` tokens, in a sequence of their own."""

    def __init__(
        self, template: Template, history: Sequence[Turn], budget: int, cache: CacheOperations, place: Place
    ) -> None:
        kept = newest_that_fit(template, history, budget - len(template.begin))
        self.num_dropped = len(history) - kept  # turns that are left out
        self.num_laid = len(history)  # turns that are accounted for, including those left out
        self.is_awaited = False  # whether words or an answer wait for it
        self.sequence = cache.open([*template.begin, *template.lay_out(history[self.num_dropped :])], place)
        self._template = template
        self._cache = cache

    def plan(self) -> None:
        """Feed a part of it."""
        self._cache.feed_compaction(self.sequence, is_awaited=self.is_awaited)

    def catch_up(self, history: Sequence[Turn]) -> bool:
        """Append the turns that have been committed meanwhile. Returns whether everything is cached."""
        if self.num_laid < len(history):
            last = history[self.num_laid - 1].role if self.num_laid > self.num_dropped else None
            self.sequence.items.extend(self._template.lay_out(history[self.num_laid :], last))
            self.num_laid = len(history)
        return not self.sequence.num_pending


def newest_that_fit(template: Template, turns: Sequence[Turn], budget: int) -> int:
    """How many of the newest `turns` fit into `budget` tokens, in whole exchanges that a user's turn begins."""
    fitting, used = 0, 0
    for i in range(len(turns) - 1, -1, -1):
        used += len(template.encode(turns[i].text)) + len(template.header) + len(template.close)
        if used > budget:
            break
        if turns[i].role is Role.USER:
            fitting = len(turns) - i
    return fitting
