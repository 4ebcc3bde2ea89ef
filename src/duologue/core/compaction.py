"""A shorter context in the making, while the old one serves (design rule 10). Positions are never shifted."""

from collections.abc import Sequence

from duologue.core.cache import CacheOperations, TokenSequence
from duologue.text.template import Template
from duologue.types import Role, Turn


class Compaction:
    """System prompt and the newest turns of `history` that fit into `budget` tokens, on a channel of their own."""

    def __init__(self, template: Template, history: Sequence[Turn], budget: int, cache: CacheOperations) -> None:
        kept = newest_that_fit(template, history, budget - len(template.begin))
        self.num_dropped = len(history) - kept  # turns that are left out
        self.is_awaited = False  # whether words or an answer wait for it
        self.num_laid = len(history)  # turns that are accounted for, those left out included
        self._template = template
        self.sequence: TokenSequence = cache.open([*template.begin, *template.lay_out(history[self.num_dropped :])])

    def catch_up(self, history: Sequence[Turn]) -> bool:
        """Lay the turns that were committed meanwhile. Returns whether everything is in the cache."""
        if self.num_laid < len(history):
            last = history[self.num_laid - 1].role if self.num_laid > self.num_dropped else None
            self.sequence.items.extend(self._template.lay_out(history[self.num_laid :], last))
            self.num_laid = len(history)
        return not self.sequence.num_pending


def newest_that_fit(template: Template, turns: Sequence[Turn], budget: int) -> int:
    """How many of the newest `turns` fit into `budget` tokens, counted in whole exchanges that a user begins."""
    fitting, used = 0, 0
    for i in range(len(turns) - 1, -1, -1):
        used += len(template.encode(turns[i].text)) + len(template.header) + len(template.close)
        if used > budget:
            break
        if turns[i].role is Role.USER:
            fitting = len(turns) - i
    return fitting
