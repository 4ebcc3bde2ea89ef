"""Time-division multiplexing, as in MiniCPM-Duplex: one channel, in which slices of both sides alternate.

In each period, the new words are fed as a user's turn (`<idle>` if there are none), and the model says a few tokens or
draws `<idle>`. Nothing is ever rolled back: words that were not meant for the assistant stay, and so does text that was
said but not heard.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import final

from duologue.core.answer import Answer
from duologue.core.backend import Draw, Step, uniform
from duologue.core.base_session import BaseSession
from duologue.core.cache import Plan
from duologue.core.config import SessionConfig
from duologue.core.events import (
    Committed,
    Decided,
    Decision,
    Dropped,
    Edited,
    Event,
    Held,
    Promoted,
    Received,
    Refused,
    Released,
    Suspended,
    Trimmed,
)
from duologue.core.input_channel import Memory, Utterance, find_open, join_words
from duologue.core.policy import Policy
from duologue.core.prompt import Probe, Template, lay_out
from duologue.errors import require
from duologue.types import SLICE_PERIOD_S, InputState, Role, Seq, Token, Turn

SLICE_TOKENS = 10
"""Most tokens of the assistant in a slice, as in the training data of MiniCPM-Duplex."""

PROMPT = (
    "You hear the user in slices of a few words, and <idle> where nothing was said. If the user has not finished, or "
    "does not talk to you, answer with <idle> and nothing else. Otherwise answer, a few words in each turn; where you "
    "left off, go on in the next. When your answer is complete, answer with <idle>."
)
"""A system prompt for a model that was not trained for time division (decider "prompted")."""


def slice_input(
    template: Template, words: str, idle: Sequence[Token], *, is_first: bool
) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
    """The ids that a pair begins with: what closes the pair before it, and the user's turn, up to the header.

    `is_first` if the pair directly follows the beginning of the template. No `words`: the user's turn is `idle`.
    """
    opening = () if is_first else template.joint(Role.ASSISTANT, Role.USER)
    return opening, (*template.user(words, first=is_first), *(() if words else idle), *template.header)


@dataclass(slots=True)
class _Slice:
    """The current pair of turns: what the user said in a period, and what the assistant says in it."""

    at: int  # where it begins in the channel
    output_at: int  # where the assistant's tokens begin
    words: str
    utterance: str  # id of the newest utterance in it
    heard_at: float  # session time when its words were received
    state: InputState | None = None  # of its words, if `judge` decides
    speaks: bool | None = None  # whether the assistant speaks; None until that is known
    is_read: bool = False  # whether the words have been fed
    tokens: list[Token] = field(default_factory=list)


@final
class Tdm(BaseSession):
    """One conversation in one channel. Takes the arguments of `Session` (the probe is not used) and:

    Args:
        judge: decides for the model, from the text of an utterance so far. Without it the model decides, by drawing
            `idle` or not.
        idle: ids of `<idle>`; a model that was trained for it has one id. By default, those of the characters.
        skip_idle: remove pairs in which neither side said anything, as the released server does.
        period_s: seconds of a slice.
        slice_tokens: most tokens that the assistant says in a slice.
        trained: whether the model was trained for time division; only says what decides.
    """

    def __init__(
        self,
        template: Template,
        probe: Probe,
        *,
        policy: Policy | None = None,
        config: SessionConfig | None = None,
        history: Sequence[Turn] = (),
        judge: Callable[[str], InputState] | None = None,
        idle: tuple[Token, ...] = (),
        skip_idle: bool = False,
        period_s: float = SLICE_PERIOD_S,
        slice_tokens: int = SLICE_TOKENS,
        trained: bool = False,
    ) -> None:
        require(
            period_s > 0 and slice_tokens >= 1,
            f"slices of {period_s} s with {slice_tokens} tokens are not possible; both must be positive",
        )
        super().__init__(template, probe, config)
        self.decider = "forced" if judge is not None else "trained" if trained else "prompted"
        self._judge = judge
        self._idle = idle or template.encode("<idle>")
        self._skip_idle = skip_idle
        self._period_s = period_s
        self._slice_tokens = slice_tokens
        self._memory = Memory(template.word_ends)
        self._changed_at = 0.0
        self._next_at = 0.0
        self._num_answers = 0
        self._start(history, self._lay_out(history))

    def _lay_out(self, turns: Sequence[Turn]) -> list[Token]:
        return lay_out(self.template, turns, self.config, self.config.max_length // 2)

    def _start(self, history: Sequence[Turn], items: Sequence[Token]) -> None:
        """Begin with `history`, whose ids are `items`."""
        self._channel = self._cache.open(items)
        self._history = list(history)
        self._waiting: list[Utterance] = []  # whose words came after the last slice began
        self._turn: list[str] = []  # words of the user since the last answer began
        self._starts: list[int] = []  # where slices begin in the channel
        self._slice: _Slice | None = None
        self._answer: Answer | None = None

    # ------------------------------------------------------------------ what can be seen

    @property
    def _is_listening(self) -> bool:
        return self._slice is not None and bool(self._slice.words) and not self._slice.is_read

    @property
    def history(self) -> list[Turn]:
        answer = self._answer
        return self._history + (answer.turns if answer is not None and answer.num_heard else [])

    @property
    def running(self) -> Answer | None:
        """The running answer: consecutive slices in which the assistant speaks. Its positions have no meaning."""
        return self._answer

    @property
    def num_answers(self) -> int:
        return self._num_answers

    @property
    def input_text(self) -> str | None:
        """Words of the user that were not answered yet."""
        piece = [self._slice.words] if self._slice and not self._slice.is_read else []
        return " ".join(filter(None, [*self._turn, *piece, *(one.words for one in self._waiting)])) or None

    @property
    def expected(self) -> tuple[str | None, int] | None:
        """Where the next token belongs: the user's turn that is answered, and the tokens of the answer so far.

        None if the assistant says nothing. For oracle scripts; only known if `judge` decides.
        """
        piece, answer = self._slice, self._answer
        if piece is None or not piece.speaks:
            return None
        if not piece.is_read and piece.state is InputState.PROCESS:
            return " ".join([*self._turn, piece.words]), 0
        return None if answer is None else (answer.user_text, answer.num_tokens)

    @property
    def backlog(self) -> int:
        """Tokens that wait to be fed, without those in flight."""
        return self._channel.num_waiting if self._slice is not None else 0

    @property
    def next_deadline(self) -> float | None:
        """When the next slice begins; None during a slice."""
        return self._next_at if self._slice is None else None

    # ------------------------------------------------------------------ what it can be told

    def _act_on_time(self) -> None:
        """A slice begins, if a period is over."""
        self._open_slice()

    def _hear(self, utterance: str, text: str, *, final: bool) -> None:
        """The new words go into the next slice."""
        known = find_open(self._waiting, utterance)
        if known is None:
            known = Utterance(utterance)
            self._waiting.append(known)
        known.text, known.final = text, final
        known.skip = self._memory.num_answered(utterance, text)
        if final:
            self._memory.end(utterance)
        self._changed_at = self.now
        self._log.add(Received(self.now, utterance, text, final))

    def _may_take_back(self, utterance: str) -> bool:
        return find_open(self._waiting, utterance) is not None

    def _refuse(self, utterance: str, excerpt: str, reason: str, *, final: bool) -> None:
        self._log.add(Dropped(self.now, utterance, excerpt, reason))
        known = find_open(self._waiting, utterance)
        if known is not None:
            self._waiting.remove(known)
        if final:
            self._memory.end(utterance)

    def respond(self) -> list[Event]:
        """Begin the next slice as soon as this one has ended."""
        self._next_at = self.now
        self._open_slice()
        return self._settle()

    def stop(self) -> list[Event]:
        """End the assistant's speech; its tokens stay in the channel."""
        if self._answer is None:
            self._log.add(Refused(self.now, "stop", "no answer is running"))
        else:
            self._cut(self._answer)
            self._slice = None
        return self._settle()

    def resume(self) -> list[Event]:
        """Refused: a single channel keeps no cut answer."""
        self._log.add(Refused(self.now, "resume", "with time division, an answer that was cut is not kept"))
        return self._settle()

    def edit(self, history: Sequence[Turn]) -> list[Event]:
        """Replace the history.

        Raises:
            ContextOverflow, TemplateError: see `Session.edit`.
        """
        items = self._lay_out(history)
        self._cache.free(self._channel)
        self._start(history, items)
        self._log.add(Edited(self.now, tuple(history)))
        return self._settle()

    # ------------------------------------------------------------------ plan and take

    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan:
        """What to run next: one pass over the channel, of at most `limit` tokens."""
        channel, piece = self._channel, self._slice
        self._cache.room = limit
        self._cache.roll_back(channel)
        size = self._cache.portion(channel)
        if channel.fed is None and piece is not None and size:
            index = len(piece.tokens)
            draw = Draw(self.config.sampling, uniform(self.config.seed, len(self._starts), index))
            is_all = size == channel.num_pending
            self._cache.feed(channel, size, draw=draw if is_all else None, owner=piece, version=index)
        return self._cache.flush()

    def take(self, steps: Sequence[Step]) -> list[Event]:
        """The results of a pass."""
        for step in steps:
            work = self._cache.land(step.ticket)
            piece = self._slice
            if work is not None and piece is not None and work.owner is piece:
                for token in step.tokens[: self._slice_tokens - len(piece.tokens)]:
                    self._drew(piece, token)
        self._open_slice()
        return self._settle()

    def make_room(self, full: Collection[Seq] | None = None) -> bool:
        """The cache is full: leave out the older half of the slices. Returns whether there were any."""
        return self._trim(len(self._channel.items) // 2)

    def _free(self) -> None:
        self._cache.free(self._channel)

    # ------------------------------------------------------------------ slices

    def _open_slice(self) -> None:
        """Begin a slice, if it is time and the last one has ended."""
        if self._slice is not None or self.now < self._next_at:
            return
        following = self._next_at + self._period_s  # if whole periods were missed, they are not made up for
        self._next_at = following if following > self.now else self.now + self._period_s
        words = self._take_words()
        is_first = len(self._channel.items) == len(self.template.begin)
        opening, heard = slice_input(self.template, words, self._idle, is_first=is_first)
        ids = (*opening, *heard)
        needed = len(ids) + max(self._slice_tokens, len(self._idle))
        if len(self._channel.items) + needed > self.config.max_length:
            self._trim(self.config.max_length // 2)
        at = len(self._channel.items)
        self._channel.items.extend(ids)
        self._starts.append(at + len(opening))
        newest = self._waiting[-1] if self._waiting else Utterance("")
        self._slice = _Slice(at, len(self._channel.items), words, newest.id, self._changed_at)
        self._memory.answer(self._waiting)  # they are in the channel now
        self._waiting = []
        if self._judge is not None:
            state = self._slice.state = self._judge(newest.text) if words else None
            is_going_on = self._answer is not None and not self._answer.finished
            self._slice.speaks = state is InputState.PROCESS or (state is not InputState.STOP and is_going_on)

    def _take_words(self) -> str:
        """The words of the next slice; none if they are too many."""
        words = join_words(self._waiting)
        limit = self.config.max_user_text
        if len(words) > self.config.max_user_characters or len(self.template.encode(words)) > limit:
            reason = f"a slice of more than {limit} tokens; say it in parts"
            self._log.add(Refused(self.now, self._waiting[-1].id, reason))
            return ""
        return words

    def _drew(self, piece: _Slice, token: Token) -> None:
        """Process `token`, which the model drew or was forced to draw."""
        has_ended = token in self.template.stop_tokens
        if not has_ended:
            piece.tokens.append(token)
        if piece.speaks is None:
            begun = tuple(piece.tokens)
            if not has_ended and begun != self._idle and begun == self._idle[: len(begun)]:
                self._channel.replace_tail(piece.output_at, begun)
                return  # possibly the beginning of <idle>
            piece.speaks = begun != self._idle
        piece.speaks = piece.speaks and bool(piece.tokens)  # ending at once means saying nothing
        if not piece.is_read:
            piece.is_read = True
            self._decide(piece, has_ended=has_ended)
            fresh = list(piece.tokens)
        else:
            fresh = [] if has_ended else [token]
        if not piece.speaks:
            piece.tokens = [*self._idle]
        self._channel.replace_tail(piece.output_at, piece.tokens)
        answer = self._answer
        if piece.speaks and answer is not None:
            self._go_on(answer, fresh, has_ended=has_ended)
            has_ended = answer.finished is not None
        if has_ended or not piece.speaks or len(piece.tokens) >= self._slice_tokens:
            self._slice = None
            if self._skip_idle and not piece.speaks and not piece.words:
                self._channel.shorten(piece.at)
                self._starts.pop()

    def _decide(self, piece: _Slice, *, has_ended: bool) -> None:
        """The first token of a slice decides about the user's words and a running answer."""
        answer = self._answer
        if not piece.words:
            if piece.speaks and answer is None:
                self._begin(None)
            elif not piece.speaks and answer is not None:
                self._finish(answer)
            return
        state = piece.state or (InputState.PROCESS if piece.speaks else InputState.INCOMPLETE)
        decision = Decision(state, 1.0, ((state, 1.0),))
        self._log.add(Decided(self.now, piece.utterance, piece.words, decision, answer is not None, piece.heard_at))
        if answer is not None and has_ended and state in (InputState.IGNORE, InputState.INCOMPLETE):
            self._finish(answer)
        elif answer is not None and (state is InputState.PROCESS or not piece.speaks):
            self._cut(answer)
        if state in (InputState.PROCESS, InputState.INCOMPLETE):
            self._turn.append(piece.words)
        if state is InputState.PROCESS:
            text, self._turn = " ".join(self._turn), []
            begun = self._begin(text)
            self._log.add(Promoted(self.now, piece.utterance, text, begun.id))
            self._log.add(Released(self.now, begun.id))
        elif state is InputState.INCOMPLETE:
            self._log.add(Held(self.now, piece.utterance, deferred=False))
        else:
            self._turn = []
            self._log.add(Dropped(self.now, piece.utterance, piece.words, state.value))

    # ------------------------------------------------------------------ answering

    def _begin(self, user_text: str | None) -> Answer:
        place = len(self._channel.items)
        self._answer = Answer(
            self._num_answers,
            self._channel,
            self.template.detokenizer(),
            self.template.is_word_end,
            self._log,
            turn_at=place,
            mark=place,
            answer_at=place,
            num_turns=len(self._history),
            user_text=user_text,
            utterances=(),
            is_shown=self.config.heard == "shown",
            max_tokens=self.config.max_answer,
            is_released=True,
        )
        self._num_answers += 1
        return self._answer

    def _go_on(self, answer: Answer, tokens: Sequence[Token], *, has_ended: bool) -> None:
        for token in tokens:
            if not answer.finished:
                answer.push(token)
        answer.say()
        if answer.is_shown:
            self._heard(answer, answer.num_reported)
        if answer.finished or has_ended:
            self._finish(answer)

    def _finish(self, answer: Answer) -> None:
        answer.finish("stop")
        answer.say()
        self._heard(answer, answer.num_reported)

    def _heard(self, answer: Answer, position: int) -> None:
        """The position is noted; the channel does not change."""
        answer.hear(position)
        if answer.is_heard_to_the_end and self._answer is answer:
            self._log.add(Committed(self.now, answer.id, answer.text))
            self._close(answer)

    def _cut(self, answer: Answer) -> None:
        self._log.add(Suspended(self.now, answer.id, answer.heard_text, answer.unheard_text))
        self._close(answer)

    def _close(self, answer: Answer) -> None:
        self._history += answer.turns
        self._answer = None

    # ------------------------------------------------------------------ long conversations

    def _trim(self, budget: int) -> bool:
        """Feed the newest slices that fit into `budget` tokens again. Returns whether any are left out."""
        starts, items, begin, piece = self._starts, self._channel.items, len(self.template.begin), self._slice
        kept = next((i for i, at in enumerate(starts) if begin + len(items) - at <= budget), len(starts))
        if piece is not None:
            kept = min(kept, len(starts) - 1)
        if not kept:
            return False
        old, at = self._channel, starts[kept] if kept < len(starts) else len(items)
        self._channel = self._cache.open([*self.template.begin, *items[at:]])
        self._cache.free(old)
        self._starts = [start - at + begin for start in starts[kept:]]
        if piece is not None:
            piece.at = max(piece.at - at + begin, begin)
            piece.output_at += begin - at
        self._log.add(Trimmed(self.now, 2 * kept, len(self._channel.items)))
        return True
