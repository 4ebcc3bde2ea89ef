"""Limits and chance of one session."""

from dataclasses import dataclass, field
from typing import Literal

from duologue.core.backend import Sampling
from duologue.errors import UsageError


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Limits and chance of one session. Lengths are in tokens."""

    max_length: int = 4096  # of the live branch; the backend's capacity should be about twice that
    max_answer: int = 1024
    chunk: int = 256  # most tokens of one channel in a pass, so that a long text cannot stall the answer
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    heard: Literal["shown", "reported"] = "shown"  # what `Said` tells is heard at once, or when `heard` is called
    lookahead: int = 48  # most tokens of an answer that nobody has heard yet, where that is reported
    lookahead_listening: int = 16  # the same while words are being heard, which may cut it: they find the backend idle

    def __post_init__(self) -> None:
        if self.max_length < 128 or min(self.max_answer, self.chunk, self.lookahead, self.lookahead_listening) < 1:
            raise UsageError("max_length must be at least 128, max_answer, chunk and both lookaheads at least 1")

    @property
    def max_user_text(self) -> int:
        """Tokens that the user's turn may have."""
        return self.max_length // 4

    @property
    def min_room(self) -> int:
        """Tokens that must be left for an answer when it begins."""
        return self.max_length // 8
