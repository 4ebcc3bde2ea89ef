"""Sessions that take turns: the words are read when the user's turn has ended, and their state is never asked for."""

from collections.abc import Iterator
from typing import final

from duologue.core.cache import Plan
from duologue.core.events import Dropped, Received
from duologue.core.input_channel import Utterance
from duologue.core.session import Phase, Session
from duologue.core.transitions import Floor


class _Gated(Session):
    """Gathers words; a whole turn is fed with the assistant's header, in the pass that draws the first token."""

    @property
    def phase(self) -> Phase:
        """The pass that reads the turn counts as listening, though its answer has begun."""
        answer = self.running
        return Phase.LISTENING if answer is not None and not answer.num_tokens else super().phase

    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan:
        self._cache.room = limit
        self._output.plan(self._lookahead)
        self._output.plan_compaction(compaction_limit)
        return self._cache.flush()

    def _answer_gathered(self) -> None:
        """Answer the gathered words, unless they wait for room already."""
        gathered = self._input.current
        if gathered is not None and gathered.text and not gathered.deferred:
            self._answer_now()


@final
class Turns(_Gated):
    """Waits for the end of the user's turn (`final`), and is deaf while it answers."""

    def _hear(self, utterance: str, text: str, *, final: bool) -> None:
        if self.running is not None:
            self._miss(Utterance(utterance, text, final=final))
            return
        super()._hear(utterance, text, final=final)
        self._follow_up()
        gathered = self._input.current
        if gathered is not None and all(one.final for one in gathered.utterances):
            self._answer_gathered()

    def _miss(self, utterance: Utterance) -> None:
        """Words over an answer are lost; what the same utterance says after them is not."""
        self._log.add(Received(self.now, utterance.id, utterance.text, utterance.final))
        self._log.add(Dropped(self.now, utterance.id, utterance.text, "deaf"))
        self._input.memory.answer([utterance])
        if utterance.final:
            self._input.memory.end(utterance.id)


@final
class Vad(_Gated):
    """Any sound stops it, and silence starts it: `Policy.settle_ms` after the end of the words.

    If their end (`final`) is not reported, the words have to stay the same for `Policy.patience_s`.
    """

    def _hear(self, utterance: str, text: str, *, final: bool) -> None:
        super()._hear(utterance, text, final=final)
        self._follow_up()
        if self._input.current is not None and self.floor is Floor.SPEAKING:
            self._output.silence()
            self._output.forget_suspended()  # such systems forget what they were about to say
        elif self._input.current is not None and self.floor is Floor.PREPARED:
            self._take_back()

    def _act_on_time(self) -> None:
        super()._act_on_time()
        self._follow_up()
        if self._silent_at is not None and self._silent_at <= self.now:
            self._answer_gathered()

    @property
    def _silent_at(self) -> float | None:
        """When the words count as ended."""
        said = self._input.current
        if said is None or not said.text or said.deferred:
            return None
        ended = all(one.final for one in said.utterances)
        return said.changed_at + (self.policy.settle_s if ended else self.policy.patience_s)

    def _deadlines(self) -> Iterator[float]:
        yield from super()._deadlines()
        if self._silent_at is not None:
            yield self._silent_at
