"""One answer: its place in its sequence, its text, and how far the user has heard it."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

from duologue.core.cache import TokenSequence
from duologue.core.events import Decision, EventLog, Finished, Heard, Said
from duologue.core.input_channel import Utterance, find_open
from duologue.core.prompt import Detokenizer
from duologue.core.transitions import Interruptible
from duologue.types import Role, Token, Turn


@final
@dataclass(slots=True, eq=False)
class Answer:
    """An answer: generating → draining (finished, not yet heard to its end) → committed, or suspended before that.

    Positions named `…_at` and `mark` count items of `sequence`; positions in the text count characters.
    """

    id: int
    sequence: TokenSequence
    detokenizer: Detokenizer
    ends_word: Callable[[str, int], bool]  # `Template.is_word_end`
    log: EventLog
    turn_at: int  # start of the user's turn, the closer before it included: the turn rolls back to it
    mark: int  # end of the user's text: the answer rolls back to it
    answer_at: int  # first token of the answer
    num_turns: int  # turns of the history before the user's turn
    user_text: str | None  # None: the assistant spoke without being asked
    utterances: Sequence[Utterance]  # of the user's turn
    is_shown: bool  # what is said is heard at once; otherwise, hearing is reported
    max_tokens: int  # when it has this many tokens, it ends with `length`
    interruptible: Interruptible = Interruptible.YES
    interrupted: int | None = None  # id of the answer that was suspended for this one
    begun_at: float = 0.0  # session time when the words of its turn last changed
    decision: Decision | None = None  # on these words
    text: str = ""
    num_said: int = 0  # characters reported in `Said` events
    num_heard: int = 0  # characters heard, rounded down to whole words
    num_reported: int = 0  # characters reported as heard, not rounded
    finished: str | None = None  # `stop` or `length`
    is_released: bool = False
    is_evicted: bool = False  # suspended without KV: its unheard tokens have to be fed again
    _ends: list[int] = field(default_factory=list)  # characters of the text after each token

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self._ends)

    @property
    def end_at(self) -> int:
        """Where the answer ends in its sequence."""
        return self.answer_at + self.num_tokens

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens whose text has not been reported as heard; 0 while there is no such text."""
        if len(self.text) <= self.num_reported:  # an unfinished word or character: only more tokens can end it
            return 0
        return self.num_tokens - bisect_right(self._ends, self.num_reported)

    @property
    def heard_at(self) -> int:
        """Where the heard part ends in the sequence."""
        return self.answer_at + bisect_right(self._ends, self.num_heard)

    @property
    def heard_text(self) -> str:
        """What the user has heard."""
        return self.text[: self.num_heard]

    @property
    def unheard_text(self) -> str:
        """What the user has not heard."""
        return self.text[self.num_heard :]

    @property
    def turns(self) -> list[Turn]:
        """What it adds to the history: the user's turn, and what was heard of the assistant's."""
        said = Turn(Role.ASSISTANT, self.heard_text)
        return [said] if self.user_text is None else [Turn(Role.USER, self.user_text), said]

    @property
    def is_heard_to_the_end(self) -> bool:
        """Whether it is finished and nothing is left to be heard."""
        return self.finished is not None and self.is_released and not self.unheard_text.strip()

    def find(self, utterance: str) -> Utterance | None:
        """The utterance of that id, if it is part of this turn and still growing."""
        return find_open(self.utterances, utterance)

    def push(self, token: Token) -> None:
        """Add the next token, which its caller appends to the sequence."""
        before = len(self.text)
        self.text += self.detokenizer.push(token)
        # Without new text the token is part of a character to come: it ends where that character will.
        end = max(len(self.text), before + 1)
        unfinished = bisect_right(self._ends, before)
        self._ends[unfinished:] = [end] * (len(self._ends) - unfinished + 1)
        if self.num_tokens >= self.max_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """End the answer: no more tokens will come."""
        if self.finished is None:
            self.finished = reason
            self.text += self.detokenizer.flush()
            if self._ends:
                self._ends[-1] = len(self.text)
            self.log.add(Finished(self.log.now, self.id, reason))

    def say(self) -> None:
        """Tell the new text."""
        start, self.num_said = self.num_said, len(self.text)
        if start < self.num_said:
            self.log.add(Said(self.log.now, self.id, start, self.text[start:]))
        if self.is_shown:
            self.num_reported = self.num_said

    def hear(self, position: int) -> None:
        """Record that the user has heard up to `position`, rounded down to a whole word."""
        self.num_reported = max(self.num_reported, position)
        position = min(position, self.num_said)
        if self.finished is not None and not self.text[position:].strip():
            end = len(self.text)
        else:
            count = bisect_right(self._ends, position)
            while count and not self._is_word_end(self._ends[count - 1]):
                count -= 1
            end = self._ends[count - 1] if count else 0
        if end > self.num_heard:
            self.num_heard = end
            self.log.add(Heard(self.log.now, self.id, end))

    def _is_word_end(self, position: int) -> bool:
        if position >= len(self.text):
            return self.finished is not None
        return self.ends_word(self.text, position)
