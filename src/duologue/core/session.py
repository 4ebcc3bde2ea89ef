"""One conversation as a pure state machine: it receives words and commands, and returns what to run and what happened.

    hear · heard · advance · respond · stop · resume · edit ─▶ Session ─▶ plan ─▶ (a forward pass) ─▶ take ─▶ events

A cycle is one `plan`, its forward pass, and `take`. In that pass, the output channel decodes its next token while the
input channel is prefilled and its state is read (DUO, section 2.1). Commands change only what is wanted; `plan` works
out what that means for the KV cache. Every piece of work has a ticket, and results that are no longer wanted are
discarded.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from duologue.core.answer import Answer
from duologue.core.backend import Sampling, Step
from duologue.core.base_session import BaseSession
from duologue.core.cache import Place, Plan, Work
from duologue.core.channels import Channels
from duologue.core.config import SessionConfig
from duologue.core.events import (
    Decided,
    Dropped,
    Edited,
    Event,
    Noticed,
    Received,
    Refused,
)
from duologue.core.input_channel import InputChannel, Prefix, Utterance
from duologue.core.output_channel import OutputChannel
from duologue.core.policy import Policy
from duologue.core.prompt import Probe, Template, lay_out
from duologue.core.transcript import ListenerModel, Transcript
from duologue.core.transitions import Floor, Interruptible
from duologue.core.words import asks_for_a_moment
from duologue.errors import ContextOverflow, require
from duologue.types import InputState, Role, Seq, Token, Turn, VirtualId, well_formed


class Session(BaseSession):
    """The method: an input channel and an output channel, and the transitions between them.

    One model speaks and listens, unless a *listener* is given: then that model judges the words, and another one
    answers. The other one runs on a backend of this machine, or elsewhere if its template says so (`is_elsewhere`);
    then its answers are passed in with `say`.
    """

    def __init__(
        self,
        template: Template,
        probe: Probe,
        *,
        policy: Policy | None = None,
        config: SessionConfig | None = None,
        history: Sequence[Turn] = (),
        listener: ListenerModel | None = None,
    ) -> None:
        """Start a conversation, or continue one that has the turns `history`.

        Args:
            template: that of the model that answers.
            probe: that of the model that judges the words.
            listener: the model that judges the words, if it is not the one that answers.

        Raises:
            ContextOverflow: the system prompt, the history or the probe leaves too little room.
            TemplateError: the model's template does not allow these turns.
            UsageError: answers come from elsewhere, and there is no listener.
        """
        super().__init__(template, probe, config)
        self.policy = policy or Policy()
        self._listener = listener
        place = Place.ELSEWHERE if template.is_elsewhere else Place.SPEAKER
        require(listener is not None or place is Place.SPEAKER, "answers from elsewhere need a listener that decides")
        listening = self.config if listener is None else replace(self.config, max_length=listener.max_length)
        probe_length = probe.length
        if probe_length > listening.max_length // 4:
            raise ContextOverflow(
                f"a probe of {probe_length} tokens is too long for a context of {listening.max_length}: it may take "
                f"a quarter. Give a context of {4 * probe_length} or more, or an adapter with a shorter probe"
            )
        self._output = OutputChannel(
            template,
            self.policy,
            self.config,
            self._cache,
            self._log,
            history,
            probe_length=probe_length if listener is None else 0,
            place=place,
        )
        self._transcript: Transcript | None = None
        if listener is not None:
            self._transcript = Transcript(
                listener.template, listening, self._output, self._cache, probe_length=probe_length
            )
        self._input = InputChannel(
            template if listener is None else listener.template,
            probe,
            listening,
            self._prefix,
            self._cache,
            self._log,
            can_be_asked=None if listener is None else partial(_is_short, template, self.config.max_user_text),
        )
        self._channels = Channels(self._input, self._output, self._transcript, self._log)

    # ------------------------------------------------------------------ what can be seen

    @property
    def floor(self) -> Floor:
        """Who has the floor."""
        return self._channels.floor

    @property
    def is_elsewhere(self) -> bool:
        """Whether answers are passed in with `say`."""
        return self.template.is_elsewhere

    @property
    def most_entries(self) -> int:
        return self._listener.max_length if self._listener and self.is_elsewhere else self.config.max_length

    @property
    def _is_listening(self) -> bool:
        return self._input.current is not None and self._input.current.needs_score

    @property
    def _prefix(self) -> Prefix:
        """What the input channel forks from."""
        return self._transcript or self._output

    @property
    def history(self) -> list[Turn]:
        answer = self.running
        return self._output.history + (answer.turns if answer is not None and answer.num_heard else [])

    @property
    def running(self) -> Answer | None:
        return self._output.answer

    @property
    def num_answers(self) -> int:
        return self._output.num_answers

    @property
    def input_text(self) -> str | None:
        return self._input.current.text if self._input.current else None

    def words_of(self, utterance: str) -> str:
        """The words of `utterance` that are being heard: without those that were answered, and without an echo."""
        said = self._input.current.utterances if self._input.current is not None else []
        return next((one.words for one in reversed(said) if one.id == utterance), "")

    @property
    def num_suspended(self) -> int:
        """Answers that can be resumed."""
        return len(self._output.suspended)

    @property
    def backlog(self) -> int:
        read = self._transcript.backlog if self._transcript and not self._is_forked else 0
        return self._output.backlog(self._lookahead) + self._input.backlog + read

    @property
    def _is_forked(self) -> bool:
        """Whether the words being heard have a sequence, which feeds what has not been read in front of them, too."""
        return self._input.current is not None and self._input.current.sequence is not None

    @property
    def compaction_backlog(self) -> int:
        read = self._transcript.compaction_backlog if self._transcript else 0
        return self._output.compaction_backlog + read

    @property
    def deferrable_backlog(self) -> int:
        return self._output.deferrable_backlog(self._lookahead)

    @property
    def next_deadline(self) -> float | None:
        waits = self._waits()
        return min(at for at, _ in waits) if waits else None

    @property
    def _lookahead(self) -> int:
        """How many tokens of an answer may be unheard.

        While words are being heard, the number is lower: if they cut the answer, less work is wasted, and the backend
        is likely to be idle when the next words arrive.
        """
        config = self.config
        return min(config.lookahead, config.lookahead_listening) if self._input.current else config.lookahead

    # ------------------------------------------------------------------ a cycle

    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan:
        self._cache.room, self._cache.room_to_compact = limit, compaction_limit
        while not self._input.attach() and self._prefix.swap_if_compacted():
            pass  # the shorter context was cached already: there is room in it
        self._output.plan(self._lookahead)
        self._input.plan()
        if self._transcript is not None:
            if not self._is_forked:
                self._transcript.plan()
            self._transcript.plan_compaction()
        self._output.plan_compaction()
        return self._cache.flush()

    def take(self, steps: Sequence[Step]) -> list[Event]:
        forecast: tuple[Work, tuple[tuple[float, ...], ...]] | None = None
        for step in steps:
            work = self._cache.land(step.ticket)
            if work is not None and self._output.is_continued_by(work):
                self._output.go_on(step)
            elif work is not None and step.p:
                forecast = work, step.p
        if self._transcript is not None:
            self._transcript.share(self._input.current)
        if forecast is not None and self._input.is_forecast_by(forecast[0]):  # after the answer: they share the pass
            self._judge(forecast[1])
        return self._settle()

    def wants(self, ticket: int) -> bool:
        work = self._cache.work(ticket)
        if work is None or work.owner is None:
            return work is not None
        return self._output.is_continued_by(work) or self._input.is_forecast_by(work)

    # ------------------------------------------------------------------ listening

    def _hear(self, utterance: str, text: str, *, final: bool) -> None:
        num_echoed = self._num_echoed(utterance, text, final=final)
        self._channels.note_speech(utterance, text, final=final)
        answer = self.running
        answered = answer.find(utterance) if answer else None
        known = self._input.find(utterance) or answered
        if known is not None and known.text == text and not final:
            return
        if known is None and self._input.was_dropped(utterance, text, final=final):
            if final:
                self._channels.replies.end(utterance)
            return
        self._channels.replies.forget(utterance)
        self._log.add(Received(self.now, utterance, text, final))
        if answered is not None and answered.text == text:  # only the end is new
            self._input.end(utterance)
            answered.final = True
            self._output.release_if_due()
            return
        if answer is not None and answered is not None and not answer.num_heard:
            self._channels.reopen_turn(answer)
        if 0 < num_echoed == len(text):
            self._drop_echo(Utterance(utterance, text, final))
            return
        is_new = self._input.find(utterance) is None
        if not self._input.hear(utterance, text, final=final, num_echoed=num_echoed):
            return
        if is_new:
            self._output.hold_back()
        if final and self.input_text == "":
            self._channels.give_up("retracted")

    def _hear_sound(self, evidence: tuple[VirtualId, ...], utterance: str) -> None:
        self._input.hear_sound(evidence, utterance)

    def _num_echoed(self, utterance: str, text: str, *, final: bool) -> int:
        """Characters at the beginning of `text` that are an echo. Words behind the assistant's question are a reply."""
        if not self.policy.echo_s:
            return 0
        within_s = 0.0 if self._output.has_asked else self.policy.echo_s
        num_echoed = self._output.echo.num_echoed(utterance, text, self.now, within_s)
        if final:
            self._output.echo.end(utterance)
        return num_echoed

    def _drop_echo(self, echo: Utterance) -> None:
        """Drop `echo` without judging it. Earlier words of it, which were not recognised as one, are taken back."""
        known, heard = self._input.find(echo.id), self._input.current
        if heard is not None and heard.utterances == [known]:
            heard.utterances = [echo]
            heard.grow(self.now)
            self._channels.give_up("echo")
        else:
            if known is not None:
                self._input.retract(echo.id)
            self._input.memory.drop([echo])
            self._log.add(Dropped(self.now, echo.id, echo.text, "echo"))
        if echo.final:
            self._forget(echo.id)

    def _forget(self, utterance: str) -> None:
        """The utterance has ended, and its id may be used again."""
        self._input.end(utterance)
        self._output.echo.end(utterance)

    def _may_take_back(self, utterance: str) -> bool:
        answer = self.running
        is_unheard = answer is not None and not answer.num_heard and answer.find(utterance) is not None
        return is_unheard or self._input.find(utterance) is not None

    def _refuse(self, utterance: str, excerpt: str, reason: str, *, final: bool) -> None:
        self._channels.replies.forget(utterance)
        self._channels.note_speech(utterance, excerpt, final=final)
        if self._input.find(utterance) is not None:
            self._channels.give_up(reason)
        else:
            self._log.add(Dropped(self.now, utterance, excerpt, reason))
        if final:
            self._forget(utterance)
            if self.running is not None and (answered := self.running.find(utterance)):
                answered.final = True
                self._output.release_if_due()

    def retract(self, utterance: str) -> list[Event]:
        """Take back the words of `utterance` that are being heard, even if it has ended."""
        self._channels.replies.forget(utterance)
        heard = self._input.current
        if heard is None or all(one.id != utterance for one in heard.utterances):
            self._log.add(Refused(self.now, "retract", f"nothing of {utterance!r} is being heard"))
            return self._settle()
        self._log.add(Received(self.now, utterance, "", True))
        if not self._input.retract(utterance):
            self._channels.give_up("retracted")
        self._forget(utterance)
        return self._settle()

    def _judge(self, p: tuple[tuple[float, ...], ...]) -> None:
        """Decide by the forecast, the probabilities `p` of the probe's groups, and make one transition."""
        heard = self._input.heard
        speaking = self.floor is Floor.SPEAKING
        decision = self.policy.decide(self.probe.states, p[0], speaking=speaking, p_ends=p[1][1] if p[1:] else None)
        if self._is_moment_due(heard.text):
            decision = decision.as_incomplete()
            self._channels.replies.clear()
        self._input.score(decision)
        self._log.add(Decided(self.now, heard.id, heard.text, decision, speaking, heard.changed_at))
        self._channels.apply(decision.state)

    # ------------------------------------------------------------------ commands

    def _heard(self, answer: Answer, position: int) -> None:
        self._output.hear(position)
        self._channels.hear_early_reply()

    def respond(self) -> list[Event]:
        if self.input_text:
            self._channels.answer_now()
        elif self.running:
            self._output.release()
        else:
            self._output.speak_up()
        return self._settle()

    def stop(self) -> list[Event]:
        self._channels.forget_asides()
        if self.running is None:
            self._log.add(Refused(self.now, "stop", "no answer is running"))
        self._output.silence()
        return self._settle()

    def resume(self) -> list[Event]:
        if self._output.suspended:
            self._output.resume()
        else:
            self._log.add(Refused(self.now, "resume", "no answer is suspended"))
        return self._settle()

    def lay_out(self, history: Sequence[Turn], template: Template | None = None) -> list[Token]:
        """Ids for `edit`. Nothing changes, so another thread may do this where a history is long.

        Raises:
            ContextOverflow, TemplateError: see `edit`.
        """
        return lay_out(template or self.template, history, self.config)

    def edit(
        self, history: Sequence[Turn], *, template: Template | None = None, laid_out: Sequence[Token] | None = None
    ) -> list[Event]:
        """Replace the history. A running answer, suspended ones and the words being heard are given up.

        Args:
            template: that of this session with another system prompt, which holds from now on.
            laid_out: what `lay_out` returned for `history` and `template`, if that was called before.

        Raises:
            ContextOverflow: the turns do not fit.
            TemplateError: the model's template does not allow these turns.
        """
        template = template or self.template
        require(
            template.is_elsewhere is self.is_elsewhere,
            "another system prompt changes neither who answers nor where",
        )
        self._output.replace(history, template, laid_out)
        self.template = template
        self._channels.forget_asides()
        if self._input.current:
            self._channels.give_up("edit")
        if self._transcript is not None:
            self._transcript.start_over()
        else:
            self._input.template = template
        self._log.add(Edited(self.now, tuple(history)))
        return self._settle()

    def protect(self, interruptible: Interruptible) -> None:
        """Set what may cut the running answer and later ones."""
        self._output.protect(interruptible)

    def limit(self, max_answer: int) -> None:
        """Answers that begin from now on have at most `max_answer` tokens.

        Raises:
            UsageError: `max_answer` is less than 1.
        """
        require(max_answer >= 1, f"an answer of {max_answer} tokens says nothing; allow at least 1")
        self._output.max_answer = max_answer

    def sample(self, sampling: Sampling) -> None:
        """Draw the tokens of answers by `sampling` from now on."""
        self._output.sampling = sampling

    def adjust(self, policy: Policy) -> None:
        """Decide by `policy` from now on. This does not change what may cut an answer; see `protect`."""
        self.policy = self._output.policy = policy

    # ------------------------------------------------------------------ answers from elsewhere

    def say(self, text: str, *, answer: int) -> list[Event]:
        """The speaker goes on with the answer of that id, which is `Promoted.answer`: `text` follows what it said.

        Text for an answer that is not running, since it was cut or taken back, is discarded.

        Raises:
            UsageError: answers do not come from elsewhere.
        """
        return self._speak(answer, lambda: self._output.say(well_formed(text)))

    def finish(self, *, answer: int, reason: str = "stop") -> list[Event]:
        """The speaker has ended the answer of that id: `reason` is `stop`, or `length` if it met a limit.

        Raises:
            UsageError: answers do not come from elsewhere.
        """
        return self._speak(answer, lambda: self._output.finish(reason))

    def fail(self, reason: str, *, answer: int) -> list[Event]:
        """The speaker cannot go on with the answer of that id.

        What it said counts as an answer that ends there. If it said nothing, the user's turn stays in the history
        without an answer; `respond` asks again.

        Raises:
            UsageError: answers do not come from elsewhere.
        """
        return self._speak(answer, lambda: self._output.fail(reason))

    def notice(self, text: str, *, answer: int) -> list[Event]:
        """Pass on `text`, by which a speaker elsewhere explains to people what becomes of the answer of that id."""
        if self.running is not None and self.running.id == answer:
            self._log.add(Noticed(self.now, answer, text))
        return self._settle()

    @property
    def question(self) -> tuple[list[Turn], str]:
        """The turns that the running answer follows, and its text so far."""
        answer = self._output.running
        asked = [] if answer.user_text is None else [Turn(Role.USER, answer.user_text)]
        return [*self._output.history, *asked], answer.text

    def _speak(self, answer: int, act: Callable[[], None]) -> list[Event]:
        """Let the speaker elsewhere `act`, if its answer is still the running one."""
        require(self.is_elsewhere, "this session's own model answers; only a speaker elsewhere is spoken for")
        if self.running is not None and self.running.id == answer:
            act()
        return self._settle()

    # ------------------------------------------------------------------ room

    def make_room(self, full: Collection[Seq] | None = None) -> bool:
        """Give up the least valuable content because the cache is full. Returns whether anything was left to give up.

        Ignored words and suspended answers (see `evict`) go first, then a compaction in progress, then the words being
        heard. After that, the running answer ends here. Last, the older half of the conversation is left out at once.
        In the cache of a listener, the older half of what it has read goes before the words being heard.
        """
        if self._transcript is not None and (full is None or self._transcript.seq in full):
            return self._input.forget_kept() or self._transcript.make_room() or self._refuse_heard()
        output = self._output
        if (self._transcript is None and self._input.forget_kept()) or output.evict():
            return True
        if output.give_up_compaction():
            self._input.detach()  # it is forked again, or waits, as there is room then
            return True
        if self._transcript is None and self._refuse_heard():
            return True
        return output.cut_short() or output.trim_at_once()

    def _refuse_heard(self) -> bool:
        """Give up the words being heard for lack of room. Returns whether any were cached."""
        heard = self._input.current
        if heard is None or heard.sequence is None:
            return False
        self._log.add(Refused(self.now, heard.id, "no room in the cache"))
        self._channels.give_up("no room")
        return True

    def evict(self) -> bool:
        """Give up the KV of a suspended answer. Returns whether there was any.

        The answer can still be resumed: its unheard tokens are then fed again.
        """
        return self._output.evict()

    def _free(self) -> None:
        self._input.free()
        self._output.free()
        if self._transcript is not None:
            self._transcript.free()

    # ------------------------------------------------------------------ time

    def _waits(self) -> list[tuple[float, Callable[[], None]]]:
        """What will be done if nothing else happens, and when (session time)."""
        answer, heard, channels, waits = self._output.answer, self._input.current, self._channels, []
        if answer and not answer.is_released:
            waits.append((self._output.release_at, self._output.release))
        if heard and heard.is_waiting:
            waits.append((heard.changed_at + self._patience_s, self._lose_patience))
        if (aside := channels.aside) is not None and not heard:
            waits.append((aside.since + self.policy.patience_s, channels.resume_after_aside))
        if channels.replies.utterances and not answer and not heard:
            waits.append((channels.replies.changed_at + self.policy.reply_s, channels.answer_ignored))
        return waits

    @property
    def _patience_s(self) -> float:
        """Seconds without new words after which incomplete words are acted on: fewer if a reply is due (choice 14)."""
        is_limited = self.policy.reply_s and self._channels.is_reply_due
        return min(self.policy.patience_s, self.policy.reply_s) if is_limited else self.policy.patience_s

    def _is_moment_due(self, text: str) -> bool:
        """Whether a reply is due, and `text` asks for a moment instead."""
        return self._channels.is_reply_due and asks_for_a_moment(text, self._output.last_heard)

    def _act_on_time(self) -> None:
        for at, act in self._waits():
            if at <= self.now:
                act()
                break

    def _lose_patience(self) -> None:
        """Act on incomplete words, or an onset without words, after which nothing more came (choice 7)."""
        heard = self._input.heard
        decision = heard.decision
        if decision is None or self._is_moment_due(heard.text):
            self._channels.give_up("patience")
        elif self.floor is not Floor.SPEAKING:
            self._channels.answer_now()
        elif (state := self.policy.decide_unfinished(decision)) is InputState.IGNORE:
            self._channels.give_up("patience")
        else:
            self._channels.apply(state)

    def _follow_up(self) -> None:
        """Switch to a compacted context if it is ready, and answer deferred words if that is possible now."""
        self._channels.settle_aside()
        self._output.swap_if_compacted()
        if self._transcript is not None:
            self._transcript.swap_if_compacted()
        self._input.discard_stale()
        heard = self._input.current
        if heard is not None and heard.deferred and self.running is None and self._output.compaction is None:
            self._channels.promote()


def _is_short(template: Template, limit: int, text: str) -> bool:
    """Whether a turn of `text` has at most `limit` tokens."""
    return len(template.user(text, first=False)) <= limit
