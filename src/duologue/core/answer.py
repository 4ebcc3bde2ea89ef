"""One answer: its place in its sequence, its text, how far the user has heard it, and the thoughts before it."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias, final

from duologue.core.cache import TokenSequence
from duologue.core.events import Decision, EventLog, Finished, Heard, Said, Thought
from duologue.core.input_channel import Utterance, find_open
from duologue.core.prompt import Detokenizer
from duologue.core.transitions import Interruptible
from duologue.types import Role, ThoughtMarks, Token, Turn

LogP: TypeAlias = tuple[tuple[Token, float], ...]
"""See `Step.log_p`."""


class Stage(Enum):
    """Where the text of an answer is."""

    BEGINNING = "it may still turn out to be a thought"
    THOUGHT = "it is a thought"
    ANSWER = "it is the answer"


@final
class Thinking:
    """Separates the thoughts at the beginning of an answer from the answer itself, as text arrives."""

    def __init__(self, known: Sequence[ThoughtMarks], opened: ThoughtMarks | None) -> None:
        """`opened`: the prompt has opened a thought. Otherwise the text may begin with one of the `known` openers."""
        self.stage = Stage.BEGINNING if opened is None else Stage.THOUGHT
        self.marks = opened  # of the open or newest thought; None: there has been none
        self.text = ""  # of all thoughts so far
        self.was_ended = False  # a thought was ended from outside
        self._known = known
        self._waiting = ""  # may be the beginning of an opener or of a closer

    @property
    def is_open(self) -> bool:
        """Whether a thought is open."""
        return self.stage is Stage.THOUGHT

    @property
    def has_begun(self) -> bool:
        """Whether the answer itself has begun."""
        return self.stage is Stage.ANSWER

    def push(self, delta: str) -> str:
        """Add text. Returns the part of it that belongs to the answer, which has begun if that is not empty.

        What is returned at the beginning also has what was held back before.
        """
        self._waiting += delta
        self._read()
        return self._take() if self.has_begun else ""

    def flush(self) -> str:
        """The text that is held back, at the end, as far as it belongs to the answer."""
        rest = self._take()
        if self.is_open:
            self.text += rest
        return "" if self.marks is not None and not self.has_begun else rest

    def close(self) -> None:
        """End the open thought here."""
        self.was_ended = True
        if self.is_open:
            self.text += self._take()
            self.stage = Stage.BEGINNING

    def _read(self) -> None:
        """Find out what the text that waits is."""
        if self.stage is Stage.BEGINNING:
            self._look_for_opener()
        while self.is_open and self._look_for_closer():
            self._look_for_opener()  # some models think twice

    def _look_for_opener(self) -> None:
        text = self._waiting.lstrip()
        for marks in self._known:
            if text.startswith(marks.opener):
                self.stage, self.marks = Stage.THOUGHT, marks
                self._waiting = text.removeprefix(marks.opener)
                return
        if not text or any(marks.opener.startswith(text) for marks in self._known):
            self.stage = Stage.BEGINNING
            return
        self.stage = Stage.ANSWER
        if self.marks is not None:
            self._waiting = text  # the blanks belong to the thought before

    def _look_for_closer(self) -> bool:
        """Move the thought's text out of what waits. Returns whether it has ended."""
        assert self.marks is not None, "a thought has marks"
        closer = self.marks.closer
        thought, found, rest = self._waiting.partition(closer)
        if not found:
            held = next((n for n in range(len(closer) - 1, 0, -1) if thought.endswith(closer[:n])), 0)
            thought, rest = thought[: len(thought) - held], thought[len(thought) - held :]
        self.text += thought
        self._waiting = rest
        return bool(found)

    def _take(self) -> str:
        taken, self._waiting = self._waiting, ""
        return taken


@final
@dataclass(slots=True, eq=False)
class Answer:
    """An answer: generating → draining (finished, not yet heard to its end) → committed, or suspended before that.

    A reasoning model may think first. Those tokens are between `thought_at` and `answer_at`, and not part of the text.
    Positions named `…_at` and `mark` count items of `sequence`; positions in the text count characters.
    """

    id: int
    sequence: TokenSequence
    detokenizer: Detokenizer
    ends_word: Callable[[str, int], bool]  # `Template.is_word_end`
    log: EventLog
    turn_at: int  # start of the user's turn, the closer before it included: the turn rolls back to it
    mark: int  # end of the user's text: the answer rolls back to it
    answer_at: int  # first token of the answer; while it is thought about, the next one
    num_turns: int  # turns of the history before the user's turn
    user_text: str | None  # None: the assistant spoke without being asked
    utterances: Sequence[Utterance]  # of the user's turn
    is_shown: bool  # what is said is heard at once; otherwise, hearing is reported
    max_tokens: int  # when it has this many tokens, it ends with `length`
    thinking: Thinking = field(default_factory=lambda: Thinking((), None))
    max_thought: int = 0  # tokens of thoughts after which they are ended
    interruptible: Interruptible = Interruptible.YES
    interrupted: int | None = None  # id of the answer that was suspended for this one
    begun_at: float = 0.0  # session time when the words of its turn last changed
    decision: Decision | None = None  # on these words
    text: str = ""
    num_made: int = 0  # tokens so far, those of thoughts included
    num_said: int = 0  # characters reported in `Said` events
    num_heard: int = 0  # characters heard, rounded down to whole words
    num_reported: int = 0  # characters reported as heard, not rounded
    finished: str | None = None  # `stop` or `length`
    is_released: bool = False
    is_evicted: bool = False  # suspended without KV: its unheard tokens have to be fed again
    log_p: list[LogP] = field(default_factory=list)  # of its tokens, if the session keeps them
    thought_at: int = field(init=False)  # first token after the header
    _ends: list[int] = field(default_factory=list)  # characters of the text after each token

    def __post_init__(self) -> None:
        self.thought_at = self.answer_at

    @property
    def is_thinking(self) -> bool:
        """Whether its next tokens belong to a thought."""
        return self.thinking.is_open

    @property
    def has_thought_enough(self) -> bool:
        """Whether the thought must end."""
        return self.is_thinking and self.answer_at - self.thought_at >= self.max_thought

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self._ends)

    def num_tokens_until(self, position: int) -> int:
        """Tokens whose text ends at or before character `position`."""
        return bisect_right(self._ends, position)

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

    def push(self, token: Token, log_p: LogP = ()) -> None:
        """Add the next token, which its caller has appended to the sequence."""
        self.num_made += 1
        before, thinking = len(self.text), self.thinking
        told = len(thinking.text)
        self.text += thinking.push(self.detokenizer.push(token))
        if len(thinking.text) > told:
            self.log.add(Thought(self.log.now, self.id, told, thinking.text[told:]))
        if thinking.marks is not None and not thinking.has_begun:
            self.begin_here()
            return
        if log_p:
            self.log_p.append(log_p)
        # Without new text the token is part of a character to come: it ends where that character will.
        end = max(len(self.text), before + 1)
        unfinished = bisect_right(self._ends, before)
        self._ends[unfinished:] = [end] * (len(self._ends) - unfinished + 1)
        if self.num_tokens >= self.max_tokens:
            self.finish("length")

    def begin_here(self) -> None:
        """Leave out all tokens so far: they are a thought."""
        self.answer_at = len(self.sequence.items)
        self._ends.clear()
        self.log_p.clear()

    def finish(self, reason: str) -> None:
        """End the answer: no more tokens will come."""
        if self.finished is None:
            self.finished = reason
            self.text += self.thinking.push(self.detokenizer.flush()) + self.thinking.flush()
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
