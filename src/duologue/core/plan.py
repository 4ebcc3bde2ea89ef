"""What a session wants done: changes to the KV cache, then one forward pass.

Sequences are numbered by the session itself; whoever drives it maps them to the backend's (`engines/`).
"""

from dataclasses import dataclass
from typing import TypeAlias

from duologue.core.backend import Extend
from duologue.types import Seq


@dataclass(frozen=True, slots=True)
class Fork:
    """Open `seq` with the first `length` cached tokens of `parent`; without a parent it is empty."""

    seq: Seq
    parent: Seq | None
    length: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Roll `seq` back to its first `length` tokens."""

    seq: Seq
    length: int


@dataclass(frozen=True, slots=True)
class Free:
    """Forget `seq`."""

    seq: Seq


Op: TypeAlias = Fork | Truncate | Free


@dataclass(frozen=True, slots=True)
class Plan:
    """First `ops` in order, then one pass over `batch` (none if it is empty). Every plan must be carried out."""

    ops: tuple[Op, ...]
    batch: tuple[Extend, ...]
