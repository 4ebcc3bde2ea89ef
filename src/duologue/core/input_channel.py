"""What is being heard: the open utterances, the sequence they are fed to, and what was last thought of them."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from duologue.core.answer import Answer, Utterance
from duologue.core.cache import TokenSequence
from duologue.core.events import Decision
from duologue.types import Token

_SIZE = 32  # utterances remembered of each kind


@dataclass(frozen=True, slots=True)
class _Held:
    """An input as it was when it was last told to wait."""

    count: int  # utterances
    text: str
    decision: Decision
    deferred: bool
    changed_at: float


class Input:
    """One user turn in the making: one or more utterances on one input channel.

    The channel is forked when it can be (`None` until then); its items from `at` on are the closer of what came before,
    the opener of the user's turn and the words.
    """

    def __init__(self, utterances: Sequence[Utterance], now: float, *, interrupted: Answer | None = None) -> None:
        self.utterances = list(utterances)
        self.sequence: TokenSequence | None = None
        self.at = -1  # where the fork was taken
        self.opening: tuple[Token, ...] = ()  # what closes what came before it
        self.is_first = False  # whether nothing came before it
        self.epoch = -1  # of the branch when the fork was taken
        self.changed_at = now  # when words last came
        self.version = 0  # counts changes of the words
        self.scored = -1  # the version that was last judged
        self.decision: Decision | None = None
        self.deferred = False  # decided process, waiting for the floor or for room
        self.interrupted = interrupted  # the answer that an earlier part of this turn cut
        self._held: _Held | None = None

    def attach(self, channel: TokenSequence, at: int, opening: tuple[Token, ...], is_first: bool, epoch: int) -> None:
        """It is fed to `channel`, which was forked at `at`; `opening` goes before the words there."""
        self.sequence, self.at, self.opening, self.is_first, self.epoch = channel, at, opening, is_first, epoch

    def is_attached(self, at: int, opening: tuple[Token, ...], epoch: int) -> bool:
        """Whether its channel is what a turn at `at` would be."""
        return (self.at, self.opening, self.epoch) == (at, opening, epoch)

    def find(self, utterance: str) -> Utterance | None:
        """The utterance of that id, if it is still growing."""
        return next((u for u in self.utterances if u.id == utterance and not u.final), None)

    def hold(self) -> None:
        """The words as they stand were judged, and wait."""
        assert self.decision is not None, "what waits was judged"
        self._held = _Held(len(self.utterances), self.text, self.decision, self.deferred, self.changed_at)

    def drop_newest(self) -> "Input | None":
        """Give up the utterances that came after those that were held, which wait as before.

        Returns what was given up; None if there is nothing to go back to.
        """
        held = self._held
        if held is None or len(self.utterances) <= held.count:
            return None
        newest = Input(self.utterances[held.count :], self.changed_at)
        if " ".join(words for u in self.utterances[: held.count] if (words := u.words)) != held.text:
            return None  # the held ones have grown as well: the verdict is on them, too
        del self.utterances[held.count :]
        self.version += 1
        self.scored, self.decision, self.deferred = self.version, held.decision, held.deferred
        self.changed_at = held.changed_at
        return newest

    @property
    def may_come_back(self) -> bool:
        """Whether more words may show that it was not to be ignored after all."""
        return len(self.utterances) == 1 and not self.utterances[0].final

    def come_back(self) -> None:
        """It was ignored, and there are more words."""
        self.interrupted = self._held = None

    @property
    def id(self) -> str:
        """Id of the newest utterance, which events name."""
        return self.utterances[-1].id

    @property
    def text(self) -> str:
        """The words of the turn so far."""
        return " ".join(words for u in self.utterances if (words := u.words))

    @property
    def needs_score(self) -> bool:
        """Whether there are words that have not been judged."""
        return self.scored != self.version and not self.deferred and bool(self.text)

    def grow(self, now: float) -> None:
        """The words changed."""
        self.changed_at = now
        self.version += 1
        self.decision = None
        self.deferred = False


class Memory:
    """Recognises late words of utterances. One that has ended is not remembered: its id may name a new one."""

    def __init__(self) -> None:
        self._dropped: OrderedDict[str, str] = OrderedDict()  # id to the text that was judged
        self._answered: OrderedDict[str, str] = OrderedDict()  # id to the text that became part of a turn

    def drop(self, utterances: Iterable[Utterance]) -> None:
        """These were dropped: more words bring them back whole (design rule 1)."""
        _remember(self._dropped, utterances)

    def answer(self, utterances: Iterable[Utterance]) -> None:
        """These are part of a turn that is being answered: more words are a turn of their own."""
        _remember(self._answered, utterances)

    def take_back(self, utterances: Iterable[Utterance]) -> None:
        """The turn of these is open again."""
        for utterance in utterances:
            if utterance.skip and not utterance.final:
                self._answered[utterance.id] = utterance.text[: utterance.skip]
            else:
                self._answered.pop(utterance.id, None)

    def was_dropped(self, utterance: str, text: str, *, final: bool) -> bool:
        """Whether exactly these words were judged and dropped, so that only their end can be new."""
        if self._dropped.get(utterance) != text:
            return False
        if final:
            del self._dropped[utterance]
        return True

    def num_answered(self, utterance: str, text: str) -> int:
        """Characters of `text` that are part of an earlier turn already."""
        before = self._answered.get(utterance)
        if before is None:
            return 0
        if text.startswith(before):
            return len(before)
        num_words = len(before.split())  # revised since: leave out as many words
        rest = text.split(maxsplit=num_words)
        return len(text) - len(rest[num_words]) if len(rest) > num_words else len(text)

    def end(self, utterance: str) -> None:
        """It has ended: its id may be used anew."""
        self._answered.pop(utterance, None)
        self._dropped.pop(utterance, None)


def _remember(where: OrderedDict[str, str], utterances: Iterable[Utterance]) -> None:
    for utterance in utterances:
        if not utterance.final:
            where[utterance.id] = utterance.text
    while len(where) > _SIZE:
        where.popitem(last=False)
