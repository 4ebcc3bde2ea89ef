"""What each state does with the two channels (DUO, section 2.3): `Channels` has a method for each transition.

The states incomplete, ignore, process and stop are looked up in `transitions.TABLE`, whose order the methods follow.
Neither channel knows the other; they meet here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from duologue.core.answer import Answer
from duologue.core.cache import TokenSequence
from duologue.core.events import EventLog, Promoted, TakenBack
from duologue.core.input_channel import ForkPoint, Input, InputChannel, Prefix, Utterance, find_open
from duologue.core.output_channel import OutputChannel
from duologue.core.transcript import Transcript
from duologue.core.transitions import Floor, Interruptible, Transition, transition
from duologue.types import InputState

_EARLY_S = 1.5  # seconds before the end of a question in which words may have been the reply
_ASIDES = (InputState.IGNORE, "patience", "retracted", "echo")  # reasons to drop words that interrupted nothing


@final
@dataclass(slots=True)
class Aside:
    """Words that cut an answer and were no interruption. The answer resumes when their speaker has ended."""

    answer: int
    speaking: set[str]  # utterances that have not ended
    since: float  # session time when their words last changed


@final
class Replies:
    """Ignored words that may be the reply to the assistant's question after all (choice 14)."""

    def __init__(self) -> None:
        self.utterances: list[Utterance] = []  # ignored in silence, behind the question
        self.changed_at = 0.0  # session time when the last of them was received
        self._early: Input | None = None  # ignored last over an answer that may turn out to end with a question
        self._has_trusted = False  # ignored words were answered, and nothing was judged process since

    def expect(self, ignored: Input) -> None:
        """Note words that were ignored behind a question: they are answered if nothing else comes.

        But not twice in a row, since background talk would go on and on.
        """
        if not self._has_trusted:
            self.utterances += ignored.utterances
            self.changed_at = ignored.changed_at

    def clear(self) -> None:
        """Wait for nothing: the words stay ignored."""
        self.utterances.clear()

    def take(self) -> list[Utterance]:
        """The ignored words, which are answered now."""
        utterances, self.utterances = self.utterances, []
        self._has_trusted = True
        return utterances

    def note_early(self, ignored: Input | None) -> None:
        """Note words that were ignored over an answer, if that is what happened last."""
        self._early = ignored

    def take_early(self, now: float) -> list[Utterance]:
        """Words that were ignored just before the end of a question, which turns out to be one at `now`."""
        early, self._early = self._early, None
        return early.utterances if early is not None and now - early.changed_at <= _EARLY_S else []

    def promoted(self, turn: Input) -> None:
        """Record that `turn` is answered."""
        self._early = None
        if turn.decision is not None and turn.decision.state is InputState.PROCESS:
            self._has_trusted = False

    def end(self, utterance: str) -> None:
        """Record that `utterance` has ended."""
        for one in self.utterances:
            one.final = one.final or one.id == utterance

    def forget(self, utterance: str) -> None:
        """Forget the ignored words of `utterance`, which have changed."""
        self.utterances = [one for one in self.utterances if one.final or one.id != utterance]
        if self._early is not None and find_open(self._early.utterances, utterance):
            self._early = None


@final
class Channels:
    """The input channel, the output channel, and the transitions between them.

    Where another model listens, it has a `transcript`, from which the input channel forks.
    """

    def __init__(
        self, listening: InputChannel, output: OutputChannel, transcript: Transcript | None, log: EventLog
    ) -> None:
        self.replies = Replies()
        self.aside: Aside | None = None
        self._input = listening
        self._output = output
        self._transcript = transcript
        self._log = log

    @property
    def floor(self) -> Floor:
        """Who has the floor."""
        answer = self._output.answer
        if answer is None:
            return Floor.SILENT
        return Floor.SPEAKING if answer.num_heard else Floor.PREPARED

    def apply(self, state: InputState) -> None:
        """Make the transition to which `state` of the words being heard leads."""
        answer = self._output.answer
        actions: dict[Transition, Callable[[], None]] = {
            Transition.HOLD: self.hold,
            Transition.DROP: self.drop,
            Transition.PROMOTE: self.promote,
            Transition.INTERRUPT: self.interrupt,
            Transition.HALT: self.halt,
            Transition.TAKE_BACK: self.take_back,
            Transition.WITHDRAW: self.halt,
            Transition.DEFER: self.defer,
        }  # in `self`, it would be a reference cycle
        actions[transition(self.floor, state, answer.interruptible if answer else Interruptible.YES)]()

    # ------------------------------------------------------------------ transitions, in the order of their table

    def hold(self) -> None:
        """incomplete: the words keep their KV and wait for more.

        As after every decision, the probe is rolled back lazily: it is surplus in the cache from now on, and is
        truncated before anything else is fed.
        """
        self._input.hold()

    def drop(self) -> None:
        """ignore, or stop while the assistant is silent: the words are dropped; a running answer continues undisturbed.

        If other words are held, only the newest are dropped. The KV is released at once, unless the words may still
        grow; then the channel is kept for a while (see `InputChannel`).
        """
        heard = self._input.heard
        assert heard.decision is not None, "it was judged"
        state = heard.decision.state
        if state is not InputState.IGNORE:
            self.replies.clear()
            self.give_up(state.value)
        elif not self._input.drop_newest(state.value):
            self.give_up(state.value)
            if self.is_reply_due and self._output.policy.reply_s and self.aside is None:
                self.replies.expect(heard)
            self.replies.note_early(heard if self.floor is Floor.SPEAKING else None)

    def promote(self) -> None:
        """process: the input channel becomes the output channel, and the assistant's header is appended.

        The header is the paper's prompt token. Before it is fed, the probe is rolled back (see `hold`). If there is no
        room for an answer, the words wait for a compacted context.
        """
        heard, point = self._input.heard, self._output.fork_point()
        words = heard.ids(self._output.template, first=point.is_first)
        if not self._output.has_room(point, words, to_answer=True):
            self._input.detach()
            self.defer()
            return
        self.replies.promoted(heard)
        answer = self._output.promote(heard, point, words, self._hand_over(point))
        self._input.memory.answer(heard.utterances)
        self._log.add(Promoted(self._log.now, heard.id, heard.text, answer.id))
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

    def interrupt(self) -> None:
        """process over an answer: the answer is suspended with its KV, and the words are promoted."""
        self._input.heard.interrupted = self._output.suspend().id
        self.promote()

    def halt(self) -> None:
        """stop: the answer is suspended (halt), or withdrawn if nothing of it was heard; the words are dropped."""
        self._input.heard.interrupted = self._output.running.id
        self.give_up(InputState.STOP.value)
        self._output.silence()

    def take_back(self) -> None:
        """process or incomplete before anything was heard: the words continue the turn that is being answered."""
        self.reopen_turn(self._output.running)
        self._input.words_changed()

    def defer(self) -> None:
        """process over an answer that must not be interrupted, or without room: the words are answered later."""
        self._input.hold(deferred=True)

    # ------------------------------------------------------------------ the same without a decision

    def answer_now(self) -> None:
        """Answer what is being heard, whatever its state."""
        if self.floor is Floor.PREPARED:
            self.take_back()
        if self._input.current is not None:
            if self._output.answer is not None:
                self.interrupt()
            else:
                self.promote()
        self._output.release()

    def reopen_turn(self, answer: Answer) -> None:
        """Roll the unheard answer back to the mark: its turn is heard again, on a fork that has the words cached."""
        prefix: Prefix = self._transcript or self._output
        self._input.forget_kept()
        self._input.detach()
        self._input.reopen(answer.utterances, prefix.take_back(), interrupted=answer.interrupted)
        self._log.add(TakenBack(self._log.now, answer.id))

    def give_up(self, reason: str) -> None:
        """Drop what is being heard. If it cut an answer but turns out to be an aside, the answer resumes.

        It does so when the speaker has ended: nobody is talked over who has just interrupted.
        """
        dropped = self._input.drop(reason)
        cut = dropped.interrupted
        if reason not in _ASIDES:
            self.aside = None
        elif cut is not None and self._output.answer is None:
            speaking = {one.id for one in dropped.utterances if not one.final} if reason == InputState.IGNORE else set()
            self.aside = Aside(cut, speaking, self._log.now)

    # ------------------------------------------------------------------ what dropped words may have been

    @property
    def is_reply_due(self) -> bool:
        """Whether the assistant is silent, and what was heard of it last is a question."""
        return self._output.answer is None and self._output.has_asked

    def hear_early_reply(self) -> None:
        """Judge words again that were ignored over the end of an answer which turns out to be a question."""
        if self.is_reply_due and self._input.current is None and (early := self.replies.take_early(self._log.now)):
            self._input.hear_again(early)

    def answer_ignored(self) -> None:
        """Answer words that were ignored behind the assistant's question: nothing else came."""
        self._input.hear_again(self.replies.take())
        self.answer_now()

    def note_speech(self, utterance: str, text: str, *, final: bool) -> None:
        """While an answer waits to resume: its time counts from the last words, and from the end of an utterance."""
        if self.aside is not None:
            self.aside.since = self._log.now
            if final:
                self.aside.speaking.discard(utterance)
            elif text:
                self.aside.speaking.add(utterance)

    def resume_after_aside(self) -> None:
        """Continue the answer that an aside cut."""
        aside, self.aside = self.aside, None
        assert aside is not None, "an answer waits to resume"
        self._output.resume_undisturbed(aside.answer)

    def settle_aside(self) -> None:
        """Resume the answer that an aside cut, if its speaker has ended. While an answer runs, none is waited for."""
        if self._output.answer is not None:
            self.forget_asides()
        elif self.aside is not None and not self.aside.speaking and self._input.current is None:
            self.resume_after_aside()

    def forget_asides(self) -> None:
        """Wait no longer for a reply or for the end of an aside: the dropped words remain dropped."""
        self.replies.clear()
        self.aside = None
