"""The tokens fed around the words: the segments of the model's chat format, and the probe that asks for the state.

The core knows the chat format only as the two protocols below; `duologue.text.template.Template` implements them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from duologue.core.config import SessionConfig
from duologue.errors import ContextOverflow, require
from duologue.types import InputState, Role, ThoughtMarks, Token, Turn


class Detokenizer(Protocol):
    """Turns the tokens of one answer into text as they arrive."""

    def push(self, token: Token) -> str:
        """The text that `token` completes; empty while a character is unfinished."""

    def flush(self) -> str:
        """The text that is still held back, at the end of the answer."""


class Template(Protocol):
    """A chat format with one system prompt bound to it, as segments of ids.

    A dialogue is begin + user(u1, first=True) + header + a1 + close + user(u2, first=False) + header + a2 + close …
    """

    @property
    def system(self) -> str | None:
        """The system prompt; None: the model's own."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether answers come from elsewhere, as text: then the ids are never fed to a model."""

    @property
    def begin(self) -> tuple[Token, ...]:
        """Ids before the opener of the first user turn: BOS and the system turn; may be empty."""

    @property
    def header(self) -> tuple[Token, ...]:
        """Closes the user's turn and opens the assistant's: the paper's prompt token (DUO, section 2.3).

        It may also open a thought, see `thought`.
        """

    @property
    def close(self) -> tuple[Token, ...]:
        """Closes an answer; may be empty."""

    @property
    def stop_tokens(self) -> frozenset[Token]:
        """An answer ends before one of these."""

    def with_system(self, text: str | None) -> "Template":
        """The same format with another system prompt."""

    def user(self, text: str, *, first: bool) -> tuple[Token, ...]:
        """The user's opener and `text`, without a closer. `first`: the turn directly follows `begin`."""

    def encode(self, text: str) -> tuple[Token, ...]:
        """Ids of plain text in the middle of a turn."""

    def joint(self, previous: Role | None, role: Role) -> tuple[Token, ...]:
        """Ids between a turn of `previous` (None: `begin`) and one of `role`, without the user's opener.

        Raises:
            TemplateError: a system turn is not the first one.
        """

    def opening(self, previous: Role | None) -> tuple[Token, ...]:
        """Ids that open an answer to be generated, after a turn of `previous` (None: after `begin`)."""

    @property
    def thought(self) -> ThoughtMarks | None:
        """The marks of the thought that `opening` opens, if it does."""

    @property
    def thought_marks(self) -> tuple[ThoughtMarks, ...]:
        """The marks of thoughts with which an answer may begin."""

    def end_thought(self, marks: ThoughtMarks) -> tuple[Token, ...]:
        """Ids that end a thought with these marks."""

    def lay_out(self, turns: Iterable[Turn], previous: Role | None = None) -> list[Token]:
        """Ids of `turns` after a turn of `previous` (None: after `begin`), up to the last word.

        Raises:
            TemplateError: see `joint`.
        """

    def detokenizer(self) -> Detokenizer:
        """A new detokenizer for an answer that follows `header`."""

    def word_ends(self, text: str) -> Sequence[int]:
        """Where the words of `text` end, in characters. Marks belong to a word, white space does not."""

    def is_word_end(self, text: str, position: int) -> bool:
        """Whether a word ends at `position`, which is inside `text`. A mark after a word is not part of it here."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What is fed after the words to ask for their state, and where the state is read (DUO, section 2.2).

    The paper forecasts several tokens, of which the first is the state; here one position is read, and no more drawn.

    `tokens` follow the words, the probabilities of `watch` are read at the last of them, and they are rolled back. For
    a trained adapter the probe is the token `<|prediction|>`; for a prompted model it is an instruction in plain text.
    `watch[i]` is the state token, such as `<|process|>`, that stands for `states[i]`: an added row of a trained
    adapter, or an ordinary id. `STOP` is optional: the paper's three states work, too. `timing` are two ids that say
    whether the speaker goes on, and whether the turn ends; they are read apart from the states.
    """

    tokens: tuple[Token, ...]
    watch: tuple[Token, ...]
    states: tuple[InputState, ...]
    timing: tuple[Token, ...] = ()  # goes on, ends; empty: the adapter does not say
    num_soft: int = 0  # most soft tokens, made from sound, between the words and `tokens`

    def __post_init__(self) -> None:
        require(bool(self.tokens), "a probe needs at least one token")
        require(
            len(self.watch) == len(self.states) == len(set(self.states)),
            f"a probe watches one id per state; got {len(self.watch)} ids for {self.states}",
        )
        missing = {InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE} - set(self.states)
        require(not missing, f"a probe must know process, incomplete and ignore; missing: {sorted(missing)}")
        require(len(self.timing) in (0, 2), f"a timing pair is two ids, goes on and ends; got {self.timing}")

    @property
    def length(self) -> int:
        """The most tokens that ask for a state, soft ones included."""
        return len(self.tokens) + self.num_soft

    @property
    def groups(self) -> tuple[tuple[Token, ...], ...]:
        """The ids that are watched, by the groups in which they are normalised: states, timing pair."""
        return (self.watch, self.timing) if self.timing else (self.watch,)


def lay_out(template: Template, turns: Sequence[Turn], config: SessionConfig, limit: int | None = None) -> list[Token]:
    """Ids of a context that begins with `turns`.

    Whatever is too long is refused as early as possible, because tokenising it is slow.

    Raises:
        ContextOverflow: they take more than `limit` tokens (None: `config.max_history`).
        TemplateError: the template does not allow these turns.
    """
    if len(template.begin) > config.max_length // 2:  # no compaction could ever make room
        raise ContextOverflow(
            f"the system prompt takes {len(template.begin)} tokens of a context of {config.max_length}; "
            "shorten it to half of that, or raise max_length"
        )
    config.check_size(turns)
    limit = config.max_history if limit is None else limit
    items, previous = list(template.begin), None
    for turn in turns:
        items += template.lay_out([turn], previous)
        previous = turn.role
        if len(items) > limit:
            raise ContextOverflow(
                f"system prompt and history take more than {limit} tokens; the rest of a context of "
                f"{config.max_length} is wanted for the next turn: shorten them, or raise max_length"
            )
    return items
