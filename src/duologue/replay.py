"""A conversation from a file on a virtual clock: the same input gives the same events, however fast the machine.

Time passes in two ways only: a forward pass takes `period / passes` seconds, and when there is nothing to run, the
clock jumps to the next cue or deadline. The paper's cycle is a period of two seconds with K = 4 passes (section 3.1);
ten passes, the default here, make five tokens a second, about the pace of speech.
"""

import heapq
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.core.backend import Backend, Sampling
from duologue.core.config import SessionConfig
from duologue.core.events import Event, Said
from duologue.core.policy import Policy
from duologue.core.probe import Probe
from duologue.core.session import Session
from duologue.core.trace import Sink, Trace
from duologue.engines.direct import DirectEngine
from duologue.errors import BadData, DuologueError, UsageError
from duologue.slicing import partials
from duologue.template import Template
from duologue.types import SLICE_PERIOD_S, Role, Turn

_COMMANDS = ("stop", "resume", "respond")


@dataclass(frozen=True, slots=True)
class Cue:
    """Something that happens to the session at a time."""

    at: float
    text: str | None = None  # words of `utterance` so far
    utterance: str = "user"
    final: bool = False
    command: str | None = None  # stop, resume, respond
    history: tuple[Turn, ...] | None = None  # edit


@dataclass(frozen=True, slots=True)
class Script:
    """A conversation to be: what the system prompt is, and the cues in order of time."""

    cues: tuple[Cue, ...]
    system: str | None = None
    history: tuple[Turn, ...] = ()


def read_script(path: Path, *, period_s: float = SLICE_PERIOD_S, seed: int = 0) -> Script:
    """Read a JSONL script. `docs/replay.md` has the format.

    `say` lines are cut into slices of four to six words, one a period, as the papers do.

    Raises:
        BadData: the file cannot be read, or a line of it cannot be used; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"cannot read the script {path}: {error}") from error
    cues: list[Cue] = []
    system: str | None = None
    history: tuple[Turn, ...] = ()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise BadData("a line is a JSON object")
            if "at" not in row:
                system = row.pop("system", system)
                history = _turns(row.pop("history", [])) or history
                if row:
                    raise BadData(f'{sorted(row)} needs a time: add "at"')
            else:
                cues += _cues(row, f"line{number}", period_s, seed + number)
        except (json.JSONDecodeError, DuologueError, TypeError, ValueError, KeyError) as error:
            raise BadData(f"{path}, line {number}: {error}") from error
    if not cues:
        raise BadData(f'{path} has no cues; a line such as {{"at": 0, "say": "what is a duplex model"}} is one')
    return Script(tuple(sorted(cues, key=lambda cue: cue.at)), system, history)


def _turns(rows: list[dict[str, str]]) -> tuple[Turn, ...]:
    return tuple(Turn(Role(row["role"]), row["text"]) for row in rows)


def _cues(row: dict[str, Any], name: str, period_s: float, seed: int) -> Iterator[Cue]:
    at = float(row.pop("at"))
    if not 0 <= at < 1e9:
        raise BadData(f'"at" is {at}; it is seconds from the beginning')
    utterance = str(row.pop("utterance", name))
    if "say" in row:
        slices = list(partials(str(row.pop("say")), seed=seed))
        yield Cue(at, "", utterance)  # speech begins; a slice is there when its period is over
        for i, text in enumerate(slices, 1):
            yield Cue(at + i * period_s, text, utterance, final=i == len(slices))
    elif "text" in row:
        yield Cue(at, str(row.pop("text")), utterance, final=bool(row.pop("final", True)))
    elif "edit" in row:
        yield Cue(at, history=_turns(row.pop("edit")))
    elif row.get("command") in _COMMANDS:
        yield Cue(at, command=row.pop("command"))
    else:
        raise BadData(f'one of "say", "text", "edit" or "command" ({", ".join(_COMMANDS)}) is needed')
    if row:
        raise BadData(f"unknown fields {sorted(row)}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a replay. Texts of several answers are joined by line breaks."""

    said: str  # all that was let out
    heard: str  # what was heard of it
    history: tuple[Turn, ...]
    trace: Trace

    def as_dict(self) -> dict[str, Any]:
        """The last line of `duologue replay --json`."""
        history = [{"role": turn.role.value, "text": turn.text} for turn in self.history]
        return {"said": self.said, "heard": self.heard, "history": history, "passes": self.trace.num_passes}


class Replay:
    """Runs a script; iterate over it for the events, then read `outcome`."""

    def __init__(
        self,
        script: Script,
        backend: Backend,
        template: Template,
        probe: Probe,
        *,
        policy: Policy | None = None,
        period_s: float = SLICE_PERIOD_S,
        passes: int = 10,
        max_length: int = 4096,
        sampling: Sampling | None = None,
        seed: int = 0,
        sink: Sink | None = None,
    ) -> None:
        if period_s <= 0 or passes < 1:
            raise UsageError(f"period {period_s} and passes {passes} must be positive")
        self._script = script
        self._pass_s = period_s / passes
        self._trace = Trace()
        self._sink = sink
        if script.system is not None:
            template = template.with_system(script.system)
        config = SessionConfig(max_length=max_length, sampling=sampling or Sampling(), seed=seed)
        self.session = Session(template, probe, policy=policy, config=config, history=script.history)
        self._engine = DirectEngine(backend, self.session, sink=self._record)
        self._said: dict[int, str] = {}

    def __iter__(self) -> Iterator[Event]:
        order = itertools.count()
        cues = [(cue.at, next(order), cue) for cue in self._script.cues]
        heapq.heapify(cues)
        now = 0.0
        while True:
            yield from self._report(self.session.advance(now))
            while cues and cues[0][0] <= now:
                yield from self._report(self._tell(heapq.heappop(cues)[2]))
            events = self._engine.tick()
            if events is not None:
                yield from self._keep(events)
                now += self._pass_s
                continue
            deadline = self.session.next_deadline
            if not cues and deadline is None:
                return
            now = max(
                now, min(cues[0][0] if cues else float("inf"), deadline if deadline is not None else float("inf"))
            )

    @property
    def outcome(self) -> Outcome:
        """What came of it so far."""
        history = tuple(self.session.history)
        heard = "\n".join(turn.text for turn in history if turn.role is Role.ASSISTANT)
        return Outcome("\n".join(self._said.values()), heard, history, self._trace)

    def close(self) -> None:
        """Free what the session holds on the backend."""
        self._engine.close()

    def _tell(self, cue: Cue) -> list[Event]:
        if cue.text is not None:
            return self.session.hear(cue.text, utterance=cue.utterance, final=cue.final)
        if cue.history is not None:
            return self.session.edit(cue.history)
        commands = {"stop": self.session.stop, "resume": self.session.resume, "respond": self.session.respond}
        assert cue.command is not None
        return commands[cue.command]()

    def _report(self, events: list[Event]) -> list[Event]:
        return self._keep(self._engine.report(events))

    def _keep(self, events: list[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, Said):
                self._said[event.answer] = self._said.get(event.answer, "")[: event.start] + event.text
        return events

    def _record(self, record: Any) -> None:
        self._trace(record)
        if self._sink is not None:
            self._sink(record)
