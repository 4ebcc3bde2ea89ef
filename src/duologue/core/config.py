"""The limits and the sampling of one session."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from duologue.core.backend import Constraint, Sampling
from duologue.errors import ContextOverflow, require
from duologue.types import Turn

MAX_CHARACTERS_PER_TOKEN = 32
"""No text has more characters per token on average, so longer texts are refused before they are tokenised."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """The limits and the sampling of one session. Lengths are in tokens."""

    max_length: int = 4096  # of the output channel; the backend's capacity should be about twice that
    max_answer: int = 1024
    max_thought: int = 512  # of a reasoning model before an answer; then the thought is ended. 0: it does not think
    chunk: int = 256  # most tokens of one sequence in a pass, so that a long text cannot stall the answer
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    num_alternatives: int | None = None  # keep log probabilities of answers, with so many alternatives to each token
    constraint: Constraint | None = None  # a grammar that answers follow
    heard: Literal["shown", "reported"] = (
        "shown"  # text counts as heard as soon as it is said, or when `heard` is called
    )
    lookahead: int = 48  # most unheard tokens of an answer if hearing is reported
    lookahead_listening: int = 16  # the same while words are being heard: less is lost if they cut the answer

    def __post_init__(self) -> None:
        require(
            self.max_length >= 128 and min(self.max_answer, self.chunk, self.lookahead, self.lookahead_listening) >= 1,
            "max_length must be at least 128, max_answer, chunk and both lookaheads at least 1",
        )
        require(self.max_thought >= 0, f"max_thought {self.max_thought} is negative; 0 ends every thought at once")

    @property
    def max_user_text(self) -> int:
        """Tokens that the user's turn may have."""
        return self.max_length // 4

    @property
    def max_user_characters(self) -> int:
        """Characters that the user's turn may have. More would certainly be too many tokens, and are not tokenised."""
        return MAX_CHARACTERS_PER_TOKEN * self.max_user_text

    @property
    def too_long(self) -> str:
        """Why a longer turn is refused."""
        return f"a turn of more than {self.max_user_text} tokens; say it in parts"

    @property
    def max_history(self) -> int:
        """Tokens that the system prompt and the history may have, so that there is room for a turn."""
        return self.max_length - self.max_user_text - self.min_room

    def check_size(self, turns: Sequence[Turn]) -> None:
        """Refuse, before anything is tokenised, turns that cannot fit into the context, a system prompt included.

        Raises:
            ContextOverflow: there are too many of them, or too many characters.
        """
        num_characters = sum(len(turn.text) for turn in turns)
        if num_characters > MAX_CHARACTERS_PER_TOKEN * self.max_length or 2 * len(turns) > self.max_length:
            raise ContextOverflow(
                f"{num_characters} characters in {len(turns)} turns do not fit into a context of {self.max_length} "
                "tokens: shorten system prompt and history, or raise max_length"
            )

    @property
    def min_room(self) -> int:
        """Tokens that must be left for an answer when it begins."""
        return self.max_length // 8
