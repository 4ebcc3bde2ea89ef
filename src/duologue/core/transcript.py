"""The conversation as the user has heard it, in the KV of a listener: the model that judges words when another answers.

With one model, the input channel forks from the running answer itself. A listener has no part in that answer: it reads
what was heard of it as text, when the next words have to be judged. Listening therefore costs the speaker nothing, and
a cut rolls back nothing that nobody heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

from duologue.core.answer import Answer
from duologue.core.cache import CacheOperations, Place, TokenSequence
from duologue.core.compaction import newest_that_fit
from duologue.core.config import SessionConfig
from duologue.core.input_channel import ForkPoint, Input
from duologue.core.prompt import Template
from duologue.errors import TemplateError
from duologue.types import Role, Seq, Token, Turn

_FEW = 32  # tokens that may be fed with the words of the user without delaying the decision on them


@dataclass(frozen=True, slots=True)
class ListenerModel:
    """The model that judges the words in a conversation whose answers come from elsewhere."""

    template: Template
    max_length: int  # tokens of its context


class Conversation(Protocol):
    """What a transcript needs from the output channel, whose turns it follows."""

    history: list[Turn]
    answer: Answer | None
    epoch: int
    num_trimmed: int  # turns in front of the history that were left out

    def roll_back_turn(self) -> None:
        """Roll back the running answer, of which nothing was heard, and the user's turn before it."""


@final
@dataclass(slots=True, eq=False)
class _Branch:
    """Consecutive turns of the conversation, the newest included, as the items of a sequence."""

    sequence: TokenSequence
    first: int  # number of its first turn, counted from the beginning of the conversation
    turns: list[Turn] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # of each turn, in items of the sequence

    def follow(self, turns: Sequence[Turn], num_before: int, template: Template) -> None:
        """Hold `turns`, which come after `num_before` others. What is cached is kept up to the first id that differs.

        Turns that only the speaker has left out meanwhile stay.
        """
        self.first = min(self.first, num_before + len(turns))
        same = kept = min(len(self.turns), max(0, num_before - self.first))
        turns = turns[max(0, self.first - num_before) :]
        while same < len(self.turns) and same - kept < len(turns) and self.turns[same] == turns[same - kept]:
            same += 1
        del self.turns[same:], self.ends[same:]
        start = self.ends[-1] if self.ends else len(template.begin)
        tail: list[Token] = []
        for turn in turns[same - kept :]:
            previous = self.turns[-1].role if self.turns else None
            tail += _laid_out(template, turn, previous)
            self.turns.append(turn)
            self.ends.append(start + len(tail))
        self.sequence.replace_tail(start, tail)


def _laid_out(template: Template, turn: Turn, previous: Role | None) -> list[Token]:
    """Ids of `turn`, also where the listener's template does not let its role speak: the speaker's may."""
    try:
        return template.lay_out([turn], previous)
    except TemplateError:
        joint = template.header if previous is None else template.encode(" ")
        return [*joint, *template.encode(turn.text)]


@final
class Transcript:
    """What the listener has read: the history, the question being answered, and what was heard of the answer.

    It is the prefix of the input channel. When it becomes too long, its newest part is read into another sequence
    while this one serves (choice 10).
    """

    def __init__(
        self,
        template: Template,
        config: SessionConfig,
        conversation: Conversation,
        cache: CacheOperations,
        *,
        probe_length: int,
    ) -> None:
        """Follow `conversation`, within the limits of `config`, which are those of the listener."""
        self._template = template
        self._config = config
        self._conversation = conversation
        self._cache = cache
        self._probe_length = probe_length
        self._num_swaps = 0
        self._seen: object = None  # of the conversation, when it was last followed
        self._next: _Branch | None = None  # shorter, to take the place of the other when it is cached
        self._is_awaited = False  # whether words wait for it
        self._branch = self._opened(self._first_that_fits(self._config.max_length // 2))

    @property
    def seq(self) -> Seq:
        """The number of its sequence."""
        return self._branch.sequence.seq

    @property
    def epoch(self) -> int:
        return self._conversation.epoch + self._num_swaps

    @property
    def turns(self) -> list[Turn]:
        """What was said so far, as far as it was heard."""
        answer = self._conversation.answer
        if answer is None:
            return self._conversation.history
        return self._conversation.history + answer.turns[: None if answer.num_heard else -1]

    @property
    def backlog(self) -> int:
        """Tokens that wait to be fed, excluding those in flight, those fed with words, and `compaction_backlog`."""
        self._follow()
        own = self._branch.sequence.num_waiting if self._reads_ahead else 0
        return own + (self._next.sequence.num_waiting if self._next is not None and self._is_awaited else 0)

    @property
    def compaction_backlog(self) -> int:
        """Tokens of the shorter sequence, if no words wait for it."""
        return 0 if self._next is None or self._is_awaited else self._next.sequence.num_waiting

    @property
    def _reads_ahead(self) -> bool:
        """Whether pending tokens are read before there are words to judge: in silence, and if there are many."""
        items, num_pending = self._branch.sequence.items, self._branch.sequence.num_pending
        is_worth_while = self._conversation.answer is None or num_pending > self._config.chunk
        return is_worth_while and len(items) <= self._config.max_length

    # ------------------------------------------------------------------ the prefix of the input channel

    def is_read(self, point: ForkPoint) -> bool:
        """Whether what is still to be read can be fed together with the words."""
        return point.sequence.fed is None and point.at - point.sequence.cached <= self._config.chunk

    def fork_point(self) -> ForkPoint:
        """Where the next user turn begins."""
        self._follow()
        branch = self._branch
        last = branch.turns[-1].role if branch.turns else None
        opening = self._template.joint(last, Role.USER)
        return ForkPoint(branch.sequence, len(branch.sequence.items), opening, last is None, self.epoch)

    def has_room(self, point: ForkPoint, words: Sequence[Token], *, to_answer: bool) -> bool:
        """Whether a user turn of `words` at `point` can be judged. If not, it waits for a shorter sequence."""
        left = self._config.max_length - point.at - len(point.opening) - len(words) - self._probe_length
        if left < self._config.min_room:
            self._begin_compaction()
        self._is_awaited = self._is_awaited or left < 0
        return left >= 0

    def take_back(self) -> TokenSequence:
        """Roll back the running answer, of which nothing was heard, and its turn. Returns a sequence with its words."""
        self._follow()
        words = self._cache.fork(self._branch.sequence, len(self._branch.sequence.items))
        self._conversation.roll_back_turn()
        return words

    # ------------------------------------------------------------------ in the cache

    def adopt(self, words: TokenSequence, at: int) -> None:
        """Continue in `words`, the sequence of an input that was forked at `at` and is answered from now on."""
        before = self._branch.sequence
        if words.items[:at] == before.items:
            self._cache.free(before)
            self._branch.sequence = words
        else:  # the tokens of what was heard have changed at their end
            self._cache.free(words)

    def share(self, heard: Input | None) -> None:
        """Take over what was read together with the words of `heard`, so that it is not read again."""
        branch, point = self._branch, heard.fork if heard is not None else None
        if heard is None or heard.sequence is None or point is None or point.epoch != self.epoch:
            return
        mine, read = branch.sequence, heard.sequence
        is_more = mine.fed is None and mine.cached < point.at <= read.cached
        if is_more and read.items[: point.at] == mine.items[: point.at]:
            branch.sequence = self._cache.fork(read, point.at)
            branch.sequence.items.extend(mine.items[point.at :])
            self._cache.free(mine)

    def plan(self) -> None:
        """Read what is pending, unless it is fed together with the next words."""
        self._follow()
        sequence = self._branch.sequence
        if len(sequence.items) > self._config.max_length * 3 // 4:
            self._begin_compaction()
        if self._reads_ahead and sequence.fed is None and (size := self._cache.portion(sequence)):
            self._cache.feed(sequence, size)

    def plan_compaction(self) -> None:
        """Read a part of the shorter sequence, if there is one."""
        if self._next is not None:
            self._cache.feed_compaction(self._next.sequence, is_awaited=self._is_awaited)

    def swap_if_compacted(self) -> bool:
        """Switch to the shorter sequence if it is cached. Returns whether it did."""
        shorter = self._next
        if shorter is None:
            return False
        self._follow()
        if shorter.sequence.fed is not None or shorter.sequence.num_pending > _FEW:
            return False
        self._cache.free(self._branch.sequence)
        self._branch, self._next = shorter, None
        self._is_awaited = False
        self._num_swaps += 1
        return True

    def make_room(self) -> bool:
        """Give up the shorter sequence, or else leave out the older half at once. Returns whether it held anything."""
        if self._give_up_compaction():
            return True
        shorter = self._shortened(len(self._branch.sequence.items) // 2)
        if shorter is None:
            return False
        self._cache.free(self._branch.sequence)
        self._branch = shorter
        self._num_swaps += 1
        return True

    def _give_up_compaction(self) -> bool:
        shorter, self._next = self._next, None
        self._is_awaited = False
        if shorter is not None:
            self._cache.free(shorter.sequence)
        return shorter is not None

    def start_over(self) -> None:
        """Read the conversation again: its history was replaced."""
        self.free()
        self._branch = self._opened(self._first_that_fits(self._config.max_length // 2))
        self._num_swaps += 1

    def free(self) -> None:
        """Free every sequence."""
        self._give_up_compaction()
        self._cache.free(self._branch.sequence)

    def _begin_compaction(self) -> None:
        if self._next is None:
            self._next = self._shortened(self._config.max_length // 2)

    def _shortened(self, budget: int) -> _Branch | None:
        """A branch of the newest turns that fit into `budget` tokens; None if it would leave nothing more out."""
        first = self._first_that_fits(budget)
        return self._opened(first) if first > self._branch.first else None

    def _first_that_fits(self, budget: int) -> int:
        """The number of the first of the newest turns that fit into `budget` tokens."""
        turns, template = self.turns, self._template
        num_kept = newest_that_fit(template, turns, budget - len(template.begin))
        return self._conversation.num_trimmed + len(turns) - num_kept

    def _opened(self, first: int) -> _Branch:
        """A new branch that begins with turn number `first`."""
        branch = _Branch(self._cache.open(self._template.begin, Place.LISTENER), first)
        branch.follow(self.turns, self._conversation.num_trimmed, self._template)
        return branch

    def _follow(self) -> None:
        """Bring the sequences up to date with what has been said and heard."""
        conversation = self._conversation
        answer = conversation.answer
        heard = None if answer is None else (answer.id, answer.num_heard)
        seen = (conversation.epoch, conversation.num_trimmed, len(conversation.history), heard, self._next)
        if seen != self._seen:
            self._seen = seen
            turns = self.turns
            for branch in (self._branch, self._next):
                if branch is not None:
                    branch.follow(turns, conversation.num_trimmed, self._template)
