"""One answer: its place in its channel, its text, and the ledger of what the user has heard of it."""

from bisect import bisect_right
from collections.abc import Sequence

from duologue.core.cache import TokenSequence
from duologue.core.transitions import Interruptible
from duologue.text.detokenizer import Detokenizer
from duologue.types import Role, Token, Turn

_CJK = 0x2E80  # from here on scripts are written without spaces: every character is a word


class Utterance:
    """One utterance as it stands. `skip` characters of its text belong to an earlier turn and are not counted again."""

    __slots__ = ("final", "id", "skip", "text")

    def __init__(self, name: str, text: str = "", *, final: bool = False, skip: int = 0) -> None:
        self.id = name
        self.text = text
        self.final = final
        self.skip = skip

    @property
    def words(self) -> str:
        """The part of the text that belongs to the turn in hand."""
        return self.text[self.skip :].strip()


class Answer:
    """generating → draining (finished, not yet heard to the end) → committed; or suspended on the way.

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
        max_tokens: int = 1 << 30,
    ) -> None:
        self.id = number
        self.sequence = sequence
        self.turn_at = turn_at  # where the user's turn begins, with the closer of what was before: rollback of the turn
        self.mark = mark  # end of the user's text: rollback of the answer
        self.answer_at = len(sequence.items)  # first token of the answer
        self.num_turns = num_turns  # turns of the history before the user's turn
        self.user_text = user_text  # None: the assistant spoke without being asked
        self.utterances = list(utterances)
        self.interruptible = interruptible
        self.begun_at = begun_at  # session time at which the words of its turn last changed
        self.max_tokens = max_tokens  # it ends with `length` at so many
        self.interrupted: Answer | None = None  # the answer that was suspended for this one
        self.text = ""
        self.num_said = 0  # characters released to the outside
        self.num_heard = 0  # characters heard, whole words
        self.num_reported = 0  # characters that were reported as heard, as they came
        self.finished: str | None = None
        self.is_released = False
        self.is_evicted = False  # suspended, and its KV was given up: what was not heard has to be fed again
        self._detokenizer = detokenizer
        self._ends: list[int] = []  # characters of text after each token

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self._ends)

    @property
    def end_at(self) -> int:
        """Where the answer ends in its channel."""
        return self.answer_at + self.num_tokens

    @property
    def heard_tokens(self) -> int:
        """Number of tokens that have been heard."""
        return bisect_right(self._ends, self.num_heard)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens whose text has not been reported as heard; none while there is no such text."""
        if len(self.text) <= self.num_reported:  # a long word, or bytes of a character to come: only more will end it
            return 0
        return self.num_tokens - bisect_right(self._ends, self.num_reported)

    @property
    def heard_at(self) -> int:
        """Where what has been heard ends in the channel."""
        return self.answer_at + self.heard_tokens

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
        """Whether it is finished, and nothing of it is left to be heard."""
        return self.finished is not None and self.is_released and not self.unheard_text.strip()

    def find(self, utterance: str) -> Utterance | None:
        """The utterance of that id, if it is part of this turn and still growing."""
        return next((u for u in self.utterances if u.id == utterance and not u.final), None)

    def rewind(self) -> None:
        """It goes on after it was cut: what was not heard will be said again."""
        self.is_released = True
        self.num_said = self.num_reported = self.num_heard

    def push(self, token: Token) -> None:
        """The next token; it is already an item of the channel, or about to be."""
        before = len(self.text)
        self.text += self._detokenizer.push(token)
        # Without new text the token is part of a character to come: it ends where that character will.
        self._ends.append(max(len(self.text), before + 1))
        for i in range(len(self._ends) - 1, -1, -1):
            if self._ends[i] <= before:
                break
            self._ends[i] = self._ends[-1]

    def finish(self, reason: str) -> None:
        """No more tokens will come."""
        if self.finished is None:
            self.finished = reason
            self.text += self._detokenizer.flush()
            if self._ends:
                self._ends[-1] = len(self.text)

    def hear(self, position: int) -> bool:
        """The user has heard up to `position`, which is rounded down to a whole word. Returns whether it moved."""
        position = min(position, self.num_said)
        if self.finished is not None and not self.text[position:].strip():
            self.num_heard, moved = len(self.text), self.num_heard < len(self.text)
            return moved
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
