"""The words every floor shares: tokens, sequences, roles, turns and the states of an utterance."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

Token: TypeAlias = int
"""An id in the model's vocabulary; ids at and above `BackendInfo.vocab_size` are rows an adapter added."""

Seq: TypeAlias = int
"""A name for one sequence of cached tokens. Names are never used twice."""

SLICE_PERIOD_S = 2.0
"""The paper's slice: what is said in two seconds, four to six words (DUO, section 2)."""


class InputState(StrEnum):
    """What the model says of the words it hears (DUO, section 2.2; `STOP` is ours)."""

    PROCESS = "process"  # complete and meant for the assistant: answer it
    INCOMPLETE = "incomplete"  # more will come: wait
    IGNORE = "ignore"  # none of the assistant's business: drop it
    STOP = "stop"  # the assistant's speech should end, and nothing should follow

    @property
    def marker(self) -> str:
        """The state as the papers write it, `<|process|>`. For people: user text is never parsed for it."""
        return f"<|{self.value}|>"


class Role(StrEnum):
    """Who a turn belongs to."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said in one go. An assistant's turn holds what the user heard of it, and nothing else."""

    role: Role
    text: str


def well_formed(text: str) -> str:
    """`text` as it can be written in UTF-8: pairs of surrogates joined, each lone surrogate replaced by U+FFFD.

    A Python string from a careless JSON reader may hold surrogates; no tokenizer takes them.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
