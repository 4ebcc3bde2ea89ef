"""Sessions that take turns: the model reads the words when the user's turn has ended, and is never asked about them."""

from collections.abc import Iterator

from duologue.core.answer import Utterance
from duologue.core.cache import Plan
from duologue.core.events import Dropped, Event, Received
from duologue.core.session import Phase, Session
from duologue.core.transitions import Floor
from duologue.text.tokenizer import well_formed


class _Gated(Session):
    """Words are gathered; a whole turn goes with the assistant's header into the pass that draws the first token."""

    @property
    def phase(self) -> Phase:
        """The pass that reads the turn is listening, though its answer is on the way."""
        answer = self.running
        return Phase.LISTENING if answer is not None and not answer.num_tokens else super().phase

    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan:
        self._cache.room = limit
        self._output.plan_answer()
        self._output.plan_compaction(compaction_limit)
        return self._cache.flush()

    def _answer_gathered(self) -> None:
        """Answer what has been gathered, unless it waits for room already."""
        if self._input is not None and self._input.text and not self._input.deferred:
            self._answer_now(self._input)


class Turns(_Gated):
    """Waits for the end of the user's turn (`final`), and is deaf while it answers."""

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> list[Event]:
        if self.running is not None:
            return self._miss(Utterance(utterance, well_formed(text).strip(), final=final))
        events = super().hear(text, utterance=utterance, final=final)
        if self._input is not None and all(one.final for one in self._input.utterances):
            self._answer_gathered()
        return events + self._settle()

    def _miss(self, utterance: Utterance) -> list[Event]:
        """Words that are said over an answer are lost; what the same utterance says behind them is not."""
        self._log.add(Received(self.now, utterance.id, utterance.text, utterance.final))
        self._log.add(Dropped(self.now, utterance.id, utterance.text, "deaf"))
        self._memory.answer([utterance])
        if utterance.final:
            self._memory.end(utterance.id)
        return self._settle()


class Vad(_Gated):
    """Any sound stops it, and silence starts it: `Policy.settle_ms` after the end of what was said.

    Without a word about the end (`final`), the words have to stay as they are for `Policy.patience_s`.
    """

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> list[Event]:
        events = super().hear(text, utterance=utterance, final=final)
        if self._input is not None and self.floor is Floor.SPEAKING:
            self._output.silence()
            self._output.forget_suspended()  # such systems forget what they were about to say
        elif self._input is not None and self.floor is Floor.PREPARED:
            self._join(self._input)
        return events + self._settle()

    def advance(self, now: float) -> list[Event]:
        events = super().advance(now)
        if self._silent_at is not None and self._silent_at <= now:
            self._answer_gathered()
        return events + self._settle()

    @property
    def _silent_at(self) -> float | None:
        """When what was said counts as ended."""
        said = self._input
        if said is None or not said.text or said.deferred:
            return None
        ended = all(one.final for one in said.utterances)
        return said.changed_at + (self.policy.settle_s if ended else self.policy.patience_s)

    def _deadlines(self) -> Iterator[float]:
        yield from super()._deadlines()
        if self._silent_at is not None:
            yield self._silent_at
