"""The format of answers that come from elsewhere as text: a token is a few characters, and there is no markup.

An output channel in this format keeps history, answers, cuts and resumptions as any other, but nothing of it is fed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from duologue.text import words
from duologue.types import Role, ThoughtMarks, Token, Turn

_PIECE = re.compile(r"\s?\S{1,4}|\s{1,4}")  # about as long as a token of a model, and never more than one word


@final
class _Pieces:
    """Turns tokens into text."""

    def push(self, token: Token) -> str:
        return token.to_bytes(-(-token.bit_length() // 8), "big")[1:].decode()

    def flush(self) -> str:
        return ""


@final
@dataclass(frozen=True, slots=True, eq=False)
class TextTemplate:
    """A chat format, as `duologue.core.prompt.Template`, whose ids are pieces of text. The system prompt has a length.

    An answer never ends by one of its tokens; `Session.finish` ends it.
    """

    system: str | None = None  # None: the speaker's own

    @property
    def is_elsewhere(self) -> bool:
        return True

    @property
    def begin(self) -> tuple[Token, ...]:
        return self.encode(self.system or "")

    @property
    def header(self) -> tuple[Token, ...]:
        return ()

    @property
    def close(self) -> tuple[Token, ...]:
        return ()

    @property
    def stop_tokens(self) -> frozenset[Token]:
        return frozenset()

    def with_system(self, text: str | None) -> "TextTemplate":
        """The same format with another system text."""
        return TextTemplate(text)

    def user(self, text: str, *, first: bool) -> tuple[Token, ...]:
        return self.encode(text)

    def encode(self, text: str) -> tuple[Token, ...]:
        return tuple(int.from_bytes(b"\x01" + piece.encode(), "big") for piece in _PIECE.findall(text))

    def joint(self, previous: Role | None, role: Role) -> tuple[Token, ...]:
        return ()

    def opening(self, previous: Role | None) -> tuple[Token, ...]:
        return ()

    @property
    def thought(self) -> ThoughtMarks | None:
        return None

    @property
    def thought_marks(self) -> tuple[ThoughtMarks, ...]:
        return ()

    def end_thought(self, marks: ThoughtMarks) -> tuple[Token, ...]:
        return ()

    def lay_out(self, turns: Iterable[Turn], previous: Role | None = None) -> list[Token]:
        return [token for turn in turns for token in self.encode(turn.text)]

    def detokenizer(self) -> _Pieces:
        return _Pieces()

    def word_ends(self, text: str) -> list[int]:
        return words.word_ends(text)

    def is_word_end(self, text: str, position: int) -> bool:
        return words.is_word_end(text, position)
