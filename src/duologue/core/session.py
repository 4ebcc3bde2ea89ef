"""One conversation as a pure state machine: it is told what was heard, and says what to run and what happened.

    hear · heard · advance · respond · stop · resume · edit ─▶ Session ─▶ plan ─▶ (a forward pass) ─▶ take ─▶ events

Here is the listening side, the decisions, and all that can be told and asked; the speaking side is its `OutputChannel`.
Commands change only what is wanted; what that means for the KV cache is worked out in `plan`, where every piece of work
gets a ticket, and a result that nobody waits for any more is discarded (design rule 9).
"""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Protocol

from duologue.core.answer import Answer, Utterance
from duologue.core.backend import Extend, Step
from duologue.core.cache import CacheOperations, Plan
from duologue.core.config import SessionConfig
from duologue.core.events import Decided, Dropped, Edited, Event, Held, Log, Promoted, Received, Refused, TakenBack
from duologue.core.input_channel import Input, Memory
from duologue.core.output_channel import OutputChannel
from duologue.core.policy import Policy
from duologue.core.prompt import Probe
from duologue.core.transitions import Floor, Interruptible, Transition, transition
from duologue.errors import ContextOverflow, UsageError
from duologue.text.template import Template
from duologue.text.tokenizer import well_formed
from duologue.types import InputState, Token, Turn

_CHARACTERS_PER_TOKEN = 4  # about


class Phase(StrEnum):
    """What is going on, for the accounts of `trace`."""

    SILENCE = "silence"
    LISTENING = "listening"
    SPEAKING = "speaking"
    OVERLAP = "overlap"


class BaseSession(Protocol):
    """One conversation as a state machine; see `Session` for what each name means."""

    @property
    def probe(self) -> Probe: ...
    @property
    def config(self) -> SessionConfig: ...
    @property
    def now(self) -> float: ...
    @property
    def phase(self) -> Phase: ...
    @property
    def history(self) -> list[Turn]: ...
    @property
    def running(self) -> Answer | None: ...
    @property
    def input_text(self) -> str | None: ...
    @property
    def backlog(self) -> int: ...
    @property
    def compaction_backlog(self) -> int: ...
    @property
    def deferrable_backlog(self) -> int: ...
    @property
    def next_deadline(self) -> float | None: ...

    def advance(self, now: float) -> list[Event]: ...
    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> list[Event]: ...
    def heard(self, position: int, *, answer: int | None = None) -> list[Event]: ...
    def respond(self) -> list[Event]: ...
    def stop(self) -> list[Event]: ...
    def resume(self) -> list[Event]: ...
    def edit(self, history: Sequence[Turn]) -> list[Event]: ...

    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan: ...
    def take(self, steps: Sequence[Step]) -> list[Event]: ...
    def lose(self, batch: Sequence[Extend]) -> None: ...
    def evict(self) -> bool: ...
    def make_room(self) -> bool: ...
    def close(self) -> Plan: ...


class SessionFactory(Protocol):
    """Makes a session, as the class `Session` does."""

    def __call__(
        self,
        template: Template,
        probe: Probe,
        *,
        policy: Policy | None = None,
        config: SessionConfig | None = None,
        history: Sequence[Turn] = (),
    ) -> BaseSession: ...


class Session:
    """One conversation: at most one input and one running answer."""

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
            ContextOverflow: the system prompt, the history or the probe leaves too little room.
            TemplateError: the model's template does not allow these turns.
        """
        self.template = template
        self.probe = probe
        self.policy = policy or Policy()
        self.config = config or SessionConfig()
        self._log = Log()
        self._cache = CacheOperations(self.config.chunk)
        self._memory = Memory()
        self._input: Input | None = None
        self._kept: Input | None = None  # dropped with its words in the cache, since they may grow
        self._stop: Input | None = None  # the words that were last taken for a request to stop; they may grow, too
        probe_length = len(probe.tokens)
        if probe_length > self.config.max_length // 4:
            raise ContextOverflow(
                f"a probe of {probe_length} tokens is too long for a context of {self.config.max_length}: it may take "
                f"a quarter. Give a context of {4 * probe_length} or more, or an adapter with a shorter probe"
            )
        self._output = OutputChannel(
            template, self.policy, self.config, self._cache, self._log, history, probe_length=probe_length
        )
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
    def now(self) -> float:
        """The session's time in seconds."""
        return self._log.now

    @property
    def floor(self) -> Floor:
        """Who has the floor."""
        if self.running is None:
            return Floor.SILENT
        return Floor.SPEAKING if self.running.num_heard else Floor.PREPARED

    @property
    def phase(self) -> Phase:
        """What is going on."""
        listening = self._input is not None and self._input.needs_score
        if self.running is not None:
            return Phase.OVERLAP if listening else Phase.SPEAKING
        return Phase.LISTENING if listening else Phase.SILENCE

    @property
    def history(self) -> list[Turn]:
        """What was said to the assistant, and what was heard of it, as far back as the context reaches."""
        answer = self.running
        return self._output.history + (answer.turns if answer is not None and answer.num_heard else [])

    @property
    def running(self) -> Answer | None:
        """The running answer, to be read: its id, its text, what has been heard of it."""
        return self._output.answer

    @property
    def input_text(self) -> str | None:
        """The words that are being heard and have not been answered or dropped; None while there are none."""
        return self._input.text if self._input else None

    @property
    def num_suspended(self) -> int:
        """Answers that can be resumed."""
        return len(self._output.suspended)

    @property
    def backlog(self) -> int:
        """About how many tokens wait to be fed, without those in flight and those of the other two backlogs."""
        listening = self._input
        if listening is None or (listening.sequence is None and not listening.needs_score):
            return self._output.backlog
        if listening.sequence is None:  # not in tokens yet
            return self._output.backlog + len(listening.text) // _CHARACTERS_PER_TOKEN + len(self.probe.tokens)
        num_probes = len(self.probe.tokens) if listening.needs_score and listening.sequence.fed is None else 0
        return self._output.backlog + listening.sequence.num_waiting + num_probes

    @property
    def compaction_backlog(self) -> int:
        """Tokens of a shorter context in the making, which nobody waits for while there is room in the old one."""
        return self._output.compaction_backlog

    @property
    def deferrable_backlog(self) -> int:
        """Tokens of an answer that is well ahead of its listener: they can wait for a pass that is made anyway."""
        return self._output.deferrable_backlog

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
        self._log.now = now
        answer, waiting = self.running, self._input
        if answer and not answer.is_released and answer.begun_at + self.policy.settle_s <= now:
            self._output.release()
        elif waiting and self._is_waiting(waiting) and waiting.changed_at + self.policy.patience_s <= now:
            self._lose_patience(waiting)
        return self._settle()

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> list[Event]:
        """The words of `utterance` are now `text`: all of it so far, which may also take back what was heard before.

        Empty text is the onset of speech. `final` ends the utterance: the same id names a new one afterwards.
        """
        text = well_formed(text).strip()
        answer, listening = self.running, self._input
        known = listening.find(utterance) if listening else None
        answered = answer.find(utterance) if answer else None
        grown = known or answered
        if grown is not None and grown.text == text and not final:
            return self._settle()
        if grown is None and self._memory.was_dropped(utterance, text, final=final):
            if final:
                self._forget_kept()
                self._stop = None
            return self._settle()
        self._log.add(Received(self.now, utterance, text, final))
        if answer and answered and answered.text == text:
            answered.final = True  # only the end is new
            self._memory.end(utterance)
            self._release_if_sure(answer)
            return self._settle()
        if answer and answered and not answer.num_heard:
            listening, known = self._take_back(answer), answered
        num_answered = self._memory.num_answered(utterance, text)
        if final:
            self._memory.end(utterance)
        if known is None:
            if not text[num_answered:].strip() and (final or num_answered):
                return self._settle()  # nothing was said, or nothing more
            if listening is None:
                listening = self._input = self._brought_back(utterance)
            known = listening.find(utterance)
            if known is None:
                known = Utterance(utterance)
                listening.utterances.append(known)
            if answer is not None:
                answer.begun_at = self.now  # somebody speaks: what is prepared waits for what it will be
        assert listening is not None, "a known utterance is part of an input"
        grew, known.text, known.final, known.skip = known.text != text, text, final, num_answered
        if grew:
            self._words_changed(listening)
        if known.final and not listening.text and self._input is listening:
            self._drop(listening, "retracted")
        return self._settle()

    def retract(self, utterance: str) -> list[Event]:
        """Take back the words of `utterance` that are being heard, also if it has ended."""
        listening = self._input
        found = [one for one in listening.utterances if one.id == utterance] if listening else []
        if listening is None or not found:
            self._log.add(Refused(self.now, "retract", f"nothing of {utterance!r} is being heard"))
            return self._settle()
        self._log.add(Received(self.now, utterance, "", True))
        self._memory.end(utterance)
        if len(found) == len(listening.utterances):
            self._drop(listening, "retracted")
            self._memory.end(utterance)
        else:
            listening.utterances = [one for one in listening.utterances if one.id != utterance]
            self._words_changed(listening)
        return self._settle()

    def heard(self, position: int, *, answer: int | None = None) -> list[Event]:
        """The user has heard the answer (the running one, or the one of that id) up to character `position`.

        It is rounded down to a whole word. Reports that come late, for an answer that was cut, change nothing.

        Raises:
            UsageError: there has never been such an answer, or the position is beyond what was said.
        """
        if answer is not None and not 0 <= answer < self._output.num_answers:
            raise UsageError(f"there is no answer {answer}; the newest is {self._output.num_answers - 1}")
        running = self.running
        if running is None or (answer is not None and answer != running.id):
            return self._settle()
        if not 0 <= position <= running.num_said:
            raise UsageError(f"position {position} is not within the {running.num_said} characters said so far")
        running.num_reported = max(running.num_reported, position)
        self._output.hear(running, position)
        return self._settle()

    def respond(self) -> list[Event]:
        """Answer now: what is being heard, whatever the model thinks of it; without words, let the assistant speak."""
        if self._input and self._input.text:
            self._answer_now(self._input)
        elif self.running:
            self._output.release()
        else:
            self._output.speak_up()
        return self._settle()

    def stop(self) -> list[Event]:
        """End the assistant's speech. What is being heard meanwhile stays."""
        if self.running is None:
            self._log.add(Refused(self.now, "stop", "no answer is running"))
        self._output.silence()
        return self._settle()

    def resume(self) -> list[Event]:
        """Let the answer that was cut last go on from the word that was heard last (design rule 6)."""
        if self._output.suspended:
            self._output.resume()
        else:
            self._log.add(Refused(self.now, "resume", "no answer is suspended"))
        return self._settle()

    def edit(self, history: Sequence[Turn], *, template: Template | None = None) -> list[Event]:
        """Replace the history. A running answer, suspended ones and the words being heard are given up.

        Args:
            template: that of this session with another system prompt, which holds from now on.

        Raises:
            ContextOverflow: the turns do not fit.
            TemplateError: the model's template does not allow these turns.
        """
        template = template or self.template
        self._output.replace(history, template)
        self.template = template
        if self._input:
            self._drop(self._input, "edit")
        self._log.add(Edited(self.now, tuple(history)))
        return self._settle()

    def protect(self, interruptible: Interruptible) -> None:
        """Say what may cut the running answer, and those that follow until said otherwise."""
        self._output.interruptible = interruptible
        if self.running:
            self.running.interruptible = interruptible

    def limit(self, max_answer: int) -> None:
        """Answers that begin from now on have at most `max_answer` tokens.

        Raises:
            UsageError: that is none.
        """
        if max_answer < 1:
            raise UsageError(f"an answer of {max_answer} tokens says nothing; allow at least 1")
        self._output.max_answer = max_answer

    def adjust(self, policy: Policy) -> None:
        """Decide by `policy` from now on. What may cut an answer is not changed by it; see `protect`."""
        self.policy = self._output.policy = policy

    def make_room(self) -> bool:
        """The cache is full: give up what is missed least. Returns whether anything was left to give up.

        Words that were ignored and suspended answers (see `evict`) go first, then a compaction in progress, then the
        words being heard; then the answer ends here, and last the older half of the conversation is left out at once.
        """
        branch, listening = self._output, self._input
        if self._forget_kept() or branch.evict():
            return True
        if branch.give_up_compaction():
            self._detach(listening)  # it is forked again, or waits, as there is room then
            return True
        if listening is not None and listening.sequence is not None:
            self._log.add(Refused(self.now, listening.id, "no room in the cache"))
            self._drop(listening, "no room")
            return True
        return branch.cut_short() or branch.trim_at_once()

    def evict(self) -> bool:
        """Give up the KV of a suspended answer. Returns whether there was any.

        It can still be resumed: what was not heard of it is fed again then.
        """
        return self._output.evict()

    def close(self) -> Plan:
        """End the conversation: the returned plan frees everything it holds."""
        self._forget_kept()
        self._detach(self._input)
        self._input = None
        self._output.free()
        return self._cache.flush()

    # ------------------------------------------------------------------ plan and take

    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan:
        """What to run next: changes to the cache, then one pass with all that is pending, listening included.

        The pass feeds at most `limit` tokens: those of the answer first, then the words being heard, then those of a
        compaction. The rest stays pending. The probe is never split: a limit below its length postpones the decision.
        `compaction_limit` is a separate budget, on top of `limit`, for a compaction that nothing waits for.
        """
        self._cache.room = limit
        self._attach_input()  # first: where there is no room for it, a compaction begins, and that is to be fed
        self._output.plan_answer()
        self._plan_input()
        self._output.plan_compaction(compaction_limit)
        return self._cache.flush()

    def take(self, steps: Sequence[Step]) -> list[Event]:
        """The results of a pass. What nobody waits for any more is discarded."""
        judged: tuple[Input, tuple[float, ...]] | None = None
        for step in steps:
            work = self._cache.land(step.ticket)
            if work is None or work.owner is None:
                continue
            answer, listening = self.running, self._input
            if answer is not None and work.owner is answer and work.version == answer.num_tokens:
                self._output.go_on(answer, step.tokens)
            elif listening is not None and work.owner is listening and work.version == listening.version:
                judged = listening, step.p
        if judged is not None and judged[0] is self._input:  # after the answer's token: they share the pass
            self._judge(*judged)
        return self._settle()

    def lose(self, batch: Sequence[Extend]) -> None:
        """The pass over `batch` did not take place; its work is planned again."""
        self._cache.lose(batch)

    def _attach_input(self) -> None:
        """Fork the input channel as soon as what it forks from is in the cache."""
        listening, branch = self._input, self._output
        if listening is None or listening.sequence is not None or listening.deferred:
            return
        at, opening, is_first = branch.end()
        if at - branch.sequence.cached > 1:
            return  # what it would share is still being fed: forking now would feed it twice
        ids = (*opening, *self.template.user(listening.text, first=is_first))
        if branch.has_room(at, ids, to_answer=False):
            self._forget_kept()
            channel = self._cache.fork(branch.sequence, at)
            channel.items.extend(ids)
            listening.attach(channel, at, opening, is_first, branch.epoch)
        elif branch.swap_if_compacted():
            self._attach_input()  # there was nothing to be fed for it

    def _plan_input(self) -> None:
        listening = self._input
        if listening is None or listening.sequence is None:
            return
        channel = listening.sequence
        self._cache.roll_back(channel)
        if channel.fed is not None:
            return
        size, probe = self._cache.portion(channel), self.probe
        is_all = size == channel.num_pending
        if is_all and listening.needs_score and self._cache.has_room(size + len(probe.tokens)):
            version = listening.version
            self._cache.feed(channel, size, probe=probe.tokens, watch=probe.watch, owner=listening, version=version)
        elif size:
            self._cache.feed(channel, size)

    # ------------------------------------------------------------------ listening

    def _words_changed(self, listening: Input) -> None:
        listening.grow(self.now)
        limit = self.config.max_user_text
        ids: tuple[Token, ...] = ()
        is_too_long = len(listening.text) > 32 * limit  # hopeless, so it is not even tokenised
        if not is_too_long:
            ids = self.template.user(listening.text, first=listening.is_first)
            is_too_long = len(ids) > limit
        if is_too_long:
            self._log.add(Refused(self.now, listening.id, f"a turn of more than {limit} tokens; say it in parts"))
            self._drop(listening, "too long")
        elif listening.sequence is not None and self._output.has_room(
            listening.at, (*listening.opening, *ids), to_answer=False
        ):
            listening.sequence.replace_tail(listening.at, (*listening.opening, *ids))
        else:
            self._detach(listening)  # there was room for the words that had come before, but not for these

    def _judge(self, listening: Input, p: tuple[float, ...]) -> None:
        answer, speaking = self.running, self.floor is Floor.SPEAKING
        decision = self.policy.decide(self.probe.states, p, speaking=speaking)
        listening.scored, listening.decision = listening.version, decision
        self._log.add(Decided(self.now, listening.id, listening.text, decision, speaking, listening.changed_at))
        interruptible = answer.interruptible if answer else Interruptible.YES
        self._apply[transition(self.floor, decision.state, interruptible)](listening)

    def _hold(self, listening: Input) -> None:
        listening.hold()
        self._log.add(Held(self.now, listening.id, deferred=False))

    def _defer(self, listening: Input) -> None:
        listening.deferred = True
        if listening.decision is not None:
            listening.hold()
        self._log.add(Held(self.now, listening.id, deferred=True))

    def _drop_unwanted(self, listening: Input) -> None:
        assert listening.decision is not None, "it was judged"
        state = listening.decision.state
        newest = listening.drop_newest() if state is InputState.IGNORE else None
        if newest is None:
            self._drop(listening, state.value)
            return
        self._memory.drop(newest.utterances)  # an aside beside words that wait: they go on waiting
        self._log.add(Dropped(self.now, newest.id, newest.text, state.value))
        if listening.sequence is not None:
            ids = self.template.user(listening.text, first=listening.is_first)
            listening.sequence.replace_tail(listening.at, (*listening.opening, *ids))

    def _drop(self, listening: Input, reason: str) -> None:
        self._forget_kept()
        if reason == InputState.IGNORE and listening.sequence is not None and listening.may_come_back:
            self._kept = listening
        else:
            self._detach(listening)
        self._input = None
        if reason == InputState.STOP:
            self._stop = listening
        self._memory.drop(listening.utterances)
        self._log.add(Dropped(self.now, listening.id, listening.text, reason))
        cut = listening.interrupted
        was_an_aside = reason in (InputState.IGNORE, "patience", "retracted")
        if cut is not None and was_an_aside and self.running is None and self._output.can_resume_exactly(cut):
            self._output.resume_exactly(cut)  # what had seemed to interrupt it did not

    def _brought_back(self, utterance: str) -> Input:
        """A new input; or the one that was ignored last, whose words are in the cache, if they are what is growing.

        If what is growing has stopped an answer, the new input is what interrupted it.
        """
        kept, stop = self._kept, self._stop
        if kept is None or kept.find(utterance) is None or kept.epoch != self._output.epoch:
            return Input([], self.now, interrupted=stop.interrupted if stop and stop.find(utterance) else None)
        self._kept = None
        kept.come_back()
        return kept

    def _forget_kept(self) -> bool:
        """Free the words that were ignored last. Returns whether there were any."""
        kept, self._kept = self._kept, None
        self._detach(kept)
        return kept is not None

    def _detach(self, listening: Input | None) -> None:
        """Take the channel away; it is forked again from where the live branch ends then."""
        if listening is not None and listening.sequence is not None:
            self._cache.free(listening.sequence)
            listening.sequence = None

    def _halt(self, listening: Input) -> None:
        listening.interrupted = self.running
        self._drop(listening, InputState.STOP.value)
        self._output.silence()

    def _join(self, listening: Input) -> None:
        """A new utterance continues the turn whose answer has not been heard."""
        assert self.running is not None, "there is an answer to take back"
        self._detach(listening)
        self._input = None
        turn = self._take_back(self.running)
        turn.utterances += listening.utterances
        self._words_changed(turn)

    def _take_back(self, answer: Answer) -> Input:
        """Roll the unheard answer back to the mark: its turn is an input again, on a fork that has the words cached."""
        others = self._input.utterances if self._input else []
        self._forget_kept()
        self._detach(self._input)
        turn = self._input = Input([*answer.utterances, *others], self.now, interrupted=answer.interrupted)
        words = self._output.take_back(answer)
        at, opening, is_first = self._output.end()
        turn.attach(words, at, opening, is_first, self._output.epoch)
        self._memory.take_back(answer.utterances)
        self._log.add(TakenBack(self.now, answer.id))
        return turn

    # ------------------------------------------------------------------ answering

    def _promote(self, listening: Input) -> None:
        branch = self._output
        if self.running is not None:
            listening.interrupted = self.running
            branch.suspend(self.running)
        at, opening, is_first = branch.end()
        ids = (*opening, *self.template.user(listening.text, first=is_first))
        if not branch.has_room(at, ids, to_answer=True):
            self._detach(listening)
            self._defer(listening)
            return
        if listening.sequence is not None and listening.is_attached(at, opening, branch.epoch):
            branch.adopt(listening.sequence)
        else:  # more has been heard since the fork: the words go behind that, with the header, in one pass
            self._detach(listening)
            branch.sequence.items.extend(ids)
        self._input = None
        answer = branch.begin_answer(at, listening.text, listening.utterances)
        answer.interrupted = listening.interrupted
        self._memory.answer(listening.utterances)
        self._log.add(Promoted(self.now, listening.id, listening.text, answer.id))
        decision = listening.decision
        is_sure = decision is not None and decision.state is InputState.PROCESS and decision.p >= self.policy.p_sure
        self._release_if_sure(answer, is_sure)

    def _answer_now(self, listening: Input) -> None:
        if self.floor is Floor.PREPARED:
            self._join(listening)
        if self._input is not None:
            self._promote(self._input)
        self._output.release()

    def _lose_patience(self, listening: Input) -> None:
        """Nothing has come of words that were incomplete, or of an onset without any (design rule 7)."""
        answer, decision = self.running, listening.decision
        if decision is None:
            self._drop(listening, "patience")
        elif answer is None or self.floor is not Floor.SPEAKING:
            self._answer_now(listening)
        elif (state := self.policy.decide_unfinished(decision)) is InputState.IGNORE:
            self._drop(listening, "patience")
        else:
            self._apply[transition(self.floor, state, answer.interruptible)](listening)

    def _release_if_sure(self, answer: Answer, is_sure: bool = False) -> None:
        if is_sure or all(utterance.final for utterance in answer.utterances):
            self._output.release()

    # ------------------------------------------------------------------ time and events

    def _is_waiting(self, listening: Input) -> bool:
        """Whether patience runs: the words were judged incomplete, or there are none."""
        return not listening.deferred and (listening.decision is not None or not listening.text)

    def _deadlines(self) -> Iterator[float]:
        if self.running and not self.running.is_released:
            yield self.running.begun_at + self.policy.settle_s
        if self._input and self._is_waiting(self._input):
            yield self._input.changed_at + self.policy.patience_s

    def _settle(self) -> list[Event]:
        """What follows from it: a rebuilt context is put to use, and words that had to wait get their turn."""
        self._output.swap_if_compacted()
        listening = self._input
        self._output.is_talked_over = listening is not None
        if self._kept is not None and self._kept.epoch != self._output.epoch:
            self._forget_kept()
        if listening is not None and listening.epoch != self._output.epoch:
            self._detach(listening)
        if listening is not None and listening.deferred and self.running is None and not self._output.is_making_room:
            self._promote(listening)
        return self._log.drain()
