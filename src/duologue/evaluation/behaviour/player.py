"""Plays a case to a session of any kind on the virtual clock. The answers are given; the decisions are the model's.

Every pass is computed. The tokens of answers are then replaced by those of the case, so that the user hears the same
words with every model. A pass takes several of these at a time, since they are known in advance. An endpoint elsewhere
is asked for its answers, too, and each part of them is replaced by as many words.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, final

from duologue.baselines.sessions import Turns, Vad
from duologue.baselines.tdm import PROMPT, Tdm
from duologue.baselines.tdm_model import TdmModel
from duologue.core.answer import Answer
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage
from duologue.core.base_session import BaseSession, Phase, SessionFactory
from duologue.core.events import Event, Promoted
from duologue.core.history import Ledger
from duologue.core.policy import ECHO_S, Policy
from duologue.core.prompt import Probe
from duologue.core.session import Session
from duologue.engine.handle import Handle
from duologue.engine.replay import Cue, Replay, Script
from duologue.errors import UsageError, require
from duologue.evaluation.behaviour.cases import WORDS_PER_S, Case
from duologue.evaluation.behaviour.passes import SharedPasses, run_together
from duologue.models.model import Model
from duologue.models.opening import Progress
from duologue.models.prompting import prompted_probe
from duologue.speakers.endpoint import Endpoint
from duologue.speakers.stream import Part
from duologue.text.template import Template
from duologue.text.text_template import TextTemplate
from duologue.types import SLICE_PERIOD_S, InputState, Role, Seq, Token, Turn

if TYPE_CHECKING:
    from duologue.speakers.remote import SteppedSpeaker

PASS_S = 0.05
"""Duration of a forward pass on the virtual clock, in seconds."""
MAX_LENGTH = 1024
"""Tokens of one conversation; the longest case needs half of that."""
_TOKENS_AT_ONCE = 8  # of a given answer, in one pass
_SURE = 0.98

SESSIONS = ("duplex", "prompted", "slices", "turns", "vad", "tdm")
"""Kinds of sessions: channel division with the model's adapter; the same asked in words; the untrained base, which
takes every slice for a turn; and the baselines: turns, voice activity, time division with a prompt."""

TRAINED = "tdm_trained"
"""Time division with a model that was trained for it."""


@dataclass(frozen=True, slots=True)
class SessionKind:
    """How sessions of a kind are made and decide."""

    make: SessionFactory
    probe: Probe
    policy: Policy
    system: str | None = None
    always: InputState | None = None  # the decision, in place of the model's
    endpoint: Endpoint | None = None  # what answers, if this is a model elsewhere


@dataclass(slots=True)
class Played:
    """What happened in a case."""

    case: Case
    events: list[Event] = field(default_factory=list)
    history: list[Turn] = field(default_factory=list)  # of the session, at the end
    context_right: bool | None = None  # history and cache hold exactly what was heard; None: one channel
    num_passes: int = 0
    num_drawn: int = 0  # tokens of answers
    num_wasted: int = 0  # of those, tokens of cut or taken-back answers that were never heard


def kind_of(name: str, model: Model) -> SessionKind:
    """The kind of session `name`, with `model`.

    Raises:
        UsageError: there is no such kind, or none whose answers come from elsewhere.
        AdapterMismatch: the model was not trained for it.
    """
    plain = Policy()
    endpoint = None if model.speaker is None else model.speaker.endpoint
    require(endpoint is None or name == "duplex", f"sessions of kind {name} cannot be answered from elsewhere")
    match name:
        case "duplex":
            return SessionKind(model.factory(), model.probe, model.policy(echo_s=ECHO_S), endpoint=endpoint)
        case "prompted":
            return SessionKind(Session, prompted_probe(model.template, tuple(InputState)), Policy(echo_s=ECHO_S))
        case "slices":
            return SessionKind(model.factory(), model.probe, plain, always=InputState.PROCESS)
        case "turns":
            return SessionKind(model.factory(Turns), model.probe, plain)
        case "vad":
            policy = Policy(settle_ms=0.0)  # its silence is that which ends an utterance
            return SessionKind(model.factory(Vad), model.probe, policy)
        case "tdm":
            return SessionKind(partial(Tdm, skip_idle=True), model.probe, plain, system=PROMPT)
        case "tdm_trained":
            trained = TdmModel.load(model.path)
            return SessionKind(partial(Tdm, skip_idle=True, **trained.options), model.probe, plain)
        case _:
            raise UsageError(f"no kind of session {name!r}; there are {', '.join((*SESSIONS, TRAINED))}")


def play_all(
    cases: Sequence[Case],
    kind: SessionKind,
    backend: Backend,
    template: Template,
    *,
    at_once: int = 1,
    progress: Progress | None = None,
) -> list[Played]:
    """Play all `cases`, `at_once` of them in the same passes."""
    done = itertools.count(1)

    def job(case: Case, shared: SharedPasses, thread: int) -> Played:
        played = _play(case, kind, shared, thread, template)
        if progress is not None:
            progress("playing", next(done) / len(cases))
        return played

    jobs = [partial(job, case) for case in cases]
    found = dict(run_together(jobs, backend, at_once))
    return [found[number] for number in range(len(cases))]


def _play(case: Case, kind: SessionKind, shared: SharedPasses, thread: int, template: Template) -> Played:
    """Play `case` to a new session."""
    history, cues = list(case.history), case.cues()
    if case.answer is not None:
        asked = history.pop()
        cues = [Cue(0.0, asked.text, "opening", final=True), Cue(0.0, command="respond"), *cues]
    directed = _CaseBackend(case, shared, thread, template, kind)
    speaker = None if kind.endpoint is None else _stepped(kind.endpoint, directed)
    replay = Replay(
        Script(tuple(cues), kind.system, tuple(history)),
        directed,
        template if speaker is None else TextTemplate(),
        kind.probe,
        policy=kind.policy,
        period_s=SLICE_PERIOD_S,
        passes=round(SLICE_PERIOD_S / PASS_S),
        max_length=min(MAX_LENGTH, shared.backend.info.context_length),
        make=directed.make,
        end=case.end,
        words_per_second=WORDS_PER_S,
        speaker=speaker,
    )
    with contextlib.closing(speaker) if speaker is not None else contextlib.nullcontext(), contextlib.closing(replay):
        directed.played.events += list(replay)
        return directed.finish(tuple(history), replay.result.trace.num_passes)


def _stepped(endpoint: Endpoint, directed: "_CaseBackend") -> "SteppedSpeaker":
    from duologue.speakers.remote import RemoteSpeaker, SteppedSpeaker

    return SteppedSpeaker(RemoteSpeaker(endpoint), say=directed.say)


@final
class _CaseBackend(Backend):
    """The backend that a session sees. It tracks what every sequence holds, and gives answers the words of the case."""

    def __init__(self, case: Case, shared: SharedPasses, thread: int, template: Template, kind: SessionKind) -> None:
        self._shared = shared
        self._thread = thread
        self.played = Played(case)
        self._kind = kind
        self._template = template
        self._asked = case.history[-1].text if case.answer is not None else None
        self._answer = template.answer(case.answer or "")
        self._reply = template.answer(case.reply)
        self._held: dict[Seq, list[Token]] = {}
        self._answers: dict[int, Answer] = {}
        self._contexts: dict[int, object] = {}  # by answer: what came before its first token
        self._session: BaseSession | None = None

    def make(self, *args: Any, **options: Any) -> BaseSession:
        """Create the session that the case is played to."""
        self._session = self._kind.make(*args, **options)
        return self._session

    def finish(self, history: Sequence[Turn], num_passes: int) -> Played:
        """Compute the results at the end."""
        assert self._session is not None, "it was made"
        played, running = self.played, self._session.running
        played.history = list(self._session.history)
        played.num_passes = num_passes
        for answer in self._answers.values():
            played.num_drawn += answer.num_made
            if answer is not running and not answer.is_heard_to_the_end:
                played.num_wasted += answer.end_at - answer.heard_at
        if not isinstance(self._session, Tdm):
            played.context_right = self._is_context_right(history)
        return played

    def _is_context_right(self, history: Sequence[Turn]) -> bool:
        """Whether every answer followed exactly what had been heard by the events, and the history matches, too."""
        ledger = Ledger(history)
        for event in self.played.events:
            if isinstance(event, Promoted) and event.answer in self._contexts:
                expected = self._context([*ledger.history, Turn(Role.USER, event.text)])
                if self._contexts[event.answer] != expected:
                    return False
            ledger(event)
        return ledger.history == self.played.history

    def _context(self, turns: list[Turn]) -> object:
        """What comes before an answer to the last of `turns`: the text of a sequence, or what an endpoint is asked."""
        if self._kind.endpoint is not None:
            return turns
        return self._template.tokenizer.decode(
            (*self._template.begin, *self._template.lay_out(turns), *self._template.header)
        )

    def say(self, handle: Handle, answer: Answer, part: Part) -> None:
        """Pass on what the case says in place of `part` of an answer from elsewhere; the rest of it for the last."""
        session = handle.session
        assert isinstance(session, Session), "its answers come from elsewhere"
        self._answers[answer.id] = answer
        if not answer.text:
            self._contexts[answer.id] = list(session.question[0])
        given, decode = self._given(answer), self._template.tokenizer.decode
        blocks = range(_TOKENS_AT_ONCE, len(given) + _TOKENS_AT_ONCE, _TOKENS_AT_ONCE)
        texts = [] if part.reason is not None else [decode(given[:end]) for end in blocks]
        known = next((text for text in texts if len(text) > len(answer.text)), decode(given))
        handle.say(known[len(answer.text) :], answer=answer.id)
        if known == decode(given):
            handle.finish(answer=answer.id)

    def _given(self, answer: Answer) -> Sequence[Token]:
        """What the case says as this answer."""
        return self._answer if answer.user_text == self._asked else self._reply

    @property
    def info(self) -> BackendInfo:
        return self._shared.backend.info

    def length(self, seq: Seq) -> int:
        with self._shared.lock:
            return self._shared.backend.length(seq)

    def usage(self) -> Usage:
        with self._shared.lock:
            return self._shared.backend.usage()

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        with self._shared.lock:
            seq = self._shared.backend.fork(parent, length)
        self._held[seq] = [] if parent is None else self._held[parent][:length]
        return seq

    def fork_listening(self) -> Seq:
        with self._shared.lock:
            seq = self._shared.backend.fork_listening()
        self._held[seq] = []
        return seq

    def truncate(self, seq: Seq, length: int) -> None:
        with self._shared.lock:
            self._shared.backend.truncate(seq, length)
        del self._held[seq][length:]

    def free(self, seq: Seq) -> None:
        with self._shared.lock:
            self._shared.backend.free(seq)
        del self._held[seq]

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        steps = self._shared.forward(self._thread, batch)
        for extend in batch:
            self._held[extend.seq] += extend.tokens
        return [self._directed(extend, step) for extend, step in zip(batch, steps, strict=True)]

    def _directed(self, extend: Extend, step: Step) -> Step:
        session = self._session
        assert session is not None, "it was made"
        if step.p and self._kind.always is not None:
            states = self._kind.probe.states
            rest = (1.0 - _SURE) / (len(states) - 1)
            return dataclasses.replace(step, p=(tuple(_SURE if one is self._kind.always else rest for one in states),))
        if not step.tokens:
            return step
        answer = session.running
        if answer is not None:
            self._answers[answer.id] = answer
        if isinstance(session, Tdm):
            return self._sliced(session, step)
        if answer is None:
            return step
        if not answer.num_made:
            self._contexts[answer.id] = self._template.tokenizer.decode(self._held[extend.seq])
        tokens = (*self._given(answer), min(self._template.stop_tokens))[answer.num_made :][:_TOKENS_AT_ONCE]
        return dataclasses.replace(step, tokens=tokens or (min(self._template.stop_tokens),))

    def _sliced(self, session: Tdm, step: Step) -> Step:
        """With one channel, speaking is a decision: only the opening is given, up to the slice with new words."""
        answer = session.running
        is_listening = session.phase in (Phase.LISTENING, Phase.OVERLAP)
        if self._asked is None or (answer is None and self._answers) or (answer is not None and answer.id):
            return step
        if answer is None and is_listening:
            tokens = self._answer[:1]  # the slice in which the question comes
        elif answer is not None and not is_listening:
            tokens = self._answer[answer.num_made :][:1]
        elif answer is None:
            tokens = ()  # an empty slice before the question
        else:
            return step
        return dataclasses.replace(step, tokens=tokens or (min(self._template.stop_tokens),))
