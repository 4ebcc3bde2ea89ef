"""A shorter context in the making, while the old one serves (design rule 10). Positions are never shifted."""

from collections.abc import Sequence

from duologue.core import layout
from duologue.core.channel import Channel
from duologue.core.planner import Planner
from duologue.text.template import Template
from duologue.types import Turn


class Rebuild:
    """System prompt and the newest turns of `history` that fit into `budget` tokens, on a channel of their own."""

    def __init__(self, template: Template, history: Sequence[Turn], budget: int, cache: Planner) -> None:
        kept = layout.newest_that_fit(template, history, budget - len(template.begin))
        self.num_dropped = len(history) - kept  # turns that are left out
        self.is_awaited = False  # whether words or an answer wait for it
        self.num_laid = len(history)  # turns that are accounted for, those left out included
        self._template = template
        self.channel: Channel = cache.open([*template.begin, *template.lay_out(history[self.num_dropped :])])

    def catch_up(self, history: Sequence[Turn]) -> bool:
        """Lay the turns that were committed meanwhile. Returns whether everything is in the cache."""
        if self.num_laid < len(history):
            last = history[self.num_laid - 1].role if self.num_laid > self.num_dropped else None
            self.channel.items.extend(self._template.lay_out(history[self.num_laid :], last))
            self.num_laid = len(history)
        return not self.channel.num_pending
