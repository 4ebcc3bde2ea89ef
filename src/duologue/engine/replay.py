"""A conversation from a file on a virtual clock: the same input gives the same events, however fast the machine.

Time passes in two ways only: a forward pass takes `period / passes` seconds, in which cues may come as in real time,
and when there is nothing to run, the clock jumps to the next cue or deadline. The paper's cycle is a period of two
seconds with K = 4 passes (section 3.1); ten passes, the default here, make five tokens a second, the pace of speech.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.core.backend import Backend, Sampling
from duologue.core.config import SessionConfig
from duologue.core.events import Event, Heard, Said
from duologue.core.policy import Policy
from duologue.core.prompt import Probe
from duologue.core.session import BaseSession, Session, SessionFactory
from duologue.core.trace import Sink, Trace
from duologue.engine.direct import DirectEngine
from duologue.errors import BadData, DuologueError, UsageError
from duologue.text.slicing import partials
from duologue.text.template import Template
from duologue.text.tokenizer import well_formed
from duologue.types import SLICE_PERIOD_S, Role, Turn

_COMMANDS = ("stop", "resume", "respond")
_LATEST_S = 1e9  # a time after this is a mistake


@dataclass(frozen=True, slots=True)
class Cue:
    """Something that happens to the session at a time."""

    at: float
    text: str | None = None  # words of `utterance` so far
    utterance: str = "user"
    final: bool = False
    command: str | None = None  # stop, resume, respond
    history: tuple[Turn, ...] | None = None  # edit
    line: int = 0  # of the script, for messages


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
        UsageError: `period_s` is not positive.
    """
    _check_pace(period_s, 1)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON may hold other separators
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise BadData(f"cannot read the script {path}: {error}") from error
    cues: list[Cue] = []
    system: str | None = None
    history: tuple[Turn, ...] = ()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            row = _object(line)
            if "at" in row:
                cues += _cues(row, number, period_s, seed + number)
                continue
            if not row.keys() <= {"system", "history"}:
                raise BadData(f'{sorted(row.keys() - {"system", "history"})} needs a time: add "at", in seconds')
            system = _text(row, "system") if "system" in row else system
            history = _turns(row["history"]) if "history" in row else history
        except DuologueError as error:
            raise BadData(f"{path}, line {number}: {error}") from error
    if not cues:
        raise BadData(f'{path} has no cues; a line such as {{"at": 0, "say": "what is a duplex model"}} is one')
    return Script(tuple(sorted(cues, key=lambda cue: cue.at)), system, history)


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadData(f"this is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadData(f'a line is a JSON object such as {{"at": 0, "say": "hello"}}, not {type(row).__name__}')
    return row


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise BadData(f'"{name}" is {value!r}; it must be text in quotes')
    return well_formed(value)


def _turns(rows: Any) -> tuple[Turn, ...]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() == {"role", "text"} for row in rows):
        raise BadData('turns are a list such as [{"role": "user", "text": "hello"}]')
    roles = {role.value: role for role in (Role.USER, Role.ASSISTANT)}
    unknown = [row["role"] for row in rows if not isinstance(row["role"], str) or row["role"] not in roles]
    if unknown:
        raise BadData(f"a turn has role {unknown[0]!r}; there are {', '.join(roles)}")
    return tuple(Turn(roles[row["role"]], _text(row, "text")) for row in rows)


def _at(row: Mapping[str, Any]) -> float:
    at = row["at"]
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at < _LATEST_S:
        raise BadData(f'"at" is {at!r:.40}; it is a number of seconds from the beginning')
    return float(at)


_FIELDS = {
    "say": {"utterance"},
    "text": {"utterance", "final"},
    "edit": set[str](),
    "command": set[str](),
}
"""What a cue can be, and what can stand beside it."""


def _cues(row: dict[str, Any], line: int, period_s: float, seed: int) -> list[Cue]:
    at = _at(row)
    kinds = _FIELDS.keys() & row.keys()
    if len(kinds) != 1:
        raise BadData(f"exactly one of {', '.join(_FIELDS)} is needed; found {', '.join(sorted(kinds)) or 'none'}")
    kind = kinds.pop()
    unknown = row.keys() - _FIELDS[kind] - {"at", kind}
    if unknown:
        raise BadData(f"{', '.join(sorted(unknown))} cannot stand beside {kind}")
    if kind == "command":
        if row["command"] not in _COMMANDS:
            raise BadData(f'"command" is {row["command"]!r}; there are {", ".join(_COMMANDS)}')
        return [Cue(at, command=row["command"], line=line)]
    if kind == "edit":
        return [Cue(at, history=_turns(row["edit"]), line=line)]
    utterance = _text(row, "utterance") if "utterance" in row else f"line{line}"
    text = _text(row, kind)
    if kind == "text":
        final = row.get("final", True)
        if not isinstance(final, bool):
            raise BadData(f'"final" is {final!r}; it must be true or false')
        return [Cue(at, text, utterance, final, line=line)]
    spoken = partials(text, seed=seed)
    if not spoken:
        raise BadData('"say" has no words')
    # Speech begins; a slice is there when its period is over.
    return [Cue(at, "", utterance, line=line)] + [
        Cue(at + i * period_s, words, utterance, final=i == len(spoken), line=line) for i, words in enumerate(spoken, 1)
    ]


def _check_pace(period_s: float, passes: int) -> None:
    if not 0 < period_s < _LATEST_S or passes < 1:
        raise UsageError(f"a period of {period_s} s with {passes} passes cannot be; both must be positive")


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
        max_answer: int = 1024,
        sampling: Sampling | None = None,
        seed: int = 0,
        sink: Sink | None = None,
        make: SessionFactory = Session,
        end: float | None = None,
    ) -> None:
        """Set it up on `backend`.

        Args:
            make: what makes the session; those of `duologue.baselines` are alternatives.
            end: time in seconds at which it is over. By default it is when nothing more would happen, which is never
                in sessions that go on by the clock, as time division does.
        """
        _check_pace(period_s, passes)
        self._script = script
        self._pass_s = period_s / passes
        self._trace = Trace()
        self._sink = sink
        if script.system is not None:
            template = template.with_system(script.system)
        config = SessionConfig(max_length=max_length, max_answer=max_answer, sampling=sampling or Sampling(), seed=seed)
        self._end = end
        self.session: BaseSession = make(template, probe, policy=policy, config=config, history=script.history)
        self._engine = DirectEngine(backend, self.session, sink=self._record)
        self._said: dict[int, str] = {}
        self._heard: dict[int, int] = {}

    def __iter__(self) -> Iterator[Event]:
        cues = deque(sorted(self._script.cues, key=lambda cue: cue.at))
        now = 0.0
        while True:
            yield from self._until(now, cues)
            job = None if self._end is not None and now > self._end else self._engine.prepare()
            if job is not None:
                job.run()
                now += self._pass_s
                yield from self._until(now, cues)  # what came in while the pass was running
                yield from self._keep(self._engine.finish(job))
                continue
            waits = [cues[0].at] if cues else []
            if self.session.next_deadline is not None:
                waits.append(self.session.next_deadline)
            if not waits or (self._end is not None and min(waits) > self._end):
                return
            now = max(now, min(waits))

    @property
    def outcome(self) -> Outcome:
        """What came of it so far."""
        heard = (self._said[answer][:position] for answer, position in self._heard.items())
        return Outcome("\n".join(self._said.values()), "\n".join(heard), tuple(self.session.history), self._trace)

    def close(self) -> None:
        """Free what the session holds on the backend."""
        self._engine.close()

    def _until(self, now: float, cues: deque[Cue]) -> Iterator[Event]:
        """Time passes until `now`, and the cues on the way are told."""
        while cues and cues[0].at <= now:
            cue = cues.popleft()
            yield from self._report(self.session.advance(max(cue.at, self.session.now)))
            yield from self._report(self._tell(cue))
        yield from self._report(self.session.advance(now))

    def _tell(self, cue: Cue) -> list[Event]:
        if cue.text is not None:
            return self.session.hear(cue.text, utterance=cue.utterance, final=cue.final)
        if cue.history is not None:
            try:
                return self.session.edit(cue.history)
            except UsageError as error:
                raise BadData(f"line {cue.line} of the script: {error}") from error
        commands = {"stop": self.session.stop, "resume": self.session.resume, "respond": self.session.respond}
        assert cue.command is not None
        return commands[cue.command]()

    def _report(self, events: list[Event]) -> list[Event]:
        return self._keep(self._engine.report(events))

    def _keep(self, events: list[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, Said):
                self._said[event.answer] = self._said.get(event.answer, "")[: event.start] + event.text
            elif isinstance(event, Heard):
                self._heard[event.answer] = event.position
        return events

    def _record(self, record: Any) -> None:
        self._trace(record)
        if self._sink is not None:
            self._sink(record)
