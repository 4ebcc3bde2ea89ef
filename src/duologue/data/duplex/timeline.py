"""A dialogue in slices: pairs of what the user and the assistant say in one period, and where their words come from."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from duologue.data.duplex.dialogues import SourceTurn
from duologue.data.duplex.rewriting import Written
from duologue.data.duplex.slicer import Slicer
from duologue.errors import BadData
from duologue.types import Role

IDLE = "<idle>"
"""The content of a slice in which nothing is said, in files. In memory it is None."""

_HESITATES = 0.1
"""Share of a user's turns, of two slices at least, in which they pause."""


@dataclass(frozen=True, slots=True)
class Part:
    """A whole text that slices are cut from."""

    role: Role
    dialogue: str  # the source: see `SourceDialogue.id`
    turn: int  # in that source
    text: str
    transition: str | None = None  # the line that it was written with; None: the turn as it is in the source
    by: str | None = None  # who wrote it
    refused: str | None = None  # why a model's text was not used
    is_cut: bool = False  # whether the assistant was interrupted

    def to_json(self) -> dict[str, Any]:
        """For a row. What is in the source is not repeated."""
        row: dict[str, Any] = {"role": self.role.value, "dialogue": self.dialogue, "turn": self.turn}
        if self.by is not None:
            row |= {"text": self.text, "transition": self.transition, "by": self.by}
        return row | ({"refused": self.refused} if self.refused else {}) | ({"cut": True} if self.is_cut else {})


@dataclass(frozen=True, slots=True)
class Slice:
    """What one side says in a period."""

    text: str
    part: int  # number of the part
    start: int  # in its text, in characters
    end: int


@dataclass(slots=True)
class Pair:
    """A period; None: nothing is said."""

    user: Slice | None = None
    assistant: Slice | None = None


@dataclass(frozen=True, slots=True)
class DuplexDialogue:
    """A row of the data set: `output` is that of Duplex-UltraChat, the rest says where it comes from."""

    id: str
    category: str
    language: str
    output: tuple[tuple[str | None, str | None], ...]  # the user's words and the assistant's in each period
    num_tokens: int = 0  # of both sides; silence is one token
    parts: tuple[Mapping[str, Any], ...] = ()
    trace: tuple[
        tuple[int, int, int] | None, ...
    ] = ()  # part, start and end of each slice, users and assistants in turn
    instead_of: str | None = None  # the category for which the source was too short

    def to_json(self) -> dict[str, Any]:
        """One line of a file."""
        sides = [(role, text) for pair in self.output for role, text in zip(("user", "assistant"), pair, strict=True)]
        row: dict[str, Any] = {
            "id": self.id,
            "category": self.category,
            "language": self.language,
            "output": [{"role": role, "content": IDLE if text is None else text} for role, text in sides],
            "num_tokens": self.num_tokens,
            "parts": list(self.parts),
            "trace": self.trace,
        }
        return row | ({"instead_of": self.instead_of} if self.instead_of else {})

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "DuplexDialogue":
        """The dialogue of one line, also of Duplex-UltraChat itself, which has `output` alone.

        Raises:
            BadData: says what is wrong with it.
        """
        output = row.get("output")
        if not isinstance(output, list) or not output:
            raise BadData("a dialogue in slices needs output, a list of slices")
        texts: list[str | None] = []
        for number, one in enumerate(output):
            role = ("user", "assistant")[number % 2]
            if not isinstance(one, dict) or one.get("role") != role or not isinstance(one.get("content"), str):
                raise BadData(f"slice {number} of output must be {{'role': {role!r}, 'content': …}}, got {one!r:.80}")
            content = one["content"]
            texts.append(None if content.strip() in ("", IDLE) else content)
        if len(texts) % 2:
            raise BadData("output ends with a slice of the user; slices come in pairs")
        counted = row.get("num_tokens", 0)
        return cls(
            id=str(row.get("id", "")),
            category=str(row.get("category", "")),
            language=str(row.get("language", "")),
            output=tuple(zip(texts[::2], texts[1::2], strict=True)),
            num_tokens=counted if isinstance(counted, int) else 0,
            parts=tuple(row.get("parts") or ()),
            trace=tuple(None if one is None else tuple(one) for one in row.get("trace") or ()),
            instead_of=row.get("instead_of"),
        )


@final
@dataclass(slots=True)
class Timeline:
    """Builds a dialogue period by period. An answer begins in the period in which the user's last words are heard."""

    slicer: Slicer
    rng: random.Random
    pairs: list[Pair] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def user(self, turn: SourceTurn, dialogue: str, written: Written | None = None, line: str | None = None) -> None:
        """The user says a turn, or what was `written` around it. The assistant is silent, whatever it was saying."""
        part = self._part(turn, dialogue, written, line)
        spans = self.slicer.user(self.parts[part].text, self.rng)
        pause = 0
        if len(spans) > 1 and self.rng.random() < _HESITATES:
            pause = self.rng.randrange(1, len(spans))
        for number, span in enumerate(spans):
            if pause and number == pause:
                self.quiet(self.rng.randint(1, 2))
            self.pairs.append(Pair(user=self._slice(part, span, joined=True)))

    def assistant(
        self,
        turn: SourceTurn,
        dialogue: str,
        written: Written | None = None,
        line: str | None = None,
        *,
        start: int = 0,
        num_slices: int | None = None,
    ) -> int:
        """The assistant says a turn from character `start` on, or the first `num_slices` slices of it.

        Returns the character at which it stops.
        """
        part = self._part(turn, dialogue, written, line, is_cut=num_slices is not None)
        end = start
        for number, span in enumerate(self.slicer.assistant(self.parts[part].text, start)[:num_slices]):
            said = self._slice(part, span)
            last = self.pairs[-1] if self.pairs else Pair(assistant=said)
            if last.user is not None and last.assistant is None:
                last.assistant = said
            else:
                goes_on = not number and last.assistant is not None and said.text[0].isascii()
                self.pairs.append(Pair(assistant=replace(said, text=f" {said.text}") if goes_on else said))
            end = span[1]
        return end

    def quiet(self, num_pairs: int) -> None:
        """Nobody says anything."""
        self.pairs += [Pair() for _ in range(num_pairs)]

    def finish(self, id: str, category: str, language: str, instead_of: str | None = None) -> DuplexDialogue:
        """The dialogue."""
        return DuplexDialogue(
            id=id,
            category=category,
            language=language,
            output=tuple((_text(pair.user), _text(pair.assistant)) for pair in self.pairs),
            num_tokens=sum(
                1 if one is None else self.slicer.num_tokens(one.text) for pair in self.pairs for one in _sides(pair)
            ),
            parts=tuple(part.to_json() for part in self.parts),
            trace=tuple(
                None if one is None else (one.part, one.start, one.end) for pair in self.pairs for one in _sides(pair)
            ),
            instead_of=instead_of,
        )

    def _part(
        self, turn: SourceTurn, dialogue: str, written: Written | None, line: str | None, *, is_cut: bool = False
    ) -> int:
        made = (
            Part(turn.role, dialogue, turn.index, turn.text, is_cut=is_cut)
            if written is None
            else Part(turn.role, dialogue, turn.index, written.text, line, written.by, written.refused)
        )
        self.parts.append(made)
        return len(self.parts) - 1

    def _slice(self, part: int, span: tuple[int, int], *, joined: bool = False) -> Slice:
        """The slice of a part; `joined`: with single spaces between words."""
        start, end = span
        text = self.parts[part].text[start:end]
        return Slice(" ".join(text.split()) if joined else text, part, start, end)


def _sides(pair: Pair) -> Iterator[Slice | None]:
    yield pair.user
    yield pair.assistant


def _text(one: Slice | None) -> str | None:
    return None if one is None else one.text
