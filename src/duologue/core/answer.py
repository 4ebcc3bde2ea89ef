"""One answer: its place in its sequence, its text, and how far the user has heard it."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import final

from duologue.core.cache import TokenSequence
from duologue.core.input_channel import Utterance, find_open
from duologue.core.prompt import Detokenizer
from duologue.core.transitions import Interruptible
from duologue.types import Role, Token, Turn

_CJK = 0x2E80  # from here on, scripts are written without spaces: every character counts as a word


@final
class Answer:
    """An answer: generating → draining (finished, not yet heard to its end) → committed, or suspended before that.

    Positions named `…_at` and `mark` count items of `sequence`; positions in the text count characters.
    """

    def __init__(
        self,
        number: int,
        sequence: TokenSequence,
        detokenizer: Detokenizer,
        *,
        turn_at: int,
        mark: int,
        num_turns: int,
        user_text: str | None,
        utterances: Sequence[Utterance],
        interruptible: Interruptible,
        begun_at: float,
        interrupted: int | None = None,
        max_tokens: int = 1 << 30,
    ) -> None:
        self.id = number
        self.sequence = sequence
        self.turn_at = turn_at  # start of the user's turn, the closer before it included: the turn rolls back to it
        self.mark = mark  # end of the user's text: the answer rolls back to it
        self.answer_at = len(sequence.items)  # first token of the answer
        self.num_turns = num_turns  # turns of the history before the user's turn
        self.user_text = user_text  # None: the assistant spoke without being asked
        self.utterances = list(utterances)  # of the user's turn
        self.interruptible = interruptible
        self.begun_at = begun_at  # session time when the words of its turn last changed
        self.interrupted = interrupted  # id of the answer that was suspended for this one
        self.max_tokens = max_tokens  # when it has this many tokens, it ends with `length`
        self.text = ""
        self.num_said = 0  # characters reported in `Said` events
        self.num_heard = 0  # characters heard, rounded down to whole words
        self.num_reported = 0  # characters reported as heard, not rounded
        self.finished: str | None = None  # `stop` or `length`
        self.is_released = False
        self.is_evicted = False  # suspended without KV: its unheard tokens have to be fed again
        self._detokenizer = detokenizer
        self._ends: list[int] = []  # characters of the text after each token

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

    def rewind(self) -> None:
        """Prepare to resume after a cut: what was not heard is said again."""
        self.is_released = True
        self.num_said = self.num_reported = self.num_heard

    def push(self, token: Token) -> None:
        """Add the next token, which its caller appends to the sequence."""
        before = len(self.text)
        self.text += self._detokenizer.push(token)
        # Without new text the token is part of a character to come: it ends where that character will.
        self._ends.append(max(len(self.text), before + 1))
        for i in range(len(self._ends) - 1, -1, -1):
            if self._ends[i] <= before:
                break
            self._ends[i] = self._ends[-1]

    def finish(self, reason: str) -> None:
        """End the answer: no more tokens will come."""
        if self.finished is None:
            self.finished = reason
            self.text += self._detokenizer.flush()
            if self._ends:
                self._ends[-1] = len(self.text)

    def hear(self, position: int) -> bool:
        """Record that the user has heard up to `position`, rounded down to a whole word. Returns whether it is new."""
        self.num_reported = max(self.num_reported, position)
        position = min(position, self.num_said)
        if self.finished is not None and not self.text[position:].strip():
            has_moved, self.num_heard = self.num_heard < len(self.text), len(self.text)
            return has_moved
        count = bisect_right(self._ends, position)
        while count and not self._is_word_end(self._ends[count - 1]):
            count -= 1
        end = self._ends[count - 1] if count else 0
        if end <= self.num_heard:
            return False
        self.num_heard = end
        return True

    def _is_word_end(self, position: int) -> bool:
        if position >= len(self.text):
            return self.finished is not None
        before, after = self.text[position - 1], self.text[position]
        if before.isspace():
            return False
        if ord(before) >= _CJK or ord(after) >= _CJK:
            return True
        return not (_is_letter(before) and _is_letter(after))


def _is_letter(character: str) -> bool:
    return character.isalnum() or character in "'’_"
