"""One conversation as a pure state machine: it is told what was heard, and says what to run and what happened.

    hear · heard · advance · respond · stop · resume · edit ─▶ Session ─▶ plan ─▶ (a forward pass) ─▶ take ─▶ events

The live branch is `_trunk`: everything committed, and behind it the running answer. An `Input` forks from what the user
has heard of it. Commands change only what is wanted; what that means for the KV cache is worked out in `plan`, where
every piece of work gets a ticket, and a result whose ticket is no longer wanted is discarded (design rule 9).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from duologue.core import layout
from duologue.core.answer import Answer
from duologue.core.backend import Draw, Extend, Sampling, Step
from duologue.core.chance import uniform
from duologue.core.events import (
    Committed,
    Decided,
    Dropped,
    Edited,
    Event,
    Finished,
    Heard,
    Held,
    Promoted,
    Received,
    Refused,
    Released,
    Resumed,
    Said,
    Suspended,
    TakenBack,
    Trimmed,
    Withdrawn,
)
from duologue.core.input import Input
from duologue.core.memory import Memory
from duologue.core.plan import Plan
from duologue.core.planner import Planner
from duologue.core.policy import Policy
from duologue.core.probe import Probe
from duologue.core.rebuild import Rebuild
from duologue.core.transitions import Floor, Interruptible, Transition, transition
from duologue.core.utterance import Utterance
from duologue.errors import ContextOverflow, TemplateError, UsageError
from duologue.template import Template
from duologue.tokenizer import well_formed
from duologue.types import InputState, Role, Token, Turn

MAX_SUSPENDED = 2  # answers that can be resumed; older ones are released


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Limits and chance of one session. Lengths are in tokens."""

    max_length: int = 4096  # of the live branch; the backend's capacity should be about twice that
    max_answer: int = 1024
    chunk: int = 256  # most tokens of one channel in a pass, so that a long text cannot stall the answer
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    seed: int = 0
    heard: Literal["shown", "reported"] = "shown"  # what `Said` tells is heard at once, or when `heard` is called

    def __post_init__(self) -> None:
        if self.max_length < 64 or self.max_answer < 1 or self.chunk < 1:
            raise UsageError("max_length must be at least 64, max_answer and chunk at least 1")

    @property
    def max_user_text(self) -> int:
        """Tokens that the user's turn may have."""
        return self.max_length // 4

    @property
    def min_room(self) -> int:
        """Tokens that must be left for an answer when it begins."""
        return self.max_length // 8


class Phase(StrEnum):
    """What is going on, for the accounts of `trace`."""

    SILENCE = "silence"
    LISTENING = "listening"
    SPEAKING = "speaking"
    OVERLAP = "overlap"


class Session:
    """One conversation: the live branch, one input, one answer, and the answers that were cut."""

    def __init__(
        self,
        template: Template,
        probe: Probe,
        *,
        policy: Policy | None = None,
        config: SessionConfig | None = None,
        history: Sequence[Turn] = (),
    ) -> None:
        """Start a conversation, with `history` if it is taken up.

        Raises:
            ContextOverflow: the system prompt or the history leaves too little room.
            TemplateError: the model's template does not allow these turns.
        """
        self.template = template
        self.probe = probe
        self.policy = policy or Policy()
        self.config = config or SessionConfig()
        self.now = 0.0
        self._interruptible = self.policy.interruptible
        self._num_answers = 0
        self._cache = Planner()
        self._events: list[Event] = []
        self._history: list[Turn] = []
        self._was_cut = False  # whether the last turn of the history was
        self._input: Input | None = None
        self._answer: Answer | None = None
        self._suspended: list[Answer] = []
        self._rebuild: Rebuild | None = None
        self._memory = Memory()
        self._trunk = self._cache.open(self._lay_out(history))
        self._history.extend(history)
        self._apply: dict[Transition, Callable[[Input], None]] = {
            Transition.HOLD: self._hold,
            Transition.DROP: self._drop_unwanted,
            Transition.PROMOTE: self._promote,
            Transition.INTERRUPT: self._promote,
            Transition.HALT: self._halt,
            Transition.TAKE_BACK: self._join,
            Transition.WITHDRAW: self._halt,
            Transition.DEFER: self._defer,
        }

    # ------------------------------------------------------------------ what one can see

    @property
    def floor(self) -> Floor:
        """Who has the floor."""
        if self._answer is None:
            return Floor.SILENT
        return Floor.SPEAKING if self._answer.num_heard else Floor.PREPARED

    @property
    def phase(self) -> Phase:
        """What is going on."""
        listening = self._input is not None and self._input.needs_score
        if self._answer is not None:
            return Phase.OVERLAP if listening else Phase.SPEAKING
        return Phase.LISTENING if listening else Phase.SILENCE

    @property
    def history(self) -> list[Turn]:
        """The conversation as the user knows it: what was said to the assistant, and what was heard of it."""
        answer = self._answer
        if answer is None or not answer.num_heard:
            return list(self._history)
        return self._history + _turns_of(answer)

    @property
    def running(self) -> Answer | None:
        """The running answer, to be read: its id, its text, what has been heard of it."""
        return self._answer

    @property
    def answer_text(self) -> str | None:
        """All text of the running answer, heard or not; None while there is none."""
        return self._answer.text if self._answer else None

    @property
    def input_text(self) -> str | None:
        """The words that are being heard and have not been answered or dropped; None while there are none."""
        return self._input.text if self._input else None

    @property
    def num_suspended(self) -> int:
        """Answers that can be resumed."""
        return len(self._suspended)

    @property
    def next_deadline(self) -> float | None:
        """Session time at which `advance` will change something if nothing else happens before."""
        return min(self._deadlines(), default=None)

    # ------------------------------------------------------------------ what one can tell it

    def advance(self, now: float) -> list[Event]:
        """It is `now` (seconds, never going back). Waits that are over are acted on.

        Raises:
            UsageError: `now` is earlier than before.
        """
        if now < self.now:
            raise UsageError(f"time goes forward only: {now} is before {self.now}")
        self.now = now
        answer, waiting = self._answer, self._input
        if answer and not answer.is_released and self._settles_at(answer) <= now:
            self._release(answer)
        elif waiting and self._is_waiting(waiting) and waiting.changed_at + self.policy.patience_s <= now:
            if self.floor is Floor.SPEAKING or not waiting.text:
                self._drop(waiting, "patience")
            else:
                self._answer_now(waiting)
        return self._drain()

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> list[Event]:
        """The words of `utterance` are now `text`: all of it so far, which may also take back what was heard before.

        Empty text is the onset of speech. `final` ends the utterance: the same id names a new one afterwards.
        """
        text = well_formed(text)
        answer, listening = self._answer, self._input
        known = listening.find(utterance) if listening else None
        answered = answer.find(utterance) if answer else None
        grown = known or answered
        if grown is not None and grown.text == text and not final:
            return self._drain()
        if grown is None and self._memory.was_dropped(utterance, text, final=final):
            return self._drain()
        self._emit(Received(self.now, utterance, text, final))
        if answer and answered and answered.text == text:
            answered.final = True  # only the end is new
            self._memory.end(utterance)
            self._release_if_sure(answer)
            return self._drain()
        if answer and answered and not answer.num_heard:
            listening, known = self._take_back(answer), answered
        num_answered = self._memory.num_answered(utterance, text)
        if known is None:
            if not text[num_answered:].strip() and (final or num_answered):
                return self._drain()  # nothing was said, or nothing more
            known = Utterance(utterance)
            if listening is None:
                listening = self._input = Input([], self.now)
            listening.utterances.append(known)
        assert listening is not None, "a known utterance is part of an input"
        grew, known.text, known.final, known.skip = known.text != text, text, final, num_answered
        if grew:
            self._words_changed(listening)
        if known.final and not listening.text and self._input is listening:
            self._drop(listening, "retracted")
        return self._drain()

    def heard(self, position: int, *, answer: int | None = None) -> list[Event]:
        """The user has heard the answer (the running one, or the one of that id) up to character `position`.

        It is rounded down to a whole word. Reports that come late, for an answer that was cut, change nothing.

        Raises:
            UsageError: there has never been such an answer, or the position is beyond what was said.
        """
        if answer is not None and not 0 <= answer < self._num_answers:
            raise UsageError(f"there is no answer {answer}; the newest is {self._num_answers - 1}")
        running = self._answer
        if running is None or (answer is not None and answer != running.id):
            return self._drain()
        if not 0 <= position <= running.num_said:
            raise UsageError(f"position {position} is not within the {running.num_said} characters said so far")
        running.num_reported = max(running.num_reported, position)
        self._hear(running, position)
        return self._drain()

    def respond(self) -> list[Event]:
        """Answer now: what is being heard, whatever the model thinks of it; without words, let the assistant speak."""
        if self._input and self._input.text:
            self._answer_now(self._input)
        elif self._answer:
            self._release(self._answer)
        else:
            self._speak_up()
        return self._drain()

    def stop(self) -> list[Event]:
        """End the assistant's speech. What is being heard meanwhile stays."""
        if self._answer is None:
            return self._refuse("stop", "no answer is running")
        self._silence(self._answer)
        return self._drain()

    def resume(self) -> list[Event]:
        """Let the answer that was cut last go on from the word that was heard last (design rule 6)."""
        if not self._suspended:
            return self._refuse("resume", "no answer is suspended")
        self._resume(self._suspended[-1])
        return self._drain()

    def edit(self, history: Sequence[Turn]) -> list[Event]:
        """Replace the history. A running answer, suspended ones and the words being heard are given up.

        Raises:
            ContextOverflow: the turns do not fit.
            TemplateError: the model's template does not allow these turns.
        """
        items = self._lay_out(history)
        if self._input:
            self._drop(self._input, "edit")
        self._release_suspended()
        self._abandon_rebuild()
        self._answer = None
        self._cache.free(self._trunk)
        self._trunk = self._cache.open(items)
        self._history, self._was_cut = list(history), False
        self._emit(Edited(self.now, len(self._history)))
        return self._drain()

    def protect(self, interruptible: Interruptible) -> None:
        """Say what may cut the running answer, and those that follow until said otherwise."""
        self._interruptible = interruptible
        if self._answer:
            self._answer.interruptible = interruptible

    def make_room(self) -> bool:
        """The cache is full: give up what is missed least. Returns whether anything was left to give up.

        Suspended answers go first, then a rebuild under way, then the words being heard; then the answer ends here,
        and last the oldest half of the conversation is left out at once.
        """
        if self._shed():
            return True
        if self._rebuild is not None:
            self._abandon_rebuild()
            return True
        listening, answer = self._input, self._answer
        if listening is not None and listening.channel is not None:
            self._emit(Refused(self.now, listening.id, "no room in the cache"))
            self._drop(listening, "no room")
            return True
        if answer is not None and not answer.finished:
            self._finish(answer, "length")
            self._say(answer)
            return True
        return answer is None and self._trim_at_once()

    def close(self) -> Plan:
        """End the conversation: the returned plan frees everything it holds."""
        self._release_suspended()
        self._abandon_rebuild()
        if self._input and self._input.channel:
            self._cache.free(self._input.channel)
        self._cache.free(self._trunk)
        self._input = self._answer = None
        return self._cache.flush()

    # ------------------------------------------------------------------ plan and take

    def plan(self) -> Plan:
        """What to run next: changes to the cache, then one pass with all that is pending, listening included."""
        self._plan_trunk()
        self._seat_input()
        self._plan_input()
        if self._rebuild and self._rebuild.channel.fed is None and self._rebuild.channel.num_pending:
            channel = self._rebuild.channel
            self._cache.feed(channel, min(channel.num_pending, self.config.chunk))
        return self._cache.flush()

    def take(self, steps: Sequence[Step]) -> list[Event]:
        """The results of a pass. What nobody waits for any more is discarded."""
        judged: tuple[Input, tuple[float, ...]] | None = None
        for step in steps:
            work = self._cache.land(step.ticket)
            if work is None or work.owner is None:
                continue
            answer, listening = self._answer, self._input
            if answer is not None and work.owner is answer and work.version == answer.num_tokens:
                self._continue(answer, step.tokens)
            elif listening is not None and work.owner is listening and work.version == listening.version:
                judged = listening, step.p
        if judged is not None and judged[0] is self._input:  # after the answer's token: they share the pass
            self._judge(*judged)
        return self._drain()

    def lose(self, batch: Sequence[Extend]) -> None:
        """The pass over `batch` did not take place; its work is planned again."""
        self._cache.lose(batch)

    def _plan_trunk(self) -> None:
        trunk, answer = self._trunk, self._answer
        self._cache.roll_back(trunk)
        if trunk.fed is not None:
            return
        if answer is not None and not answer.finished and not trunk.num_pending:
            trunk.forget_last()  # its result was discarded: the token has to be fed again to draw the next
            self._cache.roll_back(trunk)
        if not trunk.num_pending:
            return
        size = min(trunk.num_pending, self.config.chunk)
        if answer is None or answer.finished or size < trunk.num_pending:
            self._cache.feed(trunk, size)
            return
        index = answer.num_tokens
        draw = Draw(self.config.sampling, uniform(self.config.seed, answer.num_turns, index))
        self._cache.feed(trunk, size, draw=draw, owner=answer, version=index)

    def _seat_input(self) -> None:
        """Fork the input channel as soon as what it forks from is in the cache."""
        listening = self._input
        if listening is None or listening.channel is not None:
            return
        at, opening, is_first = self._live_end()
        if at - self._trunk.cached > 1:
            return  # what it would share is still being fed: forking now would feed it twice
        ids = (*opening, *self.template.user(listening.text, first=is_first))
        if self._has_room(at, ids):
            listening.at, listening.opening, listening.is_first = at, opening, is_first
            listening.channel = self._cache.fork(self._trunk, at)
            listening.channel.items.extend(ids)

    def _plan_input(self) -> None:
        listening = self._input
        if listening is None or listening.channel is None:
            return
        channel = listening.channel
        self._cache.roll_back(channel)
        if channel.fed is not None:
            return
        if channel.num_pending > self.config.chunk:
            self._cache.feed(channel, self.config.chunk)
        elif listening.needs_score:
            self._cache.feed(
                channel,
                channel.num_pending,
                probe=self.probe.tokens,
                watch=self.probe.watch,
                owner=listening,
                version=listening.version,
            )
        elif channel.num_pending:
            self._cache.feed(channel, channel.num_pending)

    # ------------------------------------------------------------------ listening

    def _live_end(self) -> tuple[int, tuple[Token, ...], bool]:
        """Where the next user turn forks from the trunk, what opens it there, and whether it is the first."""
        answer, note, was_cut = self._answer, self.policy.cut_note, self._was_cut
        at, last = len(self._trunk.items), self._history[-1].role if self._history else None
        if answer is not None and answer.num_heard:
            at, last, was_cut = answer.heard_at, Role.ASSISTANT, True
        elif answer is not None:
            at, last = answer.mark, last if answer.user_text is None else Role.USER
        opening = layout.opening(self.template, last, cut_note=note if was_cut else "")
        return at, opening, last is None

    def _words_changed(self, listening: Input) -> None:
        listening.grow(self.now)
        limit = self.config.max_user_text
        ids: tuple[Token, ...] = ()
        is_too_long = len(listening.text) > 32 * limit  # hopeless, so it is not even tokenised
        if not is_too_long:
            ids = self.template.user(listening.text, first=listening.is_first)
            is_too_long = len(ids) > limit
        if is_too_long:
            self._emit(Refused(self.now, listening.id, f"a turn of more than {limit} tokens; say it in parts"))
            self._drop(listening, "too long")
        elif listening.channel is not None:
            listening.channel.replace_tail(listening.at, (*listening.opening, *ids))

    def _judge(self, listening: Input, p: tuple[float, ...]) -> None:
        floor, answer = self.floor, self._answer
        speaking = floor is Floor.SPEAKING
        decision = self.policy.decide(self.probe.states, p, speaking=speaking)
        listening.scored, listening.decision = listening.version, decision
        self._emit(Decided(self.now, listening.id, listening.text, decision, speaking, listening.changed_at))
        self._apply[transition(floor, decision.state, answer.interruptible if answer else Interruptible.YES)](listening)

    def _hold(self, listening: Input) -> None:
        self._emit(Held(self.now, listening.id, deferred=False))

    def _defer(self, listening: Input) -> None:
        listening.deferred = True
        self._emit(Held(self.now, listening.id, deferred=True))

    def _drop_unwanted(self, listening: Input) -> None:
        assert listening.decision is not None
        self._drop(listening, listening.decision.state.value)

    def _drop(self, listening: Input, reason: str) -> None:
        self._unseat(listening)
        self._input = None
        self._memory.drop(listening.utterances)
        self._emit(Dropped(self.now, listening.id, listening.text, reason))
        cut = listening.interrupted
        if cut in self._suspended and self._is_exact(cut) and reason in (InputState.IGNORE, "patience", "retracted"):
            self._resume_exactly(cut)  # what had seemed to interrupt it did not

    def _unseat(self, listening: Input | None) -> None:
        """Take the channel away; it is forked again from where the live branch ends then."""
        if listening is not None and listening.channel is not None:
            self._cache.free(listening.channel)
            listening.channel = None

    def _halt(self, listening: Input) -> None:
        answer = self._answer
        assert answer is not None, "there is something to stop"
        self._drop(listening, InputState.STOP.value)
        self._silence(answer)

    def _join(self, listening: Input) -> None:
        """A new utterance continues the turn whose answer has not been heard."""
        assert self._answer is not None
        self._unseat(listening)
        self._input = None
        turn = self._take_back(self._answer)
        turn.utterances += listening.utterances
        self._words_changed(turn)

    def _take_back(self, answer: Answer) -> Input:
        """Roll the unheard answer back to the mark: its turn is an input again, on a fork that has the words cached."""
        others = self._input.utterances if self._input else []
        self._unseat(self._input)
        turn = self._input = Input([*answer.utterances, *others], self.now, interrupted=answer.interrupted)
        words = self._cache.fork(self._trunk, answer.mark)
        self._trunk.shorten(answer.turn_at)
        self._answer = None
        self._memory.take_back(answer.utterances)
        turn.at, turn.opening, turn.is_first = self._live_end()
        turn.channel = words
        self._emit(TakenBack(self.now, answer.id))
        return turn

    # ------------------------------------------------------------------ answering

    def _promote(self, listening: Input) -> None:
        if self._answer is not None:
            listening.interrupted = self._answer
            self._suspend(self._answer)
        at, opening, is_first = self._live_end()
        ids = (*opening, *self.template.user(listening.text, first=is_first))
        if not self._has_room(at, ids):
            self._unseat(listening)
            self._defer(listening)
            return
        if listening.channel is not None and (listening.at, listening.opening) == (at, opening):
            self._cache.free(self._trunk)
            self._trunk = listening.channel
        else:  # more has been heard since the fork: the words go behind that, with the header, in one pass
            self._unseat(listening)
            self._trunk.items.extend(ids)
        self._input = None
        answer = self._begin_answer(at, listening.text, listening.utterances)
        answer.interrupted = listening.interrupted
        self._emit(Promoted(self.now, listening.id, listening.text, answer.id))
        decision = listening.decision
        is_sure = decision is not None and decision.state is InputState.PROCESS and decision.p >= self.policy.p_sure
        self._release_if_sure(answer, is_sure)

    def _answer_now(self, listening: Input) -> None:
        if self.floor is Floor.PREPARED:
            self._join(listening)
        if self._input is not None:
            self._promote(self._input)
        if self._answer is not None:
            self._release(self._answer)

    def _begin_answer(self, turn_at: int, user_text: str | None, utterances: Sequence[Utterance]) -> Answer:
        """The assistant's turn opens behind the trunk; the user's turn began at `turn_at`."""
        mark = len(self._trunk.items)
        if user_text is None:
            last = self._history[-1].role if self._history else None
            self._trunk.items.extend(layout.assistant_opener(self.template, last))
        else:
            self._trunk.items.extend(self.template.header)
        self._answer = Answer(
            self._num_answers,
            self._trunk,
            self.template.detokenizer(),
            turn_at=turn_at,
            mark=mark,
            num_turns=len(self._history),
            user_text=user_text,
            utterances=utterances,
            interruptible=self._interruptible,
            begun_at=self.now,
        )
        self._num_answers += 1
        self._memory.answer(utterances)
        return self._answer

    def _speak_up(self) -> None:
        """An answer without new words: to the user's turn that ends the history, or of the assistant's own accord."""
        if not self._history or self._history[-1].role is not Role.USER:
            try:
                answer = self._begin_answer(len(self._trunk.items), None, ())
            except TemplateError as error:
                self._emit(Refused(self.now, "respond", str(error)))
                return
        else:
            text = self._history[-1].text
            self._forget_turns(len(self._history) - 1)
            last = self._history[-1].role if self._history else None
            size = len(layout.user_turn(self.template, text, last))
            utterance = Utterance("history", text, final=True)
            answer = self._begin_answer(len(self._trunk.items) - size, text, [utterance])
        self._release(answer)

    def _continue(self, answer: Answer, tokens: Sequence[Token]) -> None:
        for token in tokens:
            if token in self.template.stop_tokens:
                self._finish(answer, "stop")
            else:
                self._push(answer, token)
            if answer.finished:
                break
        self._say(answer)

    def _push(self, answer: Answer, token: Token) -> None:
        answer.channel.items.append(token)
        answer.push(token)
        if answer.num_tokens >= self.config.max_answer or len(answer.channel.items) >= self.config.max_length:
            self._finish(answer, "length")

    def _finish(self, answer: Answer, reason: str) -> None:
        answer.finish(reason)
        self._emit(Finished(self.now, answer.id, reason))

    def _release_if_sure(self, answer: Answer, is_sure: bool = False) -> None:
        if not answer.is_released and (is_sure or all(u.final for u in answer.utterances)):
            self._release(answer)

    def _release(self, answer: Answer) -> None:
        if answer.is_released:
            return
        answer.is_released = True
        if self._suspended and answer.user_text and self.policy.asks_to_resume(answer.user_text):
            self._resume_as_asked(self._suspended[-1], answer)
            return
        self._emit(Released(self.now, answer.id))
        self._say(answer)

    def _say(self, answer: Answer) -> None:
        """Let out what there is of a released answer."""
        if not answer.is_released or answer is not self._answer:
            return
        start = answer.num_said
        if len(answer.text) > start:
            answer.num_said = len(answer.text)
            self._emit(Said(self.now, answer.id, start, answer.text[start:]))
        self._hear(answer, answer.num_said if self.config.heard == "shown" else answer.num_reported)

    def _hear(self, answer: Answer, position: int) -> None:
        if answer.hear(position):
            self._emit(Heard(self.now, answer.id, answer.num_heard))
        if answer.is_heard_to_the_end:
            self._commit(answer)

    def _commit(self, answer: Answer) -> None:
        self._close_turn(answer, was_cut=False)
        self._emit(Committed(self.now, answer.id, answer.text))
        if self._input is not None and self._input.deferred:
            self._promote(self._input)

    def _close_turn(self, answer: Answer, *, was_cut: bool) -> None:
        self._history += _turns_of(answer)
        self._was_cut = was_cut
        self._answer = None
        if len(self._trunk.items) > self.config.max_length * 3 // 4:
            self._start_rebuild()

    # ------------------------------------------------------------------ cutting and resuming

    def _silence(self, answer: Answer) -> None:
        if answer.num_heard:
            self._suspend(answer)
        else:
            self._withdraw(answer)

    def _suspend(self, answer: Answer) -> None:
        """Cut the answer where it has been heard; the live branch goes on from there."""
        self._trunk = self._cache.fork(answer.channel, answer.heard_at)
        self._suspended.append(answer)
        if len(self._suspended) > MAX_SUSPENDED:
            self._shed()
        self._emit(Suspended(self.now, answer.id, answer.heard_text, answer.unheard_text))
        self._close_turn(answer, was_cut=True)

    def _withdraw(self, answer: Answer) -> None:
        """Nothing of the answer was heard: it goes, and its turn with it."""
        self._unseat(self._input)
        self._trunk.shorten(answer.turn_at)
        self._answer = None
        self._emit(Withdrawn(self.now, answer.id))

    def _is_exact(self, cut: Answer | None) -> bool:
        """Whether no turn was committed since `cut` was suspended, so that its KV still is the live branch's future."""
        return cut is not None and len(self._history) == cut.num_turns + len(_turns_of(cut))

    def _resume(self, cut: Answer) -> None:
        if self._answer is not None:
            self._silence(self._answer)
        if cut not in self._suspended:  # cutting the running answer left no place for it
            self._emit(Refused(self.now, "resume", "the suspended answer had to be released"))
        elif self._is_exact(cut):
            self._resume_exactly(cut)
        else:
            self._unseat(self._input)
            last = self._history[-1].role
            if last is Role.ASSISTANT and self.template.again is None:  # strict alternation: somebody has to ask
                text = self.policy.resume_phrases[0] if self.policy.resume_phrases else "go on"
                at, opening, is_first = self._live_end()
                self._trunk.items.extend((*opening, *self.template.user(text, first=is_first)))
                answer = self._begin_answer(at, text, [Utterance("resume", text, final=True)])
            else:
                answer = self._begin_answer(len(self._trunk.items), None, ())
            self._replay(cut, answer)

    def _resume_as_asked(self, cut: Answer, asked: Answer) -> None:
        """`asked` answers words that mean "go on"."""
        if self._is_exact(cut):
            self._resume(cut)
            return
        self._trunk.shorten(asked.mark)
        answer = self._begin_answer(asked.turn_at, asked.user_text, asked.utterances)
        self._replay(cut, answer)

    def _resume_exactly(self, cut: Answer) -> None:
        self._unseat(self._input)
        self._suspended.remove(cut)
        self._cache.free(self._trunk)
        self._forget_turns(cut.num_turns)
        self._trunk, self._answer = cut.channel, cut
        cut.rewind()
        self._emit(Resumed(self.now, cut.id, cut.id, exact=True))
        self._say(cut)

    def _replay(self, cut: Answer, answer: Answer) -> None:
        """What was not heard of `cut` is forced into `answer`, which goes on from there."""
        self._suspended.remove(cut)
        self._cache.free(cut.channel)
        answer.is_released = True
        self._emit(Resumed(self.now, answer.id, cut.id, exact=False))
        for token in cut.channel.items[cut.heard_at : cut.end_at]:
            if not answer.finished:
                self._push(answer, token)
        if cut.finished == "stop" and not answer.finished:
            self._finish(answer, cut.finished)
        self._say(answer)

    def _shed(self) -> bool:
        if self._suspended:
            self._cache.free(self._suspended.pop(0).channel)
            return True
        return False

    def _release_suspended(self) -> None:
        while self._shed():
            pass

    # ------------------------------------------------------------------ long conversations

    def _lay_out(self, turns: Sequence[Turn]) -> list[Token]:
        items = [*self.template.begin, *layout.lay_out(self.template, turns)]
        limit = self.config.max_length - self.config.max_user_text - self.config.min_room
        if len(items) > limit:
            raise ContextOverflow(
                f"system prompt and history take {len(items)} tokens; at most {limit} of the context of "
                f"{self.config.max_length} leave room for a turn: shorten them, or raise max_length"
            )
        return items

    def _has_room(self, at: int, ids: tuple[Token, ...]) -> bool:
        """Whether a turn of `ids` behind `at` leaves room for an answer; if not, room is made."""
        needed = at + len(ids) + len(self.template.header) + self.config.min_room
        if needed > self.config.max_length:
            self._start_rebuild()
        return needed <= self.config.max_length

    def _start_rebuild(self) -> None:
        if self._rebuild is None:
            self._rebuild = Rebuild(self.template, self._history, self.config.max_length // 2, self._cache)

    def _swap_if_rebuilt(self) -> None:
        rebuild = self._rebuild
        if rebuild is not None and self._answer is None and rebuild.catch_up(self._history):
            self._rebuild = None
            self._swap(rebuild)

    def _swap(self, rebuild: Rebuild) -> None:
        """The rebuilt context is the live branch from now on."""
        self._release_suspended()
        self._unseat(self._input)
        self._cache.free(self._trunk)
        self._trunk = rebuild.channel
        del self._history[: rebuild.num_dropped]
        self._emit(Trimmed(self.now, rebuild.num_dropped, len(self._trunk.items)))
        if self._input is not None and self._input.deferred:
            self._promote(self._input)

    def _trim_at_once(self) -> bool:
        """Leave out the older half, and feed the rest anew. Returns whether there was anything to leave out."""
        rebuild = Rebuild(self.template, self._history, len(self._trunk.items) // 2, self._cache)
        if rebuild.num_dropped:
            self._swap(rebuild)
            return True
        self._cache.free(rebuild.channel)
        return False

    def _forget_turns(self, num_kept: int) -> None:
        """Turns behind the first `num_kept` are open again."""
        del self._history[num_kept:]
        if self._rebuild is not None and self._rebuild.num_laid > num_kept:
            self._abandon_rebuild()  # it has them as they were; it is begun anew when a turn ends

    def _abandon_rebuild(self) -> None:
        if self._rebuild is not None:
            self._cache.free(self._rebuild.channel)
            self._rebuild = None

    # ------------------------------------------------------------------ time and events

    def _settles_at(self, answer: Answer) -> float:
        return answer.begun_at + self.policy.settle_s

    def _is_waiting(self, listening: Input) -> bool:
        """Whether patience runs: the words were judged incomplete, or there are none."""
        decision = listening.decision
        return not listening.deferred and (decision is not None or not listening.text)

    def _deadlines(self) -> Iterator[float]:
        if self._answer and not self._answer.is_released:
            yield self._settles_at(self._answer)
        if self._input and self._is_waiting(self._input):
            yield self._input.changed_at + self.policy.patience_s

    def _refuse(self, what: str, reason: str) -> list[Event]:
        self._emit(Refused(self.now, what, reason))
        return self._drain()

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    def _drain(self) -> list[Event]:
        self._swap_if_rebuilt()
        events, self._events = self._events, []
        return events


def _turns_of(answer: Answer) -> list[Turn]:
    said = Turn(Role.ASSISTANT, answer.heard_text)
    return [said] if answer.user_text is None else [Turn(Role.USER, answer.user_text), said]
