"""Replays a scripted conversation on a virtual clock: the same script gives the same events on any machine.

Time passes in two ways only. A forward pass takes `period / passes` seconds, during which cues may occur as in real
time; and when there is nothing to run, the clock jumps to the next cue or deadline. The paper's cycle is a period of
two seconds with K = 4 passes (section 3.1). The default of ten passes per period gives five tokens per second, the rate
of speech.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from duologue.core.backend import Backend, Sampling
from duologue.core.base_session import BaseSession, SessionFactory
from duologue.core.config import SessionConfig
from duologue.core.events import Event, Heard, Said
from duologue.core.policy import Policy
from duologue.core.prompt import Probe, Template
from duologue.core.session import Session
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.engine.trace import Pass, Sink, Trace
from duologue.errors import BadData, DuologueError, UsageError
from duologue.text.slicing import partials
from duologue.types import SLICE_PERIOD_S, Role, Turn, well_formed

_COMMANDS = ("stop", "resume", "respond")
_LATEST_S = 1e9  # later times are taken for mistakes


@dataclass(frozen=True, slots=True)
class Cue:
    """Something that happens to the session at a given time."""

    at: float  # seconds from the start
    text: str | None = None  # the words of `utterance` so far
    utterance: str = "user"
    final: bool = False
    command: str | None = None  # stop, resume, respond
    history: tuple[Turn, ...] | None = None  # edit
    line: int = 0  # of the script, for error messages


@dataclass(frozen=True, slots=True)
class Script:
    """A scripted conversation: system prompt, history, and the cues in order of time."""

    cues: tuple[Cue, ...]
    system: str | None = None
    history: tuple[Turn, ...] = ()


def read_script(path: Path, *, period_s: float = SLICE_PERIOD_S, seed: int = 0) -> Script:
    """Read a JSONL script. `docs/replay.md` describes the format.

    As in the papers, `say` lines are cut into slices of four to six words, one per period.

    Raises:
        BadData: the file cannot be read, or a line is invalid; the message names the line.
        UsageError: `period_s` is not positive.
    """
    _check_pace(period_s, 1)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON strings may contain other separators
    except OSError as error:
        raise BadData(f"cannot read the script {path}: {error.strerror}") from error
    except ValueError as error:  # it is not UTF-8
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
            untimed = sorted(row.keys() - {"system", "history"})
            _check(not untimed, f'{untimed} needs a time; add "at", in seconds')
            system = _text(row, "system") if "system" in row else system
            history = _turns(row["history"]) if "history" in row else history
        except DuologueError as error:
            raise BadData(f"{path}, line {number}: {error}") from error
    _check(bool(cues), f'{path} has no cues; a line such as {{"at": 0, "say": "what is a duplex model"}} is one')
    return Script(tuple(sorted(cues, key=lambda cue: cue.at)), system, history)


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadData(f"this is not JSON: {error}") from error
    name = type(row).__name__
    _check(isinstance(row, dict), f'a line is a JSON object such as {{"at": 0, "say": "hello"}}, not {name}')
    return dict(row)


def _check(is_valid: bool, message: str) -> None:
    if not is_valid:
        raise BadData(message)


def _text(row: Mapping[str, Any], name: str) -> str:
    _check(isinstance(row[name], str), f'"{name}" is {row[name]!r}; it must be text in quotes')
    return well_formed(row[name])


def _turns(rows: Any) -> tuple[Turn, ...]:
    is_list = isinstance(rows, list) and all(isinstance(row, dict) and row.keys() == {"role", "text"} for row in rows)
    _check(is_list, 'turns are a list such as [{"role": "user", "text": "hello"}]')
    roles = {role.value: role for role in (Role.USER, Role.ASSISTANT)}
    for row in rows:
        _check(row["role"] in list(roles), f"a turn has role {row['role']!r}; there are {', '.join(roles)}")
    return tuple(Turn(roles[row["role"]], _text(row, "text")) for row in rows)


def _at(row: Mapping[str, Any]) -> float:
    is_number = isinstance(row["at"], (int, float)) and not isinstance(row["at"], bool)
    is_valid = is_number and 0 <= row["at"] < _LATEST_S
    _check(is_valid, f'"at" is {row["at"]!r:.40}; it is a number of seconds from the beginning')
    return float(row["at"])


_FIELDS = {
    "say": {"utterance"},
    "text": {"utterance", "final"},
    "edit": set[str](),
    "command": set[str](),
}
"""The kinds of cues, and the fields that each of them allows."""


def _cues(row: dict[str, Any], line: int, period_s: float, seed: int) -> list[Cue]:
    at = _at(row)
    kinds = _FIELDS.keys() & row.keys()
    found = ", ".join(sorted(kinds)) or "none"
    _check(len(kinds) == 1, f"exactly one of {', '.join(_FIELDS)} is needed; found {found}")
    kind = kinds.pop()
    unknown = row.keys() - _FIELDS[kind] - {"at", kind}
    _check(not unknown, f"{', '.join(sorted(unknown))} cannot be combined with {kind}")
    if kind == "command":
        _check(row["command"] in _COMMANDS, f'"command" is {row["command"]!r}; there are {", ".join(_COMMANDS)}')
        return [Cue(at, command=row["command"], line=line)]
    if kind == "edit":
        return [Cue(at, history=_turns(row["edit"]), line=line)]
    utterance = _text(row, "utterance") if "utterance" in row else f"line{line}"
    text = _text(row, kind)
    if kind == "text":
        final = row.get("final", True)
        _check(isinstance(final, bool), f'"final" is {final!r}; it must be true or false')
        return [Cue(at, text, utterance, final, line=line)]
    spoken = partials(text, seed=seed)
    _check(bool(spoken), '"say" has no words')
    # Speech begins with an empty text; each slice arrives when its period is over.
    return [Cue(at, "", utterance, line=line)] + [
        Cue(at + i * period_s, words, utterance, final=i == len(spoken), line=line) for i, words in enumerate(spoken, 1)
    ]


def _check_pace(period_s: float, passes: int) -> None:
    if not 0 < period_s < _LATEST_S or passes < 1:
        raise UsageError(f"a period of {period_s} s with {passes} passes is not possible; both must be positive")


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """The result of a replay. Texts of several answers are joined by line breaks."""

    said: str  # everything that was released
    heard: str  # the part of it that was heard
    history: tuple[Turn, ...]
    trace: Trace

    def as_dict(self) -> dict[str, Any]:
        """The last line of `duologue replay --json`."""
        history = [{"role": turn.role.value, "text": turn.text} for turn in self.history]
        return {"said": self.said, "heard": self.heard, "history": history, "passes": self.trace.num_passes}


class AnswerTexts:
    """A sink that collects what was said, and what was heard of it."""

    def __init__(self) -> None:
        self._said: dict[int, str] = {}  # by answer
        self._heard: dict[int, int] = {}  # position, by answer

    def __call__(self, record: Pass | Event) -> None:
        if isinstance(record, Said):
            self._said[record.answer] = self._said.get(record.answer, "")[: record.start] + record.text
        elif isinstance(record, Heard):
            self._heard[record.answer] = record.position

    def result(self, history: Sequence[Turn], trace: Trace) -> ReplayResult:
        """The texts so far, with the history."""
        heard = (self._said.get(answer, "")[:position] for answer, position in self._heard.items())
        return ReplayResult("\n".join(self._said.values()), "\n".join(heard), tuple(history), trace)


class Stepper(Protocol):
    """Answers in a conversation whose answers come from elsewhere, when it is told to."""

    def step(self, handle: Handle) -> bool:
        """Say the next part of the running answer, if any of it is still to come. Returns whether it did."""


class Replay:
    """Runs a script. Iterate over it for the events, then read `result`."""

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
        max_thought: int = 512,
        sampling: Sampling | None = None,
        seed: int = 0,
        sink: Sink | None = None,
        make: SessionFactory = Session,
        end: float | None = None,
        words_per_second: float | None = None,
        speaker: Stepper | None = None,
    ) -> None:
        """Open the session on `backend`.

        Args:
            make: constructs the session; `duologue.baselines` has alternatives.
            end: time in seconds at which the replay ends. By default it ends when nothing more would happen, which is
                never for sessions that act by the clock, as in time-division multiplexing.
            words_per_second: the rate at which answers are heard. By default, what is said counts as heard at once.
            speaker: what answers, if answers come from elsewhere: a part of an answer takes as long as a forward pass.
        """
        _check_pace(period_s, passes)
        self._script = script
        self._pass_s = period_s / passes
        self._trace = Trace()
        self._sink = sink
        self._end = end
        self._now = 0.0
        self._texts = AnswerTexts()
        self._speaker = speaker
        if script.system is not None:
            template = template.with_system(script.system)
        config = SessionConfig(
            max_length=max_length,
            max_answer=max_answer,
            max_thought=max_thought,
            sampling=sampling or Sampling(),
            seed=seed,
            heard="shown" if words_per_second is None else "reported",
        )
        self.session: BaseSession = make(template, probe, policy=policy, config=config, history=script.history)
        self._engine = Engine(backend, max_tokens_per_pass=None, clock=lambda: self._now)
        self._talk = self._engine.open(self.session, words_per_second=words_per_second, sink=self._record)

    def __iter__(self) -> Iterator[Event]:
        cues = deque(sorted(self._script.cues, key=lambda cue: cue.at))
        now = 0.0
        while self._end is None or now <= self._end:
            yield from self._cues_until(now, cues)
            forward_pass = self._engine.plan()
            yield from self._talk.new_events()
            if forward_pass is not None or self._is_answered_elsewhere:
                if forward_pass is not None:
                    forward_pass.run()
                now += self._pass_s
                yield from self._cues_until(now, cues)  # those that occur during the pass
                if forward_pass is not None:
                    self._engine.take(forward_pass)
                if self._speaker is not None:
                    self._speaker.step(self._talk)
                yield from self._talk.new_events()
                continue
            waits = [time for time in (cues[0].at if cues else None, self._engine.due()) if time is not None]
            if not waits or (self._end is not None and min(waits) > self._end):
                return
            now = max(now, min(waits))

    @property
    def result(self) -> ReplayResult:
        """The result so far."""
        return self._texts.result(self.session.history, self._trace)

    def close(self) -> None:
        """Free what the session holds on the backend."""
        self._engine.close()

    @property
    def _is_answered_elsewhere(self) -> bool:
        """Whether a part of an answer is to be fetched."""
        running = self.session.running
        return self._speaker is not None and running is not None and running.finished is None

    def _cues_until(self, now: float, cues: deque[Cue]) -> Iterator[Event]:
        """Let time pass until `now`, and carry out the cues on the way."""
        while cues and cues[0].at <= now:
            cue = cues.popleft()
            self._now = max(cue.at, self.session.now)
            self._carry_out(cue)
            yield from self._talk.new_events()
        self._now = now

    def _carry_out(self, cue: Cue) -> None:
        if cue.text is not None:
            self._talk.hear(cue.text, utterance=cue.utterance, final=cue.final)
        elif cue.history is not None:
            try:
                self._talk.edit(cue.history)
            except UsageError as error:
                raise BadData(f"line {cue.line} of the script: {error}") from error
        else:
            commands = {"stop": self._talk.stop, "resume": self._talk.resume, "respond": self._talk.respond}
            assert cue.command is not None
            commands[cue.command]()

    def _record(self, record: Pass | Event) -> None:
        self._trace(record)
        self._texts(record)
        if self._sink is not None:
            self._sink(record)
