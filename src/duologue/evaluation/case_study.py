"""A conversation period by period, as the papers show cases: what each side said, and what was decided.

What the input channel would go on with can be shown beside it. The forecast is drawn on a fork that is freed at once:
the conversation does not depend on it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from duologue.core.backend import Backend, BackendInfo, Draw, Extend, Step, Usage
from duologue.core.events import Decided, Event, Received, Said, Suspended
from duologue.core.prompt import Probe
from duologue.engine.replay import Replay, Script
from duologue.errors import CacheFull
from duologue.evaluation.behaviour.player import SessionKind
from duologue.models.model import Model
from duologue.text.template import Template
from duologue.types import SLICE_PERIOD_S, InputState, Seq, Token

REST_S = 20.0
"""Seconds behind the last line of a script, by default."""


@dataclass(slots=True)
class Period:
    """What happened in two seconds."""

    at: float  # its beginning, in seconds
    user: str = ""  # words that were heard
    state: InputState | None = None  # the last decision
    forecast: str = ""  # how the words would go on, by the model
    assistant: str = ""  # what was said
    is_cut: bool = False  # whether an answer was cut

    @property
    def is_silent(self) -> bool:
        """Whether nothing happened."""
        return not (self.user or self.assistant or self.state or self.is_cut)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "at": self.at,
            "user": self.user,
            "state": self.state and self.state.value,
            "forecast": self.forecast,
            "assistant": self.assistant,
            "is_cut": self.is_cut,
        }


def play(
    script: Script,
    kind: SessionKind,
    model: Model,
    *,
    num_forecast: int = 0,
    passes: int = 10,
    max_answer: int = 256,
    end: float | None = None,
) -> list[Period]:
    """The periods of a script that is played to a session.

    Args:
        num_forecast: tokens to forecast at each decision; sessions without an input channel have no forecast.
        passes: forward passes in a period.
        end: in seconds; by default `REST_S` behind the last line of the script.
    """
    backend = ForecastingBackend(model.backend, model.decider.template, kind.probe, num_forecast)
    book = _Book()
    for event in events(script, kind, model, backend=backend, passes=passes, max_answer=max_answer, end=end):
        book.add(event, backend.forecast)
    return book.periods()


def events(
    script: Script,
    kind: SessionKind,
    model: Model,
    *,
    backend: Backend | None = None,
    passes: int = 10,
    max_answer: int = 256,
    end: float | None = None,
) -> Iterator[Event]:
    """What happens in a script that is played to a session; see `play`. `backend` takes the place of the model's."""
    last = max(cue.at for cue in script.cues)
    replay = Replay(
        Script(script.cues, script.system if script.system is not None else kind.system, script.history),
        backend or model.backend,
        model.format,
        kind.probe,
        policy=kind.policy,
        passes=passes,
        max_length=model.max_length,
        max_answer=max_answer,
        make=kind.make,
        end=last + REST_S if end is None else end,
    )
    try:
        yield from replay
    finally:
        replay.close()


@dataclass(slots=True)
class _Book:
    """Sorts events into periods."""

    _periods: dict[int, Period] = field(default_factory=dict)
    _heard: dict[str, str] = field(default_factory=dict)  # utterance → its text so far

    def add(self, event: Event, forecast: str) -> None:
        number = int(event.at / SLICE_PERIOD_S)
        period = self._periods.setdefault(number, Period(number * SLICE_PERIOD_S))
        match event:
            case Received():
                known = self._heard.get(event.utterance, "")
                new = event.text.removeprefix(known) if event.text.startswith(known) else event.text
                self._heard[event.utterance] = event.text
                period.user = f"{period.user} {new}".strip()
            case Decided():
                period.state, period.forecast = event.decision.state, forecast
            case Said():
                period.assistant += event.text
            case Suspended():
                period.is_cut = True

    def periods(self) -> list[Period]:
        """From the first period in which something happens to the last."""
        used = [number for number, period in self._periods.items() if not period.is_silent]
        if not used:
            return []
        numbers = range(min(used), max(used) + 1)
        return [self._periods.get(number) or Period(number * SLICE_PERIOD_S) for number in numbers]


@final
class ForecastingBackend(Backend):
    """Passes everything on to another backend, and forecasts the words of an input channel whenever it is probed."""

    def __init__(self, backend: Backend, template: Template, probe: Probe, num_tokens: int) -> None:
        self._backend, self._template, self._probe, self._num_tokens = backend, template, probe, num_tokens
        self._held: dict[Seq, list[Token]] = {}
        self.forecast = ""
        """Of the newest probe."""

    @property
    def info(self) -> BackendInfo:
        return self._backend.info

    def length(self, seq: Seq) -> int:
        return self._backend.length(seq)

    def usage(self) -> Usage:
        return self._backend.usage()

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        seq = self._backend.fork(parent, length)
        self._held[seq] = [] if parent is None else self._held[parent][:length]
        return seq

    def truncate(self, seq: Seq, length: int) -> None:
        self._backend.truncate(seq, length)
        del self._held[seq][length:]

    def free(self, seq: Seq) -> None:
        self._backend.free(seq)
        del self._held[seq]

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        steps = self._backend.forward(batch)
        for extend in batch:
            self._held[extend.seq] += extend.tokens
            if extend.watch and self._num_tokens:
                self.forecast = self._forecast(extend.seq)
        return steps

    def _forecast(self, seq: Seq) -> str:
        """How the words in `seq` go on, greedily; empty if the cache has no room for looking."""
        words = self._held[seq][: len(self._held[seq]) - len(self._probe.tokens)]
        drawn: list[Token] = []
        try:
            fork = self._backend.fork(seq, len(words) - 1)
        except CacheFull:
            return ""
        try:
            fed = words[-1]
            while len(drawn) < self._num_tokens:
                [step] = self._backend.forward([Extend(fork, (fed,), draw=Draw())])
                fed = step.tokens[0]
                if fed in self._template.stop_tokens:
                    break
                drawn.append(fed)
        except CacheFull:
            pass
        finally:
            self._backend.free(fork)
        return " ".join(self._template.tokenizer.decode(drawn).split())


def lines(periods: Iterable[Period]) -> list[str]:
    """The periods as text, a line each."""
    found = []
    for one in periods:
        state = f"[{one.state}]" if one.state else ""
        forecast = f"({one.forecast} …)" if one.forecast else ""
        user = " ".join(filter(None, (one.user, state, forecast)))
        said = " ".join(one.assistant.split()) + (" — cut" if one.is_cut else "")
        found.append(f"{one.at:4.0f} s  {user:<44}  {said}".rstrip())
    return found
