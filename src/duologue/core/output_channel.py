"""The speaking side: the live branch, the running answer at its end, and the answers that were cut.

Knows turns and answers; not what is being heard, nor why an answer begins or ends.
"""

from collections.abc import Sequence

from duologue.core.answer import Answer, Utterance
from duologue.core.backend import Draw, uniform
from duologue.core.cache import CacheOperations, TokenSequence
from duologue.core.compaction import Compaction
from duologue.core.config import SessionConfig
from duologue.core.events import (
    Committed,
    Finished,
    Heard,
    Log,
    Promoted,
    Refused,
    Released,
    Resumed,
    Said,
    Suspended,
    Trimmed,
    Withdrawn,
)
from duologue.core.policy import Policy
from duologue.errors import ContextOverflow, TemplateError, UsageError
from duologue.text.template import Template
from duologue.types import Role, Token, Turn

MAX_SUSPENDED = 2  # answers that can be resumed; older ones are released


class OutputChannel:
    """Everything that was committed, in one channel (`sequence`), with the running answer behind it.

    `epoch` counts how often the sequence was replaced or rolled back: what was forked before that is out of date.
    """

    def __init__(
        self,
        template: Template,
        policy: Policy,
        config: SessionConfig,
        cache: CacheOperations,
        log: Log,
        history: Sequence[Turn],
        *,
        probe_length: int,
    ) -> None:
        self.history: list[Turn] = []
        self.answer: Answer | None = None
        self.suspended: list[Answer] = []
        self.interruptible = policy.interruptible  # of the answers to come
        self.max_answer = config.max_answer  # tokens of the answers to come
        self.is_talked_over = False  # words are being heard, which may cut the answer
        self.num_answers = 0
        self.epoch = 0
        self._num_trimmed = 0  # turns left out so far: chance counts them, too
        self._template = template
        self.policy = policy
        self._config = config
        self._cache = cache
        self._log = log
        self._was_cut = False  # whether the last turn of the history was
        self._compaction: Compaction | None = None
        self._crowded: Answer | None = None  # while it runs, the cache has no place for a compaction
        self._probe_length = probe_length
        self._room = max(len(template.header) + config.min_room, probe_length)  # tokens wanted for an answer
        self.sequence = cache.open(self._lay_out(history))
        self.history.extend(history)

    @property
    def is_making_room(self) -> bool:
        """Whether a shorter context is being built."""
        return self._compaction is not None

    @property
    def backlog(self) -> int:
        """Tokens that wait to be fed, without those of `compaction_backlog` and `deferrable_backlog`."""
        is_well_ahead = self.answer is not None and self._is_ahead(self.answer, self._lookahead // 2 + 1)
        sequence, compaction = 0 if is_well_ahead else self.sequence.num_waiting, self._compaction
        return sequence + (compaction.sequence.num_waiting if compaction is not None and compaction.is_awaited else 0)

    @property
    def compaction_backlog(self) -> int:
        """Tokens of a compaction that nobody waits for."""
        compaction = self._compaction
        return 0 if compaction is None or compaction.is_awaited else compaction.sequence.num_waiting

    @property
    def deferrable_backlog(self) -> int:
        """Tokens with which an answer that is well ahead of its listener can go on."""
        answer = self.answer
        if answer is None or not self._is_ahead(answer, self._lookahead // 2 + 1):
            return 0
        return 0 if self._is_ahead(answer, self._lookahead) else self.sequence.num_waiting

    @property
    def last_role(self) -> Role | None:
        """Who had the last turn of the history."""
        return self.history[-1].role if self.history else None

    def end(self) -> tuple[int, tuple[Token, ...], bool]:
        """Where the next user turn forks from the sequence, what opens it there, and whether it is the first."""
        answer, was_cut = self.answer, self._was_cut
        at, last = len(self.sequence.items), self.last_role
        if answer is not None and answer.num_heard:
            at, last, was_cut = answer.heard_at, Role.ASSISTANT, True
        elif answer is not None:
            at, last = answer.mark, last if answer.user_text is None else Role.USER
        note = self.policy.cut_note if was_cut else ""
        return at, _opening(self._template, last, cut_note=note), last is None

    def has_room(self, at: int, ids: tuple[Token, ...], *, to_answer: bool) -> bool:
        """Whether behind a turn of `ids` at `at` there is room for an answer, or, without `to_answer`, to judge it.

        If no answer would fit, room is being made; where it is wanted at once, the turn waits for that.
        """
        left = self._config.max_length - at - len(ids)
        if left < self._room:
            self._start_compaction()
        is_enough = left >= (self._room if to_answer or self._is_crowded else self._probe_length)
        if not is_enough and self._compaction is not None:
            self._compaction.is_awaited = True
        return is_enough

    # ------------------------------------------------------------------ answering

    def adopt(self, channel: TokenSequence) -> None:
        """`channel`, which continues the sequence, is the sequence from now on."""
        self._cache.free(self.sequence)
        self.sequence = channel

    def begin_answer(self, turn_at: int, user_text: str | None, utterances: Sequence[Utterance]) -> Answer:
        """The assistant's turn opens behind the sequence; the user's turn began at `turn_at`.

        Raises:
            TemplateError: nobody asked (`user_text` is None), and the template wants that somebody does.
        """
        opener = self._template.joint(Role.USER if user_text is not None else self.last_role, Role.ASSISTANT)
        mark = len(self.sequence.items)
        self.sequence.items.extend(opener)
        self.answer = Answer(
            self.num_answers,
            self.sequence,
            self._template.detokenizer(),
            turn_at=turn_at,
            mark=mark,
            num_turns=len(self.history),
            user_text=user_text,
            utterances=utterances,
            interruptible=self.interruptible,
            begun_at=self._log.now,
            max_tokens=self.max_answer,
        )
        self.num_answers += 1
        return self.answer

    def speak_up(self) -> None:
        """An answer without new words: to the user's turn that ends the history, or of the assistant's own accord."""
        if self.last_role is Role.USER:
            text = self.history[-1].text
            self._reopen(len(self.history) - 1)
            size = len(self._template.lay_out([Turn(Role.USER, text)], self.last_role))
            self.begin_answer(len(self.sequence.items) - size, text, [Utterance("history", text, final=True)])
        else:
            try:
                self.begin_answer(len(self.sequence.items), None, ())
            except TemplateError as error:
                self._log.add(Refused(self._log.now, "respond", str(error)))
        self.release()

    def plan_compaction(self, compaction_limit: int | None) -> None:
        """Feed part of a compaction: `compaction_limit` tokens (None: the rest of the pass) if nothing waits for it."""
        compaction = self._compaction
        if compaction is None or compaction.sequence.fed is not None:
            return
        if compaction_limit is not None and not compaction.is_awaited:
            self._cache.room = compaction_limit
        if size := self._cache.portion(compaction.sequence):
            self._cache.feed(compaction.sequence, size)

    def plan_answer(self) -> None:
        """Feed what is pending there: what the answer follows, or its last token, to draw the next."""
        sequence, answer = self.sequence, self.answer
        self._cache.roll_back(sequence)
        if sequence.fed is not None:
            return
        if answer is not None and self._is_ahead(answer, self._lookahead):
            return
        if answer is not None and not answer.finished and not sequence.num_pending:
            sequence.forget_last()  # its result was discarded: the token has to be fed again to draw the next
        size = self._cache.portion(sequence)
        if size == 0:
            return
        if answer is None or answer.finished or size < sequence.num_pending:
            self._cache.feed(sequence, size)
            return
        index = answer.num_tokens
        draw = Draw(self._config.sampling, uniform(self._config.seed, self._num_trimmed + answer.num_turns, index))
        self._cache.feed(sequence, size, draw=draw, owner=answer, version=index)

    @property
    def _lookahead(self) -> int:
        """Tokens of an answer that may be unheard.

        What is cut will not have been computed in vain, and when words come, the backend is hardly ever busy.
        """
        config = self._config
        return min(config.lookahead, config.lookahead_listening) if self.is_talked_over else config.lookahead

    def _is_ahead(self, answer: Answer, least: int) -> bool:
        """Whether so many tokens of a running answer are unheard."""
        return self._config.heard == "reported" and not answer.finished and answer.num_waiting_tokens >= least

    def go_on(self, answer: Answer, tokens: Sequence[Token]) -> None:
        """The model drew `tokens` for the running answer."""
        for token in tokens:
            if token in self._template.stop_tokens:
                self._finish(answer, "stop")
            else:
                self._push(answer, token)
            if answer.finished:
                break
        self._say(answer)

    def cut_short(self) -> bool:
        """End the running answer here, for want of room. Returns whether there was one that had not ended."""
        answer = self.answer
        if answer is None or answer.finished:
            return False
        self._finish(answer, "length")
        self._say(answer)
        return True

    def release(self) -> None:
        """Let the running answer be heard. If it answers words that mean "go on", what was cut goes on instead."""
        answer = self.answer
        if answer is None or answer.is_released:
            return
        answer.is_released = True
        if self.suspended and answer.user_text and self.policy.asks_to_resume(answer.user_text):
            self._resume_as_asked(self.suspended[-1], answer)
            return
        self._log.add(Released(self._log.now, answer.id))
        self._say(answer)

    def hear(self, answer: Answer, position: int) -> None:
        """The user has heard the running answer up to `position`."""
        if answer.hear(position):
            self._log.add(Heard(self._log.now, answer.id, answer.num_heard))
        if answer.is_heard_to_the_end:
            self._log.add(Committed(self._log.now, answer.id, answer.text))
            self._close_turn(answer, was_cut=False)

    def _push(self, answer: Answer, token: Token) -> None:
        answer.sequence.items.append(token)
        answer.push(token)
        if answer.num_tokens >= answer.max_tokens or len(answer.sequence.items) >= self._config.max_length:
            self._finish(answer, "length")

    def _finish(self, answer: Answer, reason: str) -> None:
        answer.finish(reason)
        self._log.add(Finished(self._log.now, answer.id, reason))

    def _say(self, answer: Answer) -> None:
        """Let out what there is of a released answer."""
        if not answer.is_released:
            return
        start = answer.num_said
        if len(answer.text) > start:
            answer.num_said = len(answer.text)
            self._log.add(Said(self._log.now, answer.id, start, answer.text[start:]))
        self.hear(answer, answer.num_said if self._config.heard == "shown" else answer.num_reported)

    def _close_turn(self, answer: Answer, *, was_cut: bool) -> None:
        self.history += answer.turns
        self._was_cut = was_cut
        self.answer = None
        if len(self.sequence.items) > self._config.max_length * 3 // 4:
            self._start_compaction()

    # ------------------------------------------------------------------ cutting and resuming

    def silence(self) -> None:
        """End the running answer: it can be resumed if something of it was heard, and is withdrawn otherwise."""
        answer = self.answer
        if answer is not None and answer.num_heard:
            self.suspend(answer)
        elif answer is not None:
            self._roll_back_turn(answer)
            self._log.add(Withdrawn(self._log.now, answer.id))

    def suspend(self, answer: Answer) -> None:
        """Cut the running answer where it has been heard; the live branch goes on from there."""
        self.sequence = self._cache.fork(answer.sequence, answer.heard_at)
        self.suspended.append(answer)
        if len(self.suspended) > MAX_SUSPENDED:
            self._forget_oldest()
        self._log.add(Suspended(self._log.now, answer.id, answer.heard_text, answer.unheard_text))
        self._close_turn(answer, was_cut=True)

    def take_back(self, answer: Answer) -> TokenSequence:
        """Undo the running answer, of which nothing was heard. Returns a channel that still has the user's words."""
        words = self._cache.fork(self.sequence, answer.mark)
        self._roll_back_turn(answer)
        return words

    def _roll_back_turn(self, answer: Answer) -> None:
        self.sequence.shorten(answer.turn_at)
        self.answer = None
        self.epoch += 1

    def can_resume_exactly(self, cut: Answer | None) -> bool:
        """Whether `cut` is suspended and no turn was committed since, so that its KV still continues the branch."""
        return cut is not None and cut in self.suspended and len(self.history) == cut.num_turns + len(cut.turns)

    def resume(self) -> None:
        """Let the answer that was cut last go on (design rule 6)."""
        cut = self.suspended[-1]
        self.silence()
        if self.can_resume_exactly(cut):
            self.resume_exactly(cut)
        elif cut not in self.suspended:  # cutting the running answer left no place for it
            self._log.add(Refused(self._log.now, "resume", "the suspended answer had to be released"))
        else:
            self.epoch += 1
            self._replay(cut, self._answer_nobody_asked_for())

    def resume_exactly(self, cut: Answer) -> None:
        """`cut` goes on, with its own KV if that was not given up."""
        self.suspended.remove(cut)
        if cut.is_evicted:  # the live branch ends where the answer was cut
            self.sequence.replace_tail(cut.heard_at, cut.sequence.items[cut.heard_at :])
            cut.sequence, cut.is_evicted = self.sequence, False
        else:
            self._cache.free(self.sequence)
            self.sequence = cut.sequence
        self._reopen(cut.num_turns)
        self.answer = cut
        self.epoch += 1
        cut.rewind()
        self._log.add(Resumed(self._log.now, cut.id, cut.id, exact=True))
        self._say(cut)

    def _resume_as_asked(self, cut: Answer, asked: Answer) -> None:
        """`asked` answers words that mean "go on"."""
        if self.can_resume_exactly(cut):
            self.resume()
        else:
            self.sequence.shorten(asked.mark)
            self._replay(cut, self.begin_answer(asked.turn_at, asked.user_text, asked.utterances))

    def _answer_nobody_asked_for(self) -> Answer:
        try:
            return self.begin_answer(len(self.sequence.items), None, ())
        except TemplateError:  # strict alternation: somebody has to ask
            text = next(iter(self.policy.resume_phrases), "go on")
            at, opening, is_first = self.end()
            self.sequence.items.extend((*opening, *self._template.user(text, first=is_first)))
            self._log.add(Promoted(self._log.now, "resume", text, self.num_answers))
            return self.begin_answer(at, text, [Utterance("resume", text, final=True)])

    def _replay(self, cut: Answer, answer: Answer) -> None:
        """What was not heard of `cut` is forced into `answer`, which goes on from there."""
        self.suspended.remove(cut)
        self._release_kv(cut)
        answer.is_released = True
        self._log.add(Resumed(self._log.now, answer.id, cut.id, exact=False))
        for token in cut.sequence.items[cut.heard_at : cut.end_at]:
            if not answer.finished:
                self._push(answer, token)
        if cut.finished == "stop" and not answer.finished:
            self._finish(answer, cut.finished)
        self._say(answer)

    def evict(self) -> bool:
        """Give up the KV of the oldest suspended answer that has any. Returns whether there was one."""
        cut = next((cut for cut in self.suspended if not cut.is_evicted), None)
        if cut is None:
            return False
        self._release_kv(cut)
        return True

    def forget_suspended(self) -> None:
        """No answer that was cut can be resumed any more."""
        while self.suspended:
            self._forget_oldest()

    def _release_kv(self, cut: Answer) -> None:
        if not cut.is_evicted:
            self._cache.free(cut.sequence)
            cut.is_evicted = True

    def _forget_oldest(self) -> None:
        self._release_kv(self.suspended.pop(0))

    # ------------------------------------------------------------------ long and edited conversations

    def replace(self, history: Sequence[Turn], template: Template) -> None:
        """Begin anew with `history` in `template`; the running answer and the suspended ones are given up.

        Raises:
            ContextOverflow, TemplateError: see `Session.edit`.
        """
        before, self._template = self._template, template
        try:
            items = self._lay_out(history)
        except UsageError:
            self._template = before
            raise
        self.free()
        self.sequence = self._cache.open(items)
        self.history, self._was_cut = list(history), False
        self.epoch += 1

    def free(self) -> None:
        """Free every channel."""
        self.forget_suspended()
        self.abandon_compaction()
        self.answer = None
        self._cache.free(self.sequence)

    def swap_if_compacted(self) -> bool:
        """Go over to the rebuilt context, if it is ready and no answer is running. Returns whether that was so."""
        compaction = self._compaction
        if compaction is None or self.answer is not None or not compaction.catch_up(self.history):
            return False
        self._compaction = None
        self._swap(compaction)
        return True

    def trim_at_once(self) -> bool:
        """Leave out the older half, and feed the rest anew. Returns whether there was anything to leave out."""
        if self.answer is not None:
            return False
        compaction = Compaction(self._template, self.history, len(self.sequence.items) // 2, self._cache)
        if compaction.num_dropped:
            self._swap(compaction)
            return True
        self._cache.free(compaction.sequence)
        return False

    def give_up_compaction(self) -> bool:
        """There is no room for the compaction under way. Returns whether there was one.

        It is not begun again while the same answer runs, since it would fail again; without one, the context is
        trimmed at once instead.
        """
        if not self.abandon_compaction():
            return False
        self._crowded = self.answer
        self.trim_at_once()
        return True

    def abandon_compaction(self) -> bool:
        """Forget a compaction under way. Returns whether there was one."""
        if self._compaction is None:
            return False
        self._cache.free(self._compaction.sequence)
        self._compaction = None
        return True

    @property
    def _is_crowded(self) -> bool:
        return self._crowded is not None and self._crowded is self.answer

    def _start_compaction(self) -> None:
        if self._compaction is None and not self._is_crowded:
            # What the running answer and its question take will be in it, too, by the time it is put to use.
            running = 0 if self.answer is None else len(self.sequence.items) - self.answer.turn_at
            budget = max(0, self._config.max_length // 2 - running)
            self._compaction = Compaction(self._template, self.history, budget, self._cache)

    def _swap(self, compaction: Compaction) -> None:
        self.forget_suspended()
        self.adopt(compaction.sequence)
        self.epoch += 1
        del self.history[: compaction.num_dropped]
        self._num_trimmed += compaction.num_dropped
        self._log.add(Trimmed(self._log.now, compaction.num_dropped, len(self.sequence.items)))

    def _reopen(self, num_kept: int) -> None:
        """Turns behind the first `num_kept` are open again."""
        del self.history[num_kept:]
        if self._compaction is not None and self._compaction.num_laid > num_kept:
            self.abandon_compaction()  # it has them as they were; it is begun anew when a turn ends

    def _lay_out(self, turns: Sequence[Turn]) -> list[Token]:
        if len(self._template.begin) > self._config.max_length // 2:  # no compaction could ever make room
            raise ContextOverflow(
                f"the system prompt takes {len(self._template.begin)} tokens of a context of "
                f"{self._config.max_length}; shorten it to half of that, or raise max_length"
            )
        items = [*self._template.begin, *self._template.lay_out(turns)]
        limit = self._config.max_length - self._config.max_user_text - self._config.min_room
        if len(items) > limit:
            raise ContextOverflow(
                f"system prompt and history take {len(items)} tokens; at most {limit} of the context of "
                f"{self._config.max_length} leave room for a turn: shorten them, or raise max_length"
            )
        return items


def _opening(template: Template, last: Role | None, *, cut_note: str = "") -> tuple[Token, ...]:
    """What stands between the live branch, on which `last` spoke last, and the opener of a user's turn.

    `cut_note` is written behind an assistant's turn that was cut.
    """
    joint = template.joint(last, Role.USER)
    return (*template.encode(cut_note), *joint) if cut_note and last is Role.ASSISTANT else joint
