"""All kinds of sessions by name; and those that differ from `Session` in a few methods."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, final

from duologue.baselines.tdm import Tdm
from duologue.baselines.tdm_model import TdmModel
from duologue.core.backend import Extend
from duologue.core.base_session import Phase, SessionFactory
from duologue.core.cache import Plan
from duologue.core.events import Dropped, Received
from duologue.core.input_channel import Utterance
from duologue.core.session import Session
from duologue.core.transitions import Floor
from duologue.types import SLICE_PERIOD_S, InputState, Token

NAMES = ("cdm", "sequential", "tdm", "tdm_skip_idle", "turns", "vad")
"""`cdm` is the method, channel-division multiplexing; it is compared with the others."""


def factory(
    name: str,
    *,
    judge: Callable[[str], InputState] | None = None,
    idle: tuple[Token, ...] = (),
    period_s: float = SLICE_PERIOD_S,
    trained: TdmModel | None = None,
) -> SessionFactory:
    """The factory of sessions of kind `name` (one of `NAMES`). The other arguments are for time division.

    There, `judge` decides (see `Tdm`), or else the model: `trained` says what it was trained for, if it was.
    """
    plain: dict[str, SessionFactory] = {"cdm": Session, "sequential": Sequential, "turns": Turns, "vad": Vad}
    known = {"idle": idle} if trained is None else trained.options
    timed = partial(Tdm, judge=judge, skip_idle=name == "tdm_skip_idle", period_s=period_s, **known)
    return plain.get(name, timed)


@final
class Sequential(Session):
    """Both channels, one after the other, as the paper's prototype computes them.

    Decides and says what `Session` does, but each channel takes a forward pass of its own. The two channels share the
    KV of their prefix; the prototype keeps a separate cache for each.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Takes the arguments of `Session`."""
        super().__init__(*args, **options)
        self._rest: deque[Extend] = deque()  # planned with what was fed, to be fed next

    @property
    def backlog(self) -> int:
        return super().backlog + sum(len(extend.tokens) for extend in self._rest)

    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan:
        if self._rest:
            is_too_long = limit is not None and len(self._rest[0].tokens) > limit
            return Plan((), () if is_too_long else (self._rest.popleft(),))
        whole = super().plan(limit, compaction_limit)
        self._rest.extend(whole.batch[1:])
        return Plan(whole.ops, whole.batch[:1])


class _Gated(Session):
    """Takes turns: the words are read when the user's turn has ended, and their state is never asked for.

    Gathers words; a whole turn is fed with the assistant's header, in the pass that draws the first token.
    """

    @property
    def phase(self) -> Phase:
        """The pass that reads the turn counts as listening, though its answer has begun."""
        answer = self.running
        return Phase.LISTENING if answer is not None and not answer.num_tokens else super().phase

    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan:
        self._cache.room, self._cache.room_to_compact = limit, compaction_limit
        self._output.plan(self._lookahead)
        self._output.plan_compaction()
        return self._cache.flush()

    def _answer_gathered(self) -> None:
        """Answer the gathered words, unless they wait for room already."""
        gathered = self._input.current
        if gathered is not None and gathered.text and not gathered.deferred:
            self._channels.answer_now()


@final
class Turns(_Gated):
    """Waits for the end of the user's turn (`final`), and is deaf while it answers."""

    def _hear(self, utterance: str, text: str, *, final: bool) -> None:
        if self.running is not None:  # the words are lost; what the same utterance says after them is not
            self._log.add(Received(self.now, utterance, text, final))
            self._log.add(Dropped(self.now, utterance, text, "deaf"))
            self._input.memory.answer([Utterance(utterance, text, final)])
            if final:
                self._input.memory.end(utterance)
            return
        super()._hear(utterance, text, final=final)
        self._follow_up()
        gathered = self._input.current
        if gathered is not None and all(one.final for one in gathered.utterances):
            self._answer_gathered()


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
            self._channels.take_back()

    def _waits(self) -> list[tuple[float, Callable[[], None]]]:
        waits = super()._waits()
        said = self._input.current
        if said is not None and said.text and not said.deferred:  # it waits for silence
            ended = all(one.final for one in said.utterances)
            pause = self.policy.settle_s if ended else self.policy.patience_s
            waits.append((said.changed_at + pause, self._answer_gathered))
        return waits
