"""Values that every part of the package shares: tokens, sequences, roles, turns and states."""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any, TypeAlias, final

Token: TypeAlias = int
"""An id in the model's vocabulary. Ids from `BackendInfo.vocab_size` on are rows that an adapter added, and
`VirtualId` stands for an embedding row."""

Seq: TypeAlias = int
"""The number of a sequence of cached tokens. Numbers are never used twice."""

_ABOVE_EVERY_VOCABULARY = 1 << 128


@final
class VirtualId(int):
    """The id of one embedding row: sound, a picture, or anything else that an encoder has turned into a vector.

    It is a number like any other id, above the vocabulary and the rows of every adapter, and it depends on the content
    alone: the same row has the same id. So sessions plan, compare and roll back virtual ids as they do tokens.

    The row belongs to the id. It lives while any sequence, plan or text holds the id, so that it can be fed again after
    its KV was given up; with the last holder it is gone. No backend keeps a table of rows, so there is nothing to
    release, nothing that could leak, and no limit but that of the KV cache. In exchange, a bare number does not stand
    for a row: keep the ids themselves.
    """

    row: bytes  # its D numbers as float32

    def __new__(cls, row: bytes) -> "VirtualId":
        digest = int.from_bytes(blake2b(row, digest_size=16).digest(), "big")
        self = super().__new__(cls, _ABOVE_EVERY_VOCABULARY + digest)
        self.row = row
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.row,)  # copies and pickles carry the row, too

    @property
    def width(self) -> int:
        """D."""
        return len(self.row) // 4


SLICE_PERIOD_S = 2.0
"""The paper's slice: what is said in two seconds, about four to six words (DUO, section 2)."""


class InputState(StrEnum):
    """The state of the words being heard: the paper's three state tokens (DUO, section 2.2), and `STOP`."""

    PROCESS = "process"  # complete and meant for the assistant: answer it
    INCOMPLETE = "incomplete"  # more will come: wait
    IGNORE = "ignore"  # not meant for the assistant: drop it
    STOP = "stop"  # end the assistant's speech, and say nothing

    @property
    def marker(self) -> str:
        """The state as the paper writes it, `<|process|>`, for display. User text is never parsed for it."""
        return f"<|{self.value}|>"


class Role(StrEnum):
    """Whose turn it is."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said. An assistant's turn holds only what the user heard of it."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """The texts around what a reasoning model thinks before it answers."""

    opener: str
    closer: str
    ending: str = ""  # what ends a thought early; by default the closer on a line of its own

    @property
    def early_end(self) -> str:
        """What is fed to end a thought that has taken too long."""
        return self.ending or f"\n{self.closer}\n\n"


def well_formed(text: str) -> str:
    """`text` in a form that UTF-8 can encode: pairs of surrogates are joined, lone surrogates become U+FFFD.

    JSON readers may return strings with surrogates, which no tokenizer accepts.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
