"""The speaking side: everything that was committed, the running answer, and suspended answers.

Knows turns and answers, but neither what is being heard nor why an answer begins or ends.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from duologue.core.answer import Answer, LogP, Thinking
from duologue.core.backend import Ahead, Draw, Step, uniform
from duologue.core.cache import CacheOperations, Place, TokenSequence, Work
from duologue.core.compaction import Compaction
from duologue.core.config import SessionConfig
from duologue.core.echo import EchoGuard
from duologue.core.events import (
    Committed,
    EventLog,
    Failed,
    Refused,
    Released,
    Resumed,
    Suspended,
    Trimmed,
    Withdrawn,
)
from duologue.core.input_channel import ForkPoint, Input, Utterance
from duologue.core.policy import Policy
from duologue.core.prompt import Template, lay_out
from duologue.core.transitions import Interruptible
from duologue.core.words import asks
from duologue.types import Role, Token, Turn

MAX_SUSPENDED = 2  # answers that can be resumed; older ones are given up


@final
class OutputChannel:
    """The live conversation in one token sequence: what was committed, followed by the running answer.

    `epoch` counts the changes after which earlier forks no longer begin as the conversation does. Appending a
    turn leaves earlier forks valid.
    """

    def __init__(
        self,
        template: Template,
        policy: Policy,
        config: SessionConfig,
        cache: CacheOperations,
        log: EventLog,
        history: Sequence[Turn],
        *,
        probe_length: int,
        place: Place = Place.SPEAKER,
    ) -> None:
        """`probe_length`: tokens of a probe that is fed here, 0 where a listener decides."""
        self.history: list[Turn] = []  # committed turns
        self.answer: Answer | None = None  # the running one
        self.suspended: list[Answer] = []  # oldest first
        self.echo = EchoGuard(template.word_ends)
        self.epoch = 0
        self.num_answers = 0
        self.policy = policy
        self._interruptible = policy.interruptible  # of answers to come
        self.max_answer = config.max_answer  # tokens of answers to come
        self.sampling = config.sampling  # of tokens to come
        self.template = template
        self._config = config
        self._cache = cache
        self._log = log
        self._place = place
        self._was_cut = False  # whether the last turn of the history was
        self.num_trimmed = 0  # turns left out so far; they count towards the random numbers, too
        self.compaction: Compaction | None = None  # the one in progress
        self._crowded: Answer | None = None  # while it runs, the cache has no room for a compaction
        self._probe_length = probe_length
        self._min_room = max(len(template.header) + config.min_room, probe_length)  # tokens wanted for an answer
        self.sequence = cache.open(lay_out(template, history, config), place)
        self.history.extend(history)

    # ------------------------------------------------------------------ what it holds

    @property
    def last_role(self) -> Role | None:
        """Whose turn ends the history."""
        return self.history[-1].role if self.history else None

    @property
    def last_heard(self) -> str:
        """What was heard last of the assistant; empty if the user has had a turn since."""
        if self.answer is not None and self.answer.num_heard:
            return self.answer.heard_text
        return self.history[-1].text if self.last_role is Role.ASSISTANT else ""

    @property
    def has_asked(self) -> bool:
        """Whether what was heard last of the assistant is a question."""
        return asks(self.last_heard)

    @property
    def running(self) -> Answer:
        """The running answer, where there is one."""
        assert self.answer is not None, "an answer is running"
        return self.answer

    @property
    def compaction_backlog(self) -> int:
        """Tokens of a compaction that nothing waits for."""
        compaction = self.compaction
        return 0 if compaction is None or compaction.is_awaited else compaction.sequence.num_waiting

    def backlog(self, lookahead: int) -> int:
        """Tokens that wait to be fed, excluding those of the other two backlogs."""
        own = 0 if self._is_ahead(lookahead // 2 + 1) else self.sequence.num_waiting
        compaction = self.compaction
        return own + (compaction.sequence.num_waiting if compaction is not None and compaction.is_awaited else 0)

    def deferrable_backlog(self, lookahead: int) -> int:
        """Tokens that continue an answer that is well ahead of its listener."""
        is_well_ahead = self._is_ahead(lookahead // 2 + 1) and not self._is_ahead(lookahead)
        return self.sequence.num_waiting if is_well_ahead else 0

    def _is_ahead(self, least: int) -> bool:
        """Whether the running answer is unfinished, and at least so many tokens ahead of what has been heard."""
        answer = self.answer
        if answer is None or answer.finished or self._config.heard != "reported":
            return False
        return answer.num_waiting_tokens >= least

    def fork_point(self) -> ForkPoint:
        """Where the next user turn begins: after what the user has heard, not what has been generated (choice 2)."""
        answer, was_cut = self.answer, self._was_cut
        at, last = len(self.sequence.items), self.last_role
        if answer is not None and answer.num_heard:
            at, last, was_cut = answer.heard_at, Role.ASSISTANT, True
        elif answer is not None:
            at, last = answer.mark, last if answer.user_text is None else Role.USER
        opening = self.template.joint(last, Role.USER)
        if was_cut and self.policy.cut_note and last is Role.ASSISTANT:
            opening = (*self.template.encode(self.policy.cut_note), *opening)
        return ForkPoint(self.sequence, at, opening, last is None, self.epoch)

    def is_read(self, point: ForkPoint) -> bool:
        """Whether everything in front of `point` is cached, but for the token that was sampled last."""
        return point.at - point.sequence.cached <= 1

    def has_room(self, point: ForkPoint, words: Sequence[Token], *, to_answer: bool) -> bool:
        """Whether a user turn of `words` at `point` can be judged, or, with `to_answer`, answered.

        If no answer to it would fit, a compaction is begun. If the room is needed at once, the turn waits for it.
        """
        left = self._config.max_length - point.at - len(point.opening) - len(words)
        if left < self._min_room:
            self._begin_compaction()
        is_enough = left >= (self._min_room if to_answer or self._is_crowded else self._probe_length)
        if not is_enough and self.compaction is not None:
            self.compaction.is_awaited = True
        return is_enough

    def protect(self, interruptible: Interruptible) -> None:
        """Set what may cut the running answer and later ones."""
        self._interruptible = interruptible
        if self.answer is not None:
            self.answer.interruptible = interruptible

    # ------------------------------------------------------------------ answering

    def promote(self, turn: Input, point: ForkPoint, words: Sequence[Token], sequence: TokenSequence | None) -> Answer:
        """Begin an answer to the user's turn `turn` at `point`.

        `sequence` is that of the input channel, with its words cached; it becomes that of the output channel. It is
        None if more was heard since the fork; then `words` are appended to what was heard, and fed in one pass with the
        header.
        """
        if sequence is not None:
            self._adopt(sequence)
        else:
            self.sequence.items.extend((*point.opening, *words))
        answer = self._begin_answer(point.at, turn.text, turn.utterances)
        answer.interrupted, answer.decision = turn.interrupted, turn.decision
        return answer

    def speak_up(self) -> None:
        """Answer the user's turn that ends the history, or let the assistant speak unprompted."""
        if self.last_role is Role.USER:
            text = self.history[-1].text
            self._reopen(len(self.history) - 1)
            size = len(self.template.lay_out([Turn(Role.USER, text)], self.last_role))
            self._begin_answer(len(self.sequence.items) - size, text, [Utterance("history", text, final=True)])
        else:
            self._begin_answer(len(self.sequence.items), None, ())
        self.release()

    def _begin_answer(
        self, turn_at: int, user_text: str | None, utterances: Sequence[Utterance], *, may_think: bool = True
    ) -> Answer:
        """Open the assistant's turn; the user's turn began at `turn_at`.

        `user_text` is None if there is no question. Without `may_think`, the answer is known already.
        """
        template, mark = self.template, len(self.sequence.items)
        opened = template.thought if may_think else None
        if may_think:
            self.sequence.items.extend(template.opening(self._last_role_before(user_text)))
        else:
            self.sequence.items.extend(template.joint(self._last_role_before(user_text), Role.ASSISTANT))
        if opened is not None and not self._config.max_thought:
            self.sequence.items.extend(template.end_thought(opened))
            opened = None
        self.answer = Answer(
            self.num_answers,
            self.sequence,
            self.template.detokenizer(),
            self.template.is_word_end,
            self._log,
            turn_at=turn_at,
            mark=mark,
            answer_at=len(self.sequence.items),
            num_turns=len(self.history),
            user_text=user_text,
            utterances=utterances,
            is_shown=self._config.heard == "shown",
            max_tokens=self.max_answer,
            thinking=Thinking(template.thought_marks if may_think else (), opened),
            max_thought=min(self._config.max_thought, (self._config.max_length - len(self.sequence.items)) // 2),
            interruptible=self._interruptible,
            begun_at=self._log.now,
        )
        self.num_answers += 1
        return self.answer

    def plan(self, lookahead: int) -> None:
        """Feed what is pending and draw the next token, unless `lookahead` tokens of the answer are unheard."""
        sequence, answer = self.sequence, self.answer
        if sequence.place is Place.ELSEWHERE:
            return
        self._cache.roll_back(sequence)
        if sequence.fed is not None or self._is_ahead(lookahead):
            return
        if answer is not None and not answer.finished and not sequence.num_pending:
            sequence.cached = len(sequence.items) - 1  # its result was discarded: feed the token again to draw the next
        size = self._cache.portion(sequence)
        if size == 0:
            return
        if answer is None or answer.finished or size < sequence.num_pending:
            self._cache.feed(sequence, size)
            return
        index = answer.num_made
        ahead = self._ahead(answer, lookahead)
        chance = uniform(ahead.seed, ahead.turn, ahead.index)
        draw = Draw(self.sampling, chance, num_alternatives=self._config.num_alternatives, ahead=ahead)
        if self._config.constraint is not None and not answer.is_thinking:
            said = tuple(sequence.items[answer.answer_at :])
            draw = replace(draw, constraint=self._config.constraint, answer=said)
        self._cache.feed(sequence, size, draw=draw, owner=answer, version=index)

    def _ahead(self, answer: Answer, lookahead: int) -> Ahead:
        """What may be drawn from the next token on, so that no more than `lookahead` tokens of `answer` are unheard."""
        left = min(answer.max_tokens - answer.num_tokens, self._config.max_length - len(self.sequence.items))
        num_tokens = max(1, min(lookahead - answer.num_waiting_tokens, left))
        return Ahead(num_tokens, self._config.seed, self.num_trimmed + answer.num_turns, answer.num_made)

    def plan_compaction(self) -> None:
        """Feed a part of the compaction in progress, if any."""
        if self.compaction is not None:
            self.compaction.plan()

    def is_continued_by(self, work: Work) -> bool:
        """Whether `work` drew the next token of the running answer."""
        answer = self.answer
        return answer is not None and work.owner is answer and work.version == answer.num_made

    def go_on(self, step: Step) -> None:
        """Append the tokens of `step`, which the model drew, to the running answer."""
        answer = self.running
        for token in step.tokens:
            is_stop = token in self.template.stop_tokens
            if not is_stop:
                self._push(answer, token, step.log_p)
            if answer.has_thought_enough or (is_stop and answer.is_thinking):
                self._end_thought(answer)
                break  # what was drawn after it continues the thought
            if is_stop:
                answer.finish("stop")
            if answer.finished:
                break
        self._say(answer)

    def _end_thought(self, answer: Answer) -> None:
        """Let a thought end here, and the answer begin. A model that thinks on has nothing to say."""
        if answer.thinking.was_ended:
            answer.finish("length")
            return
        assert answer.thinking.marks is not None, "a thought is open"
        for token in self.template.end_thought(answer.thinking.marks):
            if not answer.finished:
                self._push(answer, token)
        answer.thinking.close()
        answer.begin_here()

    def say(self, text: str) -> None:
        """Append `text`, which a speaker elsewhere says, to the running answer."""
        answer = self.running
        if not answer.finished:
            self.go_on(Step(0, self.template.encode(text if answer.text else text.lstrip())))

    def finish(self, reason: str) -> None:
        """End the running answer: the speaker elsewhere has nothing more to say."""
        self.running.finish(reason)
        self._say(self.running)

    def fail(self, reason: str) -> None:
        """The speaker elsewhere cannot go on. Without any text of the answer, the user's turn stays unanswered."""
        answer = self.running
        if answer.finished:
            return
        is_unanswered = not answer.text
        self._log.add(Failed(self._log.now, answer.id, reason, is_unanswered))
        if not is_unanswered:
            self.finish("failed")
            return
        self.sequence.shorten(answer.mark)
        self.answer, self._was_cut = None, False
        self.history += answer.turns[:-1]

    def cut_short(self) -> bool:
        """End the running answer here for lack of room. Returns whether there was an unfinished one."""
        answer = self.answer
        if answer is None or answer.finished:
            return False
        answer.finish("length")
        self._say(answer)
        return True

    def hold_back(self) -> None:
        """Delay a prepared answer because somebody has started to speak."""
        if self.answer is not None:
            self.answer.begun_at = self._log.now

    @property
    def release_at(self) -> float:
        """Session time at which the running answer is released, if no words come before."""
        answer = self.running
        unended = [utterance.interval for utterance in answer.utterances if not utterance.final]
        wait = self.policy.wait_s(answer.decision, final=not unended, interval=max(unended, default=0.0))
        return answer.begun_at + wait

    def release_if_due(self) -> None:
        """Let the running answer be heard if there is nothing to wait for (any more)."""
        if self.release_at <= self._log.now:
            self.release()

    def release(self) -> None:
        """Let the running answer be heard. If it answers words that mean "go on", the suspended one resumes instead.

        Behind a question, such words are a reply to it.
        """
        answer = self.answer
        if answer is None or answer.is_released:
            return
        answer.is_released = True
        if self.suspended and answer.user_text and not self.has_asked:
            cut = self.suspended[-1]
            if self.policy.asks_to_resume(answer.user_text, is_newest=self._still_fits(cut)):
                self._resume_as_asked(cut, answer)
                return
        self._log.add(Released(self._log.now, answer.id))
        self._say(answer)

    def hear(self, position: int) -> None:
        """Record that the user has heard the running answer up to character `position`."""
        answer = self.running
        before = answer.num_heard
        answer.hear(position)
        if answer.num_heard > before and self.policy.echo_s:
            self.echo.hear(answer.text[before : answer.num_heard], self._log.now)
        if answer.is_heard_to_the_end:
            self._log.add(Committed(self._log.now, answer.id, answer.text))
            self._leave_out_thought(answer)
            self._close_turn(answer, was_cut=False)

    def _push(self, answer: Answer, token: Token, log_p: LogP = ()) -> None:
        answer.sequence.items.append(token)
        answer.push(token, log_p)
        if len(answer.sequence.items) >= self._config.max_length:
            answer.finish("length")

    def _say(self, answer: Answer) -> None:
        """Report the new text of a released answer."""
        if answer.is_released:
            answer.say()
            self.hear(answer.num_reported)

    def _last_role_before(self, user_text: str | None) -> Role | None:
        """Whose turn an answer to `user_text` (None: unasked) follows."""
        return self.last_role if user_text is None else Role.USER

    def _leave_out_thought(self, answer: Answer) -> None:
        """Continue as if `answer`, whose turn is closing, had been given without a thought.

        Templates leave thoughts out of the history. What was said is fed again, once.
        """
        items = self.sequence.items
        told = self.template.joint(self._last_role_before(answer.user_text), Role.ASSISTANT)
        if tuple(items[answer.mark : answer.answer_at]) != told:
            self.sequence.replace_tail(answer.mark, (*told, *items[answer.answer_at :]))
            self.epoch += 1

    def _close_turn(self, answer: Answer, *, was_cut: bool) -> None:
        self.history += answer.turns
        self._was_cut = was_cut
        self.answer = None
        if len(self.sequence.items) > self._config.max_length * 3 // 4:
            self._begin_compaction()

    def _adopt(self, sequence: TokenSequence) -> None:
        """Switch to `sequence`, which continues the current one."""
        self._cache.free(self.sequence)
        self.sequence = sequence

    # ------------------------------------------------------------------ cutting and resuming

    def silence(self) -> None:
        """End the running answer: suspend it if part of it was heard, and withdraw it otherwise."""
        answer = self.answer
        if answer is not None and answer.num_heard:
            self.suspend()
        elif answer is not None:
            self.roll_back_turn()
            self._log.add(Withdrawn(self._log.now, answer.id))

    def suspend(self) -> Answer:
        """Cut the running answer where it has been heard, and return it. Its KV is kept; the channel goes on there."""
        answer = self.running
        self.sequence = self._cache.fork(answer.sequence, answer.heard_at)
        self.suspended.append(answer)
        if len(self.suspended) > MAX_SUSPENDED:
            self._evict(self.suspended.pop(0))
        self._log.add(Suspended(self._log.now, answer.id, answer.heard_text, answer.unheard_text))
        self._leave_out_thought(answer)
        self._close_turn(answer, was_cut=True)
        return answer

    def take_back(self) -> TokenSequence:
        """Roll back the running answer, of which nothing was heard. Returns a sequence with the user's words cached."""
        answer = self.running
        words = self._cache.fork(self.sequence, answer.mark)
        self.roll_back_turn()
        return words

    def roll_back_turn(self) -> None:
        """Roll back the running answer, of which nothing was heard, and the user's turn before it."""
        self.sequence.shorten(self.running.turn_at)
        self.answer = None
        self.epoch += 1

    def resume(self) -> None:
        """Continue the answer that was cut last (choice 6)."""
        cut = self.suspended[-1]
        self.silence()
        if self._still_fits(cut):
            self._resume_exactly(cut)
        elif cut not in self.suspended:  # suspending the running answer displaced it
            self._log.add(Refused(self._log.now, "resume", "the suspended answer had to be released"))
        else:
            self.epoch += 1
            self._replay(cut, self._begin_answer(len(self.sequence.items), None, (), may_think=False))

    def resume_undisturbed(self, answer: int) -> None:
        """Continue the answer of that id if it is suspended and no turn has been committed since."""
        for cut in self.suspended:
            if cut.id == answer and self._still_fits(cut):
                self._resume_exactly(cut)
                break

    def _still_fits(self, cut: Answer) -> bool:
        """Whether `cut` is suspended and no turn was committed since, so that its KV still continues the history."""
        return cut in self.suspended and len(self.history) == cut.num_turns + len(cut.turns)

    def _resume_exactly(self, cut: Answer) -> None:
        """Continue `cut`, with its own KV if that was not evicted."""
        self.suspended.remove(cut)
        if cut.is_evicted:  # the sequence ends where the answer was cut, without its thought
            self.sequence.replace_tail(cut.mark, cut.sequence.items[cut.mark :])
            cut.sequence, cut.is_evicted = self.sequence, False
        else:
            self._adopt(cut.sequence)
        self._reopen(cut.num_turns)
        self.answer = cut
        self.epoch += 1
        cut.is_released = True
        cut.num_said = cut.num_reported = cut.num_heard  # what was not heard is said again
        self._log.add(Resumed(self._log.now, cut.id, cut.id, exact=True))
        self._say(cut)

    def _resume_as_asked(self, cut: Answer, asked: Answer) -> None:
        """Resume `cut` in place of `asked`, which answers words that mean "go on"."""
        if self._still_fits(cut):
            self.resume()
        else:
            self.sequence.shorten(asked.mark)
            answer = self._begin_answer(asked.turn_at, asked.user_text, asked.utterances, may_think=False)
            self._replay(cut, answer)

    def _replay(self, cut: Answer, answer: Answer) -> None:
        """Feed the unheard part of `cut` as the beginning of `answer`."""
        self.suspended.remove(cut)
        self._evict(cut)
        answer.is_released = True
        self._log.add(Resumed(self._log.now, answer.id, cut.id, exact=False))
        for token in cut.sequence.items[cut.heard_at : cut.end_at]:
            if not answer.finished:
                self._push(answer, token)
        if cut.finished == "stop" and not answer.finished:
            answer.finish(cut.finished)
        self._say(answer)

    def evict(self) -> bool:
        """Give up the KV of the oldest suspended answer that has any. Returns whether there was one."""
        for cut in self.suspended:
            if not cut.is_evicted:
                self._evict(cut)
                return True
        return False

    def forget_suspended(self) -> None:
        """Give up every suspended answer."""
        for cut in self.suspended:
            self._evict(cut)
        self.suspended.clear()

    def _evict(self, cut: Answer) -> None:
        if not cut.is_evicted:
            self._cache.free(cut.sequence)
            cut.is_evicted = True

    # ------------------------------------------------------------------ long and edited conversations

    def replace(self, history: Sequence[Turn], template: Template, laid_out: Sequence[Token] | None = None) -> None:
        """Start over with `history` in `template`. The running answer and the suspended ones are given up.

        `laid_out` is what `lay_out` returned for them, if that was called before.

        Raises:
            ContextOverflow, TemplateError: see `Session.edit`.
        """
        items = lay_out(template, history, self._config) if laid_out is None else list(laid_out)
        self.template = template
        self.free()
        self.sequence = self._cache.open(items, self._place)
        self.history, self._was_cut = list(history), False
        self.epoch += 1

    def free(self) -> None:
        """Free every sequence."""
        self.forget_suspended()
        self._abandon_compaction()
        self.answer = None
        self._cache.free(self.sequence)

    def swap_if_compacted(self) -> bool:
        """Switch to the compacted context if it is cached and no answer is running. Returns whether it did."""
        compaction = self.compaction
        if compaction is None or self.answer is not None or not compaction.catch_up(self.history):
            return False
        self.compaction = None
        self._swap(compaction)
        return True

    def trim_at_once(self) -> bool:
        """Leave out the older half, and feed the rest again. Returns whether there was anything to leave out."""
        if self.answer is not None:
            return False
        compaction = Compaction(self.template, self.history, len(self.sequence.items) // 2, self._cache, self._place)
        if compaction.num_dropped:
            self._swap(compaction)
            return True
        self._cache.free(compaction.sequence)
        return False

    def give_up_compaction(self) -> bool:
        """Give up the compaction in progress for lack of room. Returns whether there was one.

        It is not begun again while the same answer runs, since it would fail again. Without an answer, the context is
        trimmed at once instead.
        """
        if not self._abandon_compaction():
            return False
        self._crowded = self.answer
        self.trim_at_once()
        return True

    def _abandon_compaction(self) -> bool:
        if self.compaction is None:
            return False
        self._cache.free(self.compaction.sequence)
        self.compaction = None
        return True

    @property
    def _is_crowded(self) -> bool:
        return self._crowded is not None and self._crowded is self.answer

    def _begin_compaction(self) -> None:
        if self.compaction is None and not self._is_crowded:
            # When it comes into use, it will also hold the running answer and its question.
            running = 0 if self.answer is None else len(self.sequence.items) - self.answer.turn_at
            budget = max(0, self._config.max_length // 2 - running)
            self.compaction = Compaction(self.template, self.history, budget, self._cache, self._place)

    def _swap(self, compaction: Compaction) -> None:
        self.forget_suspended()
        self._adopt(compaction.sequence)
        self.epoch += 1
        del self.history[: compaction.num_dropped]
        self.num_trimmed += compaction.num_dropped
        self._log.add(Trimmed(self._log.now, compaction.num_dropped, len(self.sequence.items)))

    def _reopen(self, num_kept: int) -> None:
        """Remove all turns after the first `num_kept` from the history, so that they can change again."""
        del self.history[num_kept:]
        if self.compaction is not None and self.compaction.num_laid > num_kept:
            self._abandon_compaction()  # it contains those turns; it is begun again when a turn ends
