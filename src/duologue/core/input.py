"""What is being heard: the open utterances, the channel they are fed to, and what was last thought of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from duologue.core.answer import Answer
from duologue.core.channel import Channel
from duologue.core.events import Decision
from duologue.core.utterance import Utterance
from duologue.types import Token


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
        self.channel: Channel | None = None
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

    def sit(self, channel: Channel, at: int, opening: tuple[Token, ...], is_first: bool, epoch: int) -> None:
        """It is fed to `channel`, which was forked at `at`; `opening` goes before the words there."""
        self.channel, self.at, self.opening, self.is_first, self.epoch = channel, at, opening, is_first, epoch

    def sits(self, at: int, opening: tuple[Token, ...], epoch: int) -> bool:
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
