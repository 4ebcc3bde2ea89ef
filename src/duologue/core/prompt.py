"""The question that is put to the model after the words it has heard."""

from dataclasses import dataclass

from duologue.errors import UsageError
from duologue.types import InputState, Token


@dataclass(frozen=True, slots=True)
class Probe:
    """What is fed after the words, and where the answer is read (DUO, section 2.2).

    `tokens` are appended, the probabilities of `watch` are read at the last of them, and they are rolled back again.
    For the `rows` adapter it is the one token `<|prediction|>`; for a prompted model it is an instruction in words.
    `watch[i]` is the id that stands for `states[i]`. A set without `STOP`, as the paper's, works too.
    """

    tokens: tuple[Token, ...]
    watch: tuple[Token, ...]
    states: tuple[InputState, ...]

    def __post_init__(self) -> None:
        if not self.tokens:
            raise UsageError("a probe needs at least one token")
        if len(self.watch) != len(self.states) or len(set(self.states)) != len(self.states):
            raise UsageError(f"a probe watches one id per state; got {len(self.watch)} ids for {self.states}")
        missing = {InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE} - set(self.states)
        if missing:
            raise UsageError(f"a probe must know process, incomplete and ignore; missing: {sorted(missing)}")
