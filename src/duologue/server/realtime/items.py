"""The items of a Realtime conversation, in order: what the client sees of the history, and may change."""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from duologue.server.realtime.errors import Rejection
from duologue.server.realtime.messages import MOST_ID
from duologue.types import Role, Turn, well_formed

MOST_ITEMS = 1000  # of a conversation; beyond, the oldest is deleted
_ROLES = ("user", "assistant", "system")


def new_id(kind: str) -> str:
    """A name such as `item_…`."""
    return f"{kind}_{secrets.token_hex(10)}"


@dataclass(eq=False, slots=True)
class Item:
    """A message. `text` is what counts of it: of the assistant's, what was said, and once it was cut, what was heard.

    `utterance` is the name of words that grow (`input.text.append`): they become an item when they are answered.
    """

    role: str
    text: str
    id: str = field(default_factory=lambda: new_id("item"))
    status: str = "completed"
    utterance: str | None = None
    is_audio: bool = False  # spoken: `text` is its transcript
    played: list[tuple[float, int]] = field(default_factory=list)  # seconds of its sound, characters that end there

    def length_at(self, seconds: float, rate: float) -> int:
        """Characters that are heard in so many seconds: by its sound, or at `rate` characters a second."""
        if not self.is_audio:
            return int(seconds * rate)
        return max((length for at, length in self.played if at <= seconds), default=0)

    def seconds_at(self, length: int, rate: float) -> float:
        """The reverse: when so many characters have been heard."""
        if not self.is_audio:
            return length / rate
        return next(
            (at for at, position in self.played if position >= length), self.played[-1][0] if self.played else 0
        )

    def as_json(self) -> dict[str, Any]:
        """As the protocol shows it."""
        kind = "output" if self.role == "assistant" else "input"
        part = (
            {"type": f"{kind}_audio", "transcript": self.text}
            if self.is_audio
            else {"type": f"{kind}_text", "text": self.text}
        )
        content = [part] if self.text or self.status != "in_progress" else []
        return {
            "id": self.id, "object": "realtime.item", "type": "message", "role": self.role, "status": self.status,
            "content": content,
        }  # fmt: skip

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Item":
        """The item that a client describes. Raises `Rejection` for one that there cannot be."""
        kind, role = row.get("type", "message"), row.get("role")
        if kind != "message":
            raise Rejection(f"items of type {kind!r:.40} are not supported: there are no tools", param="item.type")
        if role not in _ROLES:
            raise Rejection(f"role is {role!r:.40}; it must be user, assistant or system", param="item.role")
        name = row.get("id")
        if name is None:
            name = new_id("item")
        elif not isinstance(name, str) or not 1 <= len(name) <= MOST_ID or name == "root":
            raise Rejection(f'an id has 1 to {MOST_ID} characters, and is not "root"', param="item.id")
        content = row.get("content") or []
        if not isinstance(content, list):
            raise Rejection("content must be a list", param="item.content")
        text = "".join(_part(part, role, number) for number, part in enumerate(content))
        return cls(role, well_formed(text), name)


def _part(part: Any, role: str, number: int) -> str:
    param = f"item.content[{number}]"
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_audio", "output_audio", "audio"):
        raise Rejection(
            "items are made of text: send text, or append sound on a server with a voice",
            code="audio_not_supported",
            param=f"{param}.type",
        )
    wanted = ("output_text", "text") if role == "assistant" else ("input_text", "text")
    if kind not in wanted:
        raise Rejection(
            f"content of type {kind!r:.40} cannot be used; that of the {role} is {wanted[0]}", param=f"{param}.type"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise Rejection("text is missing", code="missing_required_parameter", param=f"{param}.text")
    return text


class Items:
    """All items in order."""

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: Item) -> bool:
        return item in self._items

    def find(self, name: str) -> Item | None:
        """The item of that id."""
        return next((item for item in self._items if item.id == name), None)

    def add(self, item: Item, *, before: Item | None = None) -> None:
        """Put `item` at the end, or before another."""
        self._items.insert(len(self._items) if before not in self._items else self._items.index(before), item)

    def insert(self, item: Item, previous: str | None) -> bool:
        """Put `item` behind the one with the id `previous` ("root": first; None: last). Returns whether it is last.

        Raises:
            Rejection: there is an item of its id, or none of that id.
        """
        if self.find(item.id) is not None:
            raise Rejection(
                f"there is an item {item.id!r} already", code="item_create_duplicate_item_id", param="item.id"
            )
        at = len(self._items)
        if previous == "root":
            at = 0
        elif previous is not None:
            anchor = self.find(previous)
            if anchor is None:
                raise Rejection(
                    f"there is no item {previous!r} to come after",
                    code="item_create_invalid_previous_item_id",
                    param="previous_item_id",
                )
            at = self._items.index(anchor) + 1
        self._items.insert(at, item)
        return at == len(self._items) - 1

    def remove(self, item: Item) -> None:
        """Take `item` out, if it is there."""
        if item in self._items:
            self._items.remove(item)

    def pop_surplus(self) -> Item | None:
        """The oldest item, taken out, if there are too many."""
        return self._items.pop(0) if len(self._items) > MOST_ITEMS else None

    def previous(self, item: Item) -> str | None:
        """Id of the item before `item`."""
        at = self._items.index(item)
        return self._items[at - 1].id if at else None

    @property
    def unanswered(self) -> list[Item]:
        """The items of others that nothing of the assistant's follows."""
        at = len(self._items)
        while at and self._items[at - 1].role != "assistant":
            at -= 1
        return self._items[at:]

    @property
    def answered(self) -> list[Item]:
        """The items before those."""
        return self._items[: len(self._items) - len(self.unanswered)]


def words(items: Iterable[Item]) -> str:
    """The user's turn that `items` are, as a session joins utterances."""
    return " ".join(text for item in items if (text := item.text.strip()))


def turns(items: Iterable[Item]) -> list[Turn]:
    """The history that `items` are. System items belong to the user's turn: a model's template has no place for more
    than one system prompt."""
    return merged(
        Turn(Role.ASSISTANT, item.text) if item.role == "assistant" else Turn(Role.USER, item.text.strip())
        for item in items
    )


def merged(history: Iterable[Turn]) -> list[Turn]:
    """`history` without empty turns, and what one side said in several as one."""
    out: list[Turn] = []
    for turn in history:
        if not turn.text.strip():
            continue
        if out and out[-1].role is turn.role:
            before = out.pop().text
            joint = "" if before[-1].isspace() or turn.text[0].isspace() else " "
            turn = Turn(turn.role, before + joint + turn.text)
        out.append(turn)
    return out
