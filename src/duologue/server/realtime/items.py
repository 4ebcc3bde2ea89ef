"""The items of a Realtime conversation: those that the client sees and can change, and those that are being heard."""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from duologue.core.words import words_in
from duologue.server.fields import Rejection
from duologue.server.realtime.messages import MOST_ID
from duologue.types import well_formed

MOST_ITEMS = 1000  # in a conversation; if there are more, the oldest is deleted
MOST_CHARACTERS = 1 << 18  # of all items; likewise


_PREFIX = "text:"  # of an utterance's name in the session, to distinguish it from the ids of items
_MOST_KEPT = 64  # utterances that may continue


def new_id(kind: str) -> str:
    """A name such as `item_…`."""
    return f"{kind}_{secrets.token_hex(10)}"


@dataclass(eq=False, slots=True)
class Utterance:
    """Growing words, from `input.text.append` or spoken."""

    label: str  # the client's name for it
    name: str  # the session's; used once
    text: str = ""  # all of it so far
    answered: str = ""  # the part that belongs to earlier turns
    _before: str = ""  # that part without the newest turn

    def answer(self) -> None:
        """Record that all of it so far is being answered."""
        self._before, self.answered = self.answered, self.text

    def take_back(self) -> None:
        """Record that the answer was taken back: its turn continues."""
        self.answered, self._before = self._before, ""

    @property
    def unanswered(self) -> str:
        """The words of the open turn."""
        return self.text.removeprefix(self.answered).strip()


@dataclass(eq=False, slots=True)
class Item:
    """A message. The `text` of the assistant's is what was said or, after a cut, what was heard.

    An item with an `utterance` grows, and joins the conversation when it is answered.
    """

    role: str
    text: str
    id: str = field(default_factory=lambda: new_id("item"))
    status: str = "completed"
    utterance: Utterance | None = None
    is_audio: bool = False  # spoken: `text` is its transcript
    played: list[tuple[float, int]] = field(default_factory=list)  # seconds of its sound, characters that end there

    @property
    def words(self) -> str:
        """What the model reads of it: nothing of a user's non-speech text."""
        return words_in(self.text) if self.role == "user" else self.text.strip()

    def length_at(self, seconds: float, rate: float) -> int:
        """Characters heard within `seconds`, by its sound or at `rate` characters per second."""
        if not self.is_audio:
            return int(seconds * rate)
        return max((length for at, length in self.played if at <= seconds), default=0)

    def seconds_at(self, length: int, rate: float) -> float:
        """The inverse: the time at which `length` characters have been heard."""
        if not self.is_audio:
            return length / rate
        last = self.played[-1][0] if self.played else 0.0
        return next((at for at, position in self.played if position >= length), last)

    def as_json(self) -> dict[str, Any]:
        """The item in the form of the protocol."""
        kind = "output" if self.role == "assistant" else "input"
        part = {"type": f"{kind}_text", "text": self.text}
        if self.is_audio:
            part = {"type": f"{kind}_audio", "transcript": self.text}
        content = [part] if self.text or self.status != "in_progress" else []
        return {
            "id": self.id, "object": "realtime.item", "type": "message", "role": self.role, "status": self.status,
            "content": content,
        }  # fmt: skip

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Item":
        """The item that a client describes. Raises `Rejection` if it is invalid."""
        kind, role, name, content = row.get("type", "message"), row.get("role"), row.get("id"), row.get("content") or []
        if kind != "message":
            raise Rejection(f"items of type {kind!r:.40} are not supported: there are no tools", param="item.type")
        if role not in ("user", "assistant", "system"):
            raise Rejection(f"role is {role!r:.40}; expected user, assistant or system", param="item.role")
        if name is not None and (not isinstance(name, str) or not 1 <= len(name) <= MOST_ID or name == "root"):
            raise Rejection(f'an id has 1 to {MOST_ID} characters, and is not "root"', param="item.id")
        if not isinstance(content, list):
            raise Rejection("content must be a list", param="item.content")
        text = "".join(_part_text(part, role, f"item.content[{number}]") for number, part in enumerate(content))
        return cls(role, well_formed(text), name or new_id("item"))


def _part_text(part: Any, role: str, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    wanted = ("output_text", "text") if role == "assistant" else ("input_text", "text")
    if kind in ("input_audio", "output_audio", "audio"):
        if isinstance(part.get("transcript"), str):
            return str(part["transcript"])
        message = "items are made of text: send text or a transcript, or append sound on a server with a voice"
        raise Rejection(message, code="audio_not_supported", param=f"{where}.type")
    if kind not in wanted:
        raise Rejection(f"content of the {role} has type {wanted[0]}, not {kind!r:.40}", param=f"{where}.type")
    text = part.get("text")
    if not isinstance(text, str):
        raise Rejection("text is missing", code="missing_required_parameter", param=f"{where}.text")
    return text


class Items:
    """All items in order."""

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def find(self, name: str) -> Item | None:
        """The item with this id."""
        return next((item for item in self._items if item.id == name), None)

    def add(self, item: Item, *, before: Item | None = None) -> None:
        """Put `item` at the end, or before another."""
        self._items.insert(self._items.index(before) if before in self._items else len(self._items), item)

    def insert(self, item: Item, previous: str | None) -> bool:
        """Put `item` after the one with the id `previous` ("root": first; None: last). Returns whether it is last.

        Raises:
            Rejection: the id is taken, or no item has the id `previous`.
        """
        if self.find(item.id) is not None:
            message = f"there is an item {item.id!r} already"
            raise Rejection(message, code="item_create_duplicate_item_id", param="item.id")
        at = 0 if previous == "root" else len(self._items)
        if previous not in (None, "root"):
            anchor = self.find(previous or "")
            if anchor is None:
                raise Rejection(
                    f"there is no item {previous!r} to follow",
                    code="item_create_invalid_previous_item_id",
                    param="previous_item_id",
                )
            at = self._items.index(anchor) + 1
        self._items.insert(at, item)
        return at == len(self._items) - 1

    def remove(self, item: Item) -> None:
        """Remove `item` if it is present."""
        if item in self._items:
            self._items.remove(item)

    def pop_surplus(self) -> Item | None:
        """Remove and return the oldest item if the items are too many or too long."""
        is_surplus = len(self._items) > MOST_ITEMS or sum(len(item.text) for item in self._items) > MOST_CHARACTERS
        return self._items.pop(0) if is_surplus and len(self._items) > 1 else None

    def previous(self, item: Item) -> str | None:
        """Id of the item before `item`; None if it is the first, or missing."""
        at = self._items.index(item) if item in self._items else 0
        return self._items[at - 1].id if at else None

    @property
    def unanswered(self) -> list[Item]:
        """The items after the newest one of the assistant."""
        at = len(self._items)
        while at and self._items[at - 1].role != "assistant":
            at -= 1
        return self._items[at:]

    @property
    def answered(self) -> list[Item]:
        """The items before those."""
        return self._items[: len(self._items) - len(self.unanswered)]


def words(items: Iterable[Item]) -> str:
    """The user's turn that consists of `items`, joined as a session joins utterances."""
    return " ".join(text for item in items if (text := item.words))


@dataclass(eq=False, slots=True)
class Listening:
    """The items being heard, in the order in which they were said.

    A client may reuse the label of an utterance that has ended; the session's names are used once.
    """

    items: list[Item] = field(default_factory=list)
    turn: list[Item] = field(default_factory=list)  # those that the newest answer answers
    _growing: dict[str, Utterance] = field(default_factory=dict)  # by label
    _num_names: int = 0

    @property
    def newest(self) -> Item | None:
        """The newest item."""
        return self.items[-1] if self.items else None

    @property
    def typed(self) -> list[Item]:
        """The items that are already in the conversation."""
        return [item for item in self.items if item.utterance is None]

    @property
    def grown(self) -> list[tuple[Item, Utterance]]:
        """The items that are not, with their utterances."""
        return _grown(self.items)

    def is_growing(self, label: str) -> bool:
        """Whether the session hears the utterance that the client calls `label`."""
        return label in self._growing

    def utterance(self, label: str) -> Utterance:
        """The utterance that the client calls `label`."""
        if label not in self._growing:
            self._growing[label] = Utterance(label, self._new_name(label))
            if len(self._growing) > _MOST_KEPT:
                del self._growing[next(iter(self._growing))]
        return self._growing[label]

    def rename(self, utterance: Utterance) -> None:
        """Give the utterance a new name, under which the session hears its words again after forgetting them."""
        utterance.name = self._new_name(utterance.label)

    def grow(self, utterance: Utterance, text: str, *, is_answered: bool, is_audio: bool = False) -> None:
        """Set all words of an utterance. `is_answered`: they are part of the turn that is being answered."""
        utterance.text = text
        found = next((item for item in self.items if item.utterance is utterance), None)
        if found is None and not is_answered:
            found = Item("user", "", utterance=utterance, is_audio=is_audio)
            self.items.append(found)
        if found is not None:
            found.text = utterance.unanswered

    def leave_out(self, utterance: Utterance, read: str) -> None:
        """Leave out what comes before the words `read` of `utterance`: an echo, or words that were answered."""
        utterance.answered = utterance.text.rstrip().removesuffix(read)
        for item in self.items:
            if item.utterance is utterance:
                item.text = utterance.unanswered

    def end(self, label: str) -> None:
        """Record that the utterance has ended: the client may reuse the label."""
        self._growing.pop(label, None)

    def forget(self, utterance: Utterance) -> None:
        """Remove the utterance, whose words were retracted."""
        self.items = [item for item in self.items if item.utterance is not utterance]
        self.end(utterance.label)

    def answer(self) -> list[Item]:
        """Make all words a turn that is being answered. Returns the items that are new to the conversation."""
        self.turn, self.items = self.items, []
        for _, utterance in (grown := _grown(self.turn)):
            utterance.answer()
        return [item for item, _ in grown]

    def close_turn(self) -> None:
        """Close the turn: it can no longer be taken back, and its items no longer grow."""
        for item in self.turn:
            item.utterance = None
        self.turn = []

    def take_back(self) -> list[Item]:
        """Reopen the turn. Returns those of its items that leave the conversation, because they may grow.

        If their words are answered, they return with the new ids that `renew` gives them.
        """
        grown = _grown(self.turn)
        self.items, self.turn = [*self.turn, *self.items], []
        return [item for item, _ in grown]

    def renew(self, item: Item) -> None:
        """Give `item`, which has left the conversation, a new id and its open words."""
        assert item.utterance is not None, "it grows"
        item.utterance.take_back()
        item.id, item.text = new_id("item"), item.utterance.unanswered

    def drop(self, text: str) -> list[Item]:
        """Remove the words `text`, the newest or all, which were dropped. Returns their items."""
        at = len(self.items) if text else 0
        while at and " ".join(item.text.strip() for item in self.items[at:]) != text:
            at -= 1
        gone, self.items = self.items[at:], self.items[:at]
        return gone

    def _new_name(self, label: str) -> str:
        self._num_names += 1
        return f"{_PREFIX}{self._num_names}:{label}"


def label_of(name: str) -> str | None:
    """The client's label of the utterance that the session calls `name`; None for the id of an item."""
    return name.removeprefix(_PREFIX).partition(":")[2] if name.startswith(_PREFIX) else None


def _grown(items: list[Item]) -> list[tuple[Item, Utterance]]:
    return [(item, item.utterance) for item in items if item.utterance is not None]
