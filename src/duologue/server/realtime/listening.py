"""The words that a session is hearing and has not answered or dropped, as the items that they are or may become."""

from dataclasses import dataclass, field

from duologue.server.realtime.items import Item, new_id, words

PREFIX = "text:"  # of an utterance's name in the session, so that it is no item's
_MOST_KEPT = 64  # utterances that may go on


@dataclass(eq=False, slots=True)
class Listening:
    """Items in the order in which they were said. One with an `utterance` grows, and is not in the conversation yet.

    A client may use the name of an utterance again when it has ended; the session's names are used once.
    """

    items: list[Item] = field(default_factory=list)
    turn: list[Item] = field(default_factory=list)  # what the newest answer answers
    _names: dict[str, str] = field(default_factory=dict)  # in the session, by those of the client
    _num_names: int = 0
    _texts: dict[str, str] = field(default_factory=dict)  # by utterance: all of it so far
    _answered: dict[str, str] = field(default_factory=dict)  # by utterance: what of it belongs to turns that are over
    _before: dict[str, str] = field(default_factory=dict)  # the same without the newest turn

    @property
    def newest(self) -> Item | None:
        """What was said last."""
        return self.items[-1] if self.items else None

    @property
    def typed(self) -> list[Item]:
        """Those that are in the conversation already."""
        return [item for item in self.items if item.utterance is None]

    def name(self, label: str) -> str:
        """What the utterance that the client calls `label` is called in the session."""
        if label not in self._names:
            _remember(self._names, label, self._new_name(label))
        return self._names[label]

    def is_growing(self, label: str) -> bool:
        """Whether the utterance that the client calls `label` is one that the session hears."""
        return label in self._names

    def rename(self, item: Item) -> str:
        """The session is to hear it anew, and takes words that it was made to forget for what is old; a name for it."""
        before = item.utterance
        assert before is not None, "it is one that grows"
        item.utterance = after = self._new_name(label(before))
        for texts in (self._texts, self._answered, self._before):
            if before in texts:
                texts[after] = texts.pop(before)
        if self._names.get(label(before)) == before:
            self._names[label(before)] = after
        return after

    def grow(self, utterance: str, text: str, *, is_answered: bool, is_audio: bool = False) -> None:
        """The words of `utterance` are now `text`. `is_answered`: they are part of the turn that is being answered."""
        _remember(self._texts, utterance, text)
        found = next((item for item in self.items if item.utterance == utterance), None)
        if found is None and not is_answered:
            found = Item("user", "", utterance=utterance, is_audio=is_audio)
            self.items.append(found)
        if found is not None:
            found.text = self._words(utterance)

    def text(self, utterance: str) -> str:
        """All of `utterance` so far."""
        return self._texts.get(utterance, "")

    def end(self, label: str) -> None:
        """The utterance has ended: the client's name for it may be used anew."""
        self._names.pop(label, None)

    def forget(self, utterance: str) -> None:
        """Its words were taken back."""
        self.items = [item for item in self.items if item.utterance != utterance]
        self._texts.pop(utterance, None)

    def answer(self) -> list[Item]:
        """All words became a turn that is being answered; returns the items that are new to the conversation."""
        self.turn, self.items = self.items, []
        grown = [item for item in self.turn if item.utterance is not None]
        for item in grown:
            assert item.utterance is not None, "it is one that grows"
            _remember(self._before, item.utterance, self._answered.get(item.utterance, ""))
            _remember(self._answered, item.utterance, self._texts.get(item.utterance, ""))
        return grown

    def close_turn(self) -> None:
        """The turn cannot be taken back any more: its items grow no more."""
        for item in self.turn:
            item.utterance = None
        self.turn = []

    def take_back(self) -> list[Item]:
        """The turn is open again. Returns what of it may grow: that leaves the conversation, and is to be renewed."""
        grown = [item for item in self.turn if item.utterance is not None]
        self.items, self.turn = [*self.turn, *self.items], []
        return grown

    def renew(self, item: Item) -> None:
        """`item` left the conversation; if its words are answered, they come back as another."""
        assert item.utterance is not None, "it is one that grows"
        self._answered[item.utterance] = self._before.pop(item.utterance, "")
        item.id, item.text = new_id("item"), self._words(item.utterance)

    def drop(self, text: str) -> list[Item]:
        """The words `text`, the newest ones or all, were given up; returns what they were."""
        at = len(self.items) if text else 0
        while at and words(self.items[at:]) != text:
            at -= 1
        gone, self.items = self.items[at:], self.items[:at]
        return gone

    def _new_name(self, label: str) -> str:
        self._num_names += 1
        return f"{PREFIX}{self._num_names}:{label}"

    def _words(self, utterance: str) -> str:
        text, before = self._texts.get(utterance, ""), self._answered.get(utterance, "")
        return text.removeprefix(before).strip()


def label(utterance: str) -> str:
    """What the client calls it."""
    return utterance.removeprefix(PREFIX).partition(":")[2]


def _remember(where: dict[str, str], utterance: str, text: str) -> None:
    where.pop(utterance, None)
    where[utterance] = text
    while len(where) > _MOST_KEPT:
        del where[next(iter(where))]
