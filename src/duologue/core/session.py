"""One conversation as a pure state machine: it receives words and commands, and returns what to run and what happened.

    hear · heard · advance · respond · stop · resume · edit ─▶ Session ─▶ plan ─▶ (a forward pass) ─▶ take ─▶ events

A cycle is one `plan`, its forward pass, and `take`. In that pass, the output channel decodes its next token while the
input channel is prefilled and its state is read (DUO, section 2.1). Commands change only what is wanted; `plan` works
out what that means for the KV cache. Every piece of work has a ticket, and results that are no longer wanted are
discarded.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TypeAlias

from duologue.core.answer import Answer
from duologue.core.backend import Extend, Sampling, Step
from duologue.core.cache import CacheOperations, Place, Plan, TokenSequence, Work
from duologue.core.config import SessionConfig
from duologue.core.events import (
    Decided,
    Dropped,
    Edited,
    Event,
    EventLog,
    Noticed,
    Promoted,
    Received,
    Refused,
    TakenBack,
)
from duologue.core.input_channel import ForkPoint, Input, InputChannel, Prefix, Utterance
from duologue.core.output_channel import OutputChannel
from duologue.core.policy import Policy
from duologue.core.prompt import Probe, Template, lay_out
from duologue.core.speech import TextTemplate
from duologue.core.transcript import ListenerModel, Transcript
from duologue.core.transitions import Floor, Interruptible, Transition, transition
from duologue.core.words import asks_for_a_moment, words_in
from duologue.errors import ContextOverflow, UsageError, require
from duologue.types import InputState, Role, Seq, Token, Turn, VirtualId, well_formed

_EARLY_S = 1.5  # seconds before the end of a question in which words may have been the reply
_EXCERPT = 80  # characters of a refused text that an event carries


class Phase(StrEnum):
    """What is going on; `trace` adds up costs by phase."""

    SILENCE = "silence"
    LISTENING = "listening"
    SPEAKING = "speaking"
    OVERLAP = "overlap"


class BaseSession(ABC):
    """The interface that engines drive: `Session`, and the baselines that it is compared with."""

    def __init__(self, template: Template, probe: Probe, config: SessionConfig | None) -> None:
        self.template = template
        self.probe = probe
        self.config = config or SessionConfig()
        self._log = EventLog()
        self._cache = CacheOperations(self.config.chunk)

    # ------------------------------------------------------------------ what can be seen

    @property
    def now(self) -> float:
        """The session's time in seconds."""
        return self._log.now

    @property
    def most_entries(self) -> int:
        """KV entries of the backend that the conversation may grow to, not counting what can be given up."""
        return self.config.max_length

    @property
    def phase(self) -> Phase:
        """What the next pass is for."""
        if self.running is not None:
            return Phase.OVERLAP if self._is_listening else Phase.SPEAKING
        return Phase.LISTENING if self._is_listening else Phase.SILENCE

    @property
    @abstractmethod
    def _is_listening(self) -> bool:
        """Whether the next pass reads words of the user that have not been judged."""

    @property
    @abstractmethod
    def history(self) -> list[Turn]:
        """What was said to the assistant, and what was heard of it, as far back as the context reaches."""

    @property
    @abstractmethod
    def running(self) -> Answer | None:
        """The running answer, to be read: its id, its text, what has been heard of it."""

    @property
    @abstractmethod
    def num_answers(self) -> int:
        """Answers that have begun so far; their ids count from 0."""

    @property
    @abstractmethod
    def input_text(self) -> str | None:
        """The words that have been neither answered nor dropped; None while there are none."""

    @property
    @abstractmethod
    def backlog(self) -> int:
        """About how many tokens wait to be fed, excluding those in flight and those of the other two backlogs."""

    @property
    def compaction_backlog(self) -> int:
        """Tokens of a compaction in progress that nothing waits for, since the old context still has room."""
        return 0

    @property
    def deferrable_backlog(self) -> int:
        """Tokens of an answer that is well ahead of its listener. They can wait for a pass that runs anyway."""
        return 0

    @property
    @abstractmethod
    def next_deadline(self) -> float | None:
        """Session time at which `advance` will change something, if nothing else happens before."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing more happens unless words, reports of hearing or commands come."""
        waiting = self.backlog or self.deferrable_backlog or self.compaction_backlog
        return not waiting and not self._cache.is_in_flight and self.next_deadline is None

    # ------------------------------------------------------------------ input and commands

    def advance(self, now: float) -> list[Event]:
        """Set the time to `now` (seconds, never decreasing). Waits that have ended take effect.

        Raises:
            UsageError: `now` is earlier than before.
        """
        if now < self.now:
            raise UsageError(f"time goes forward only: {now} is before {self.now}")
        self._log.now = now
        self._act_on_time()
        return self._settle()

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> list[Event]:
        """The words of `utterance` are now `text`: all of it so far, which may also revise earlier words.

        The paper's slices are passed in the same way: each call adds one slice (`duologue.text.slicing.partials`).
        Empty text is the onset of speech. `final` ends the utterance; afterwards, the same id names a new one. A text
        of more than `SessionConfig.max_user_characters` is refused, and nothing of it is kept. Non-speech text (see
        `words_in`) is dropped unread, or takes back the words that it replaces.
        """
        if len(text) > self.config.max_user_characters:
            self._log.add(Refused(self.now, utterance, self.config.too_long))
            self._refuse(utterance, well_formed(text[:_EXCERPT]).strip(), "too long", final=final)
            return self._settle()
        text = well_formed(text).strip()
        words = words_in(text)
        if text and not words and not self._may_take_back(utterance):
            self._log.add(Received(self.now, utterance, text, final))
            self._refuse(utterance, text, "no words", final=final)
        else:
            self._hear(utterance, words, final=final)
        return self._settle()

    def hear_sound(self, evidence: Sequence[VirtualId], *, utterance: str = "user") -> list[Event]:
        """What the sound of `utterance` tells beyond its latest words: soft tokens, from `Model.evidence`.

        They are fed between the words and the probe and rolled back with it, so that no answer is given after them.
        New words are judged without them until they come with their own. Sound of an utterance that is not being heard
        any more changes nothing; nor does any sound in sessions that are not duplex.

        Raises:
            UsageError: there are more of them than the probe has room for.
        """
        require(
            len(evidence) <= self.probe.num_soft,
            f"{len(evidence)} soft tokens, but this probe takes {self.probe.num_soft}; use those of Model.evidence",
        )
        self._hear_sound(tuple(evidence), utterance)
        return self._settle()

    def heard(self, position: int, *, answer: int | None = None) -> list[Event]:
        """The user has heard the answer (the running one, or the one of that id) up to character `position`.

        It is rounded down to a whole word. Late reports, for an answer that was cut, change nothing.

        Raises:
            UsageError: there has never been such an answer, or the position is beyond what was said.
        """
        require(
            answer is None or 0 <= answer < self.num_answers,
            f"there is no answer {answer}; the newest is {self.num_answers - 1}",
        )
        running = self.running
        if running is not None and answer in (None, running.id):
            num_said = running.num_said
            require(0 <= position <= num_said, f"position {position} is not within the {num_said} characters said")
            self._heard(running, position)
        return self._settle()

    @abstractmethod
    def respond(self) -> list[Event]:
        """Answer what is being heard now, whatever its state. Without words, let the assistant speak."""

    @abstractmethod
    def stop(self) -> list[Event]:
        """End the assistant's speech. What is being heard stays."""

    @abstractmethod
    def resume(self) -> list[Event]:
        """Continue the answer that was cut last."""

    @abstractmethod
    def edit(self, history: Sequence[Turn]) -> list[Event]:
        """Replace the history. A running answer, suspended ones and the words being heard are given up.

        Raises:
            ContextOverflow: the turns do not fit.
            TemplateError: the model's template does not allow these turns.
        """

    # ------------------------------------------------------------------ plan and take

    @abstractmethod
    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan:
        """What to run next: operations on the cache, then one pass over everything that is pending.

        The pass feeds at most `limit` tokens: those of the answer first, then the words being heard, then those of a
        compaction. The rest stays pending. The probe is never split: a limit below its length postpones the decision.
        `compaction_limit` is a separate budget, on top of `limit`, for a compaction that nothing waits for.
        """

    @abstractmethod
    def take(self, steps: Sequence[Step]) -> list[Event]:
        """Process the results of a pass. Results that are no longer wanted are discarded."""

    def lose(self, batch: Sequence[Extend]) -> None:
        """Record that the pass over `batch` did not take place. Its work is planned again."""
        self._cache.lose(batch)

    def wants(self, ticket: int) -> bool:
        """Whether the result of the work in flight with `ticket` still counts. If not, it may be lost (see `lose`)."""
        return self._cache.work(ticket) is not None

    @abstractmethod
    def make_room(self, full: Collection[Seq] | None = None) -> bool:
        """Give up the least valuable content because the cache is full. Returns whether there was anything left.

        `full`: the sequences that are in this cache; None: all are.
        """

    def evict(self) -> bool:
        """Give up KV that can be recomputed later. Returns whether there was any."""
        return False

    def close(self) -> Plan:
        """End the conversation: the returned plan frees everything it holds."""
        self._free()
        return self._cache.flush()

    # ------------------------------------------------------------------ implemented by each kind of session

    @abstractmethod
    def _act_on_time(self) -> None:
        """Time has passed."""

    @abstractmethod
    def _hear(self, utterance: str, text: str, *, final: bool) -> None:
        """See `hear`; `text` is well-formed, stripped, not too long, and empty if it is non-speech text."""

    def _hear_sound(self, evidence: tuple[VirtualId, ...], utterance: str) -> None:  # noqa: B027 - others read words
        """See `hear_sound`."""

    @abstractmethod
    def _refuse(self, utterance: str, excerpt: str, reason: str, *, final: bool) -> None:
        """Drop a text of `utterance` that begins with `excerpt`, for `reason`, without reading it."""

    @abstractmethod
    def _may_take_back(self, utterance: str) -> bool:
        """Whether earlier words of `utterance` can still be taken back."""

    @abstractmethod
    def _heard(self, answer: Answer, position: int) -> None:
        """See `heard`; `answer` is the running one."""

    @abstractmethod
    def _free(self) -> None:
        """Free all sequences."""

    def _follow_up(self) -> None:  # noqa: B027 - not every kind has something to do
        """Carry out the consequences of the last change."""

    def _settle(self) -> list[Event]:
        """Carry out the consequences of the last change. Returns the events since the last call."""
        self._follow_up()
        return self._log.drain()


SessionFactory: TypeAlias = Callable[..., BaseSession]
"""Makes a session of some kind, from the arguments that `Session` takes."""


@dataclass(slots=True)
class _Pause:
    """An answer that was cut by words which turned out to be no interruption, while their speaker goes on speaking."""

    answer: int
    speaking: set[str]  # utterances that have not ended
    since: float  # session time when their words last changed


class Session(BaseSession):
    """The method: an input channel and an output channel, and the transitions between them.

    One model speaks and listens, unless a *listener* is given: then that model judges the words, and another one
    answers. The other is on a backend of this machine, or, with a `TextTemplate`, elsewhere: then its answers are
    passed in with `say`.
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
        place = Place.ELSEWHERE if isinstance(template, TextTemplate) else Place.SPEAKER
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
        self._ignored: list[Utterance] = []  # behind the assistant's question: they may be the reply
        self._ignored_at = 0.0  # session time when the last of them was received
        self._has_trusted = False  # such words were answered, and nothing was judged process since
        self._early: Input | None = None  # what was ignored last: it may be the reply to a question that was not over
        self._pause: _Pause | None = None  # of an answer that will resume

    # ------------------------------------------------------------------ what can be seen

    @property
    def floor(self) -> Floor:
        """Who has the floor."""
        if self.running is None:
            return Floor.SILENT
        return Floor.SPEAKING if self.running.num_heard else Floor.PREPARED

    @property
    def is_elsewhere(self) -> bool:
        """Whether answers are passed in with `say`."""
        return isinstance(self.template, TextTemplate)

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
        self._cache.room = limit
        while not self._input.attach() and self._prefix.swap_if_compacted():
            pass  # the shorter context was cached already: there is room in it
        self._output.plan(self._lookahead)
        self._input.plan()
        if self._transcript is not None:
            if not self._is_forked:
                self._transcript.plan()
            self._transcript.plan_compaction(compaction_limit)
        self._output.plan_compaction(compaction_limit)
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
        self._note_speech(utterance, text, final=final)
        answer = self.running
        answered = answer.find(utterance) if answer else None
        known = self._input.find(utterance) or answered
        if known is not None and known.text == text and not final:
            return
        if known is None and self._input.was_dropped(utterance, text, final=final):
            for one in self._ignored:
                one.final = one.final or (final and one.id == utterance)
            return
        self._disregard(utterance)
        self._log.add(Received(self.now, utterance, text, final))
        if answered is not None and answered.text == text:  # only the end is new
            self._input.memory.end(utterance)
            answered.final = True
            self._output.release_if_due()
            return
        if answer is not None and answered is not None and not answer.num_heard:
            self._reopen_turn(answer)
        if 0 < num_echoed == len(text):
            self._drop_echo(Utterance(utterance, text, final))
            return
        is_new = self._input.find(utterance) is None
        if not self._input.hear(utterance, text, final=final, num_echoed=num_echoed):
            return
        if is_new:
            self._output.hold_back()
        if final and self.input_text == "":
            self._give_up("retracted")

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
            self._give_up("echo")
        else:
            if known is not None:
                self._input.retract(echo.id)
            self._input.memory.drop([echo])
            self._log.add(Dropped(self.now, echo.id, echo.text, "echo"))
        if echo.final:
            self._forget(echo.id)

    def _forget(self, utterance: str) -> None:
        """The utterance has ended, and its id may be used again."""
        self._input.memory.end(utterance)
        self._output.echo.end(utterance)

    def _may_take_back(self, utterance: str) -> bool:
        answer = self.running
        is_unheard = answer is not None and not answer.num_heard and answer.find(utterance) is not None
        return is_unheard or self._input.find(utterance) is not None

    def _refuse(self, utterance: str, excerpt: str, reason: str, *, final: bool) -> None:
        self._disregard(utterance)
        self._note_speech(utterance, excerpt, final=final)
        if self._input.find(utterance) is not None:
            self._give_up(reason)
        else:
            self._log.add(Dropped(self.now, utterance, excerpt, reason))
        if final:
            self._forget(utterance)
            if self.running is not None and (answered := self.running.find(utterance)):
                answered.final = True
                self._output.release_if_due()

    def retract(self, utterance: str) -> list[Event]:
        """Take back the words of `utterance` that are being heard, even if it has ended."""
        self._disregard(utterance)
        heard = self._input.current
        if heard is None or all(one.id != utterance for one in heard.utterances):
            self._log.add(Refused(self.now, "retract", f"nothing of {utterance!r} is being heard"))
            return self._settle()
        self._log.add(Received(self.now, utterance, "", True))
        self._forget(utterance)
        if not self._input.retract(utterance):
            self._give_up("retracted")
            self._forget(utterance)
        return self._settle()

    def _judge(self, p: tuple[tuple[float, ...], ...]) -> None:
        """Decide on the words by the probabilities `p` of the probe's groups, and apply one transition.

        See `transitions`.
        """
        heard = self._input.heard
        speaking = self.floor is Floor.SPEAKING
        decision = self.policy.decide(self.probe.states, p[0], speaking=speaking, p_ends=p[1][1] if p[1:] else None)
        if self._is_moment_due(heard.text):
            decision = decision.as_incomplete()
            self._ignored.clear()
        self._input.score(decision)
        self._log.add(Decided(self.now, heard.id, heard.text, decision, speaking, heard.changed_at))
        self._apply_state(decision.state)

    def _apply_state(self, state: InputState) -> None:
        interruptible = self.running.interruptible if self.running else Interruptible.YES
        actions: dict[Transition, Callable[[], None]] = {
            Transition.HOLD: self._hold,
            Transition.DROP: self._drop,
            Transition.PROMOTE: self._promote,
            Transition.INTERRUPT: self._interrupt,
            Transition.HALT: self._halt,
            Transition.TAKE_BACK: self._take_back,
            Transition.WITHDRAW: self._halt,
            Transition.DEFER: self._defer,
        }
        actions[transition(self.floor, state, interruptible)]()  # a table in `self` would be a reference cycle

    # ------------------------------------------------------------------ transitions, in the order of their table

    def _hold(self) -> None:
        """incomplete: the words keep their KV and wait for more.

        As after every decision, the probe is rolled back lazily: it is surplus in the cache from now on, and is
        truncated before anything else is fed.
        """
        self._input.hold()

    def _drop(self) -> None:
        """ignore, or stop while the assistant is silent: the words are dropped; a running answer continues undisturbed.

        If other words are held, only the newest are dropped. The KV is released at once, unless the words may still
        grow; then the channel is kept for a while (see `InputChannel`).
        """
        heard = self._input.heard
        assert heard.decision is not None, "it was judged"
        state = heard.decision.state
        if state is not InputState.IGNORE:
            self._ignored.clear()
            self._give_up(state.value)
        elif not self._input.drop_newest(state.value):
            self._give_up(state.value)
            self._expect_reply(heard)
            self._early = heard if self.floor is Floor.SPEAKING else None

    def _promote(self) -> None:
        """process: the input channel becomes the output channel, and the assistant's header is appended.

        The header is the paper's prompt token. Before it is fed, the probe is rolled back (see `_hold`). If there is no
        room for an answer, the words wait for a compacted context.
        """
        heard, point = self._input.heard, self._output.fork_point()
        words = heard.ids(self.template, first=point.is_first)
        if not self._output.has_room(point, words, to_answer=True):
            self._input.detach()
            self._defer()
            return
        if heard.decision is not None and heard.decision.state is InputState.PROCESS:
            self._has_trusted = False
        self._early = None
        answer = self._output.promote(heard, point, words, self._hand_over(point))
        self._input.memory.answer(heard.utterances)
        self._log.add(Promoted(self.now, heard.id, heard.text, answer.id))
        self._output.release_if_due()

    def _hand_over(self, point: ForkPoint) -> TokenSequence | None:
        """The sequence of the input channel, if the answer at `point` continues it.

        It does not if more was heard since the fork, or if the words were read by a listener, which keeps them.
        """
        if self._transcript is None:
            return self._input.hand_over(point)
        point = self._transcript.fork_point()
        words = self._input.hand_over(point)
        if words is not None:
            self._transcript.adopt(words, point.at)
        return None

    def _interrupt(self) -> None:
        """process over an answer: the answer is suspended with its KV, and the words are promoted."""
        self._input.heard.interrupted = self._output.suspend().id
        self._promote()

    def _halt(self) -> None:
        """stop: the answer is suspended, or withdrawn if nothing of it was heard; the words are dropped."""
        self._input.heard.interrupted = self._output.running.id
        self._give_up(InputState.STOP.value)
        self._output.silence()

    def _take_back(self) -> None:
        """process or incomplete before anything was heard: the words continue the turn that is being answered."""
        self._reopen_turn(self._output.running)
        self._input.words_changed()

    def _defer(self) -> None:
        """process over an answer that must not be interrupted, or without room: the words are answered later."""
        self._input.hold(deferred=True)

    def _reopen_turn(self, answer: Answer) -> None:
        """Roll the unheard answer back to the mark: its turn is heard again, on a fork that has the words cached."""
        self._input.forget_kept()
        self._input.detach()
        self._input.reopen(answer.utterances, self._prefix.take_back(), interrupted=answer.interrupted)
        self._log.add(TakenBack(self.now, answer.id))

    def _give_up(self, reason: str) -> None:
        """Drop what is being heard. If it cut an answer but turns out to be no interruption, the answer resumes.

        It does so when the speaker has ended: nobody is talked over who has just interrupted.
        """
        dropped = self._input.drop(reason)
        cut = dropped.interrupted
        is_aside = reason in (InputState.IGNORE, "patience", "retracted", "echo")
        if not is_aside:
            self._pause = None
        elif cut is not None and self.running is None:
            speaking = {one.id for one in dropped.utterances if not one.final} if reason == InputState.IGNORE else set()
            self._pause = _Pause(cut, speaking, self.now)

    def _note_speech(self, utterance: str, text: str, *, final: bool) -> None:
        """While an answer waits to resume: its time counts from the last words, and from the end of an utterance."""
        if self._pause is not None:
            self._pause.since = self.now
            if final:
                self._pause.speaking.discard(utterance)
            elif text:
                self._pause.speaking.add(utterance)

    def _resume_paused(self) -> None:
        paused, self._pause = self._pause, None
        assert paused is not None, "an answer waits to resume"
        self._output.resume_undisturbed(paused.answer)

    # ------------------------------------------------------------------ commands

    def _heard(self, answer: Answer, position: int) -> None:
        self._output.hear(position)
        self._hear_early_reply()

    def _hear_early_reply(self) -> None:
        """Judge words again that were ignored over the end of an answer which turns out to be a question."""
        early = self._early
        if early is None or not self._is_reply_due or self._input.current is not None:
            return
        self._early = None
        if self.now - early.changed_at <= _EARLY_S:
            self._input.hear_again(early.utterances)

    def respond(self) -> list[Event]:
        if self.input_text:
            self._answer_now()
        elif self.running:
            self._output.release()
        else:
            self._output.speak_up()
        return self._settle()

    def _answer_now(self) -> None:
        if self.floor is Floor.PREPARED:
            self._take_back()
        if self._input.current is not None:
            if self.running is not None:
                self._interrupt()
            else:
                self._promote()
        self._output.release()

    def stop(self) -> list[Event]:
        self._ignored.clear()
        self._pause = None
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
            isinstance(template, TextTemplate) is self.is_elsewhere,
            "another system prompt changes neither who answers nor where",
        )
        self._output.replace(history, template, laid_out)
        self.template = template
        self._ignored.clear()
        self._pause = None
        if self._input.current:
            self._give_up("edit")
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
        self._require_elsewhere()
        if self.running is not None and self.running.id == answer:
            self._output.say(well_formed(text))
        return self._settle()

    def finish(self, *, answer: int, reason: str = "stop") -> list[Event]:
        """The speaker has ended the answer of that id: `reason` is `stop`, or `length` if it met a limit.

        Raises:
            UsageError: answers do not come from elsewhere.
        """
        self._require_elsewhere()
        if self.running is not None and self.running.id == answer:
            self._output.finish(reason)
        return self._settle()

    def fail(self, reason: str, *, answer: int) -> list[Event]:
        """The speaker cannot go on with the answer of that id.

        What it said counts as an answer that ends there. If it said nothing, the user's turn stays in the history
        without an answer; `respond` asks again.

        Raises:
            UsageError: answers do not come from elsewhere.
        """
        self._require_elsewhere()
        if self.running is not None and self.running.id == answer:
            self._output.fail(reason)
        return self._settle()

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

    def _require_elsewhere(self) -> None:
        require(self.is_elsewhere, "this session's own model answers; only a speaker elsewhere is spoken for")

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
        self._give_up("no room")
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
        answer, heard, waits = self._output.answer, self._input.current, []
        if answer and not answer.is_released:
            waits.append((self._output.release_at, self._output.release))
        if heard and heard.is_waiting:
            waits.append((heard.changed_at + self._patience_s, self._lose_patience))
        if self._pause is not None and not heard:
            waits.append((self._pause.since + self.policy.patience_s, self._resume_paused))
        if self._ignored and not answer and not heard:
            waits.append((self._ignored_at + self.policy.reply_s, self._answer_ignored))
        return waits

    @property
    def _patience_s(self) -> float:
        """Seconds without new words after which incomplete words are acted on: fewer if a reply is due (choice 14)."""
        is_limited = self.policy.reply_s and self._is_reply_due
        return min(self.policy.patience_s, self.policy.reply_s) if is_limited else self.policy.patience_s

    @property
    def _is_reply_due(self) -> bool:
        """Whether the assistant is silent, and what was heard of it last is a question."""
        return self.running is None and self._output.has_asked

    def _is_moment_due(self, text: str) -> bool:
        """Whether a reply is due, and `text` asks for a moment instead."""
        return self._is_reply_due and asks_for_a_moment(text, self._output.last_heard)

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
            self._give_up("patience")
        elif self.floor is not Floor.SPEAKING:
            self._answer_now()
        elif (state := self.policy.decide_unfinished(decision)) is InputState.IGNORE:
            self._give_up("patience")
        else:
            self._apply_state(state)

    def _expect_reply(self, ignored: Input) -> None:
        """Note words that were ignored in silence: behind the assistant's question they are more likely a reply.

        They are answered if nothing else comes; but not twice in a row, since background talk would go on and on.
        """
        if self._is_reply_due and self.policy.reply_s and not self._has_trusted and self._pause is None:
            self._ignored += ignored.utterances
            self._ignored_at = ignored.changed_at

    def _disregard(self, utterance: str) -> None:
        """Forget the ignored words of `utterance`, which have changed."""
        self._ignored = [one for one in self._ignored if one.final or one.id != utterance]
        if self._early is not None and any(one.id == utterance and not one.final for one in self._early.utterances):
            self._early = None

    def _answer_ignored(self) -> None:
        ignored, self._ignored = self._ignored, []
        self._has_trusted = True
        self._input.hear_again(ignored)
        self._answer_now()

    def _follow_up(self) -> None:
        """Switch to a compacted context if it is ready, and answer deferred words if that is possible now."""
        if self.running is not None:
            self._ignored.clear()
            self._pause = None
        elif self._pause is not None and not self._pause.speaking and self._input.current is None:
            self._resume_paused()
        self._output.swap_if_compacted()
        if self._transcript is not None:
            self._transcript.swap_if_compacted()
        self._input.discard_stale()
        heard = self._input.current
        if heard is not None and heard.deferred and self.running is None and self._output.compaction is None:
            self._promote()


def _is_short(template: Template, limit: int, text: str) -> bool:
    """Whether a turn of `text` has at most `limit` tokens."""
    return len(template.user(text, first=False)) <= limit
