"""Values that every part of the package shares: tokens, sequences, roles, turns and states."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

Token: TypeAlias = int
"""An id in the model's vocabulary. Ids from `BackendInfo.vocab_size` on are rows that an adapter added."""

Seq: TypeAlias = int
"""The number of a sequence of cached tokens. Numbers are never used twice."""

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
