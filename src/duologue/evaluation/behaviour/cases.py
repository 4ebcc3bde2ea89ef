"""Labelled conversations: who has the floor, what the user does, what must happen, and by when.

A case is one line of JSON. `docs/behaviour.md` describes every field.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

from duologue.core.transitions import Floor
from duologue.data.jsonl import read_rows
from duologue.engine.playback_clock import CHARACTERS_PER_WORD
from duologue.engine.replay import Cue
from duologue.errors import BadData
from duologue.text.words import join, words_of
from duologue.types import Role, Turn

WORDS_PER_S = 2.5
"""Pace of speech, 150 words a minute."""
WORDS_PER_PARTIAL = 2
"""A recogniser reports the words so far after every second word, and whenever the speaker pauses."""
ENDPOINT_S = 0.8
"""Silence after which a recogniser ends the utterance; what follows is a new one."""
PLAYED_PER_S = WORDS_PER_S * CHARACTERS_PER_WORD
"""Characters of an answer that are heard in a second."""
WITHIN_S = 2.0
"""As in TurnBench, what happens up to two seconds after the gold time counts."""
REPLY = "It is simply a name for that, nothing more."
"""What the assistant says if a case does not specify it."""

_LATEST_S = 3600.0
_PAUSE = re.compile(r"\[(\d+(?:\.\d+)?)\]")

KINDS = (
    "plain_turn", "pieces", "pause_0.6", "pause_1.2", "pause_2.0", "hesitation", "reply", "wait_a_second",
    "backchannel", "background_over", "background_silence", "to_somebody_else", "echo", "recogniser_mark", "stop",
    "stop_then_go_on", "regeneration", "reset", "clarification", "self_correction", "steering", "follow_up",
    "two_users", "typed_correction", "messages", "pair_floor", "pair_list", "pair_stop", "pair_bystander",
    "pair_name", "pair_echo", "pair_fragment", "pair_go_on", "recorded", "flexi", "full_duplex_bench", "codett",
    "turnbench",
)  # fmt: skip
"""Kinds of conversations: those of the set, recorded ones, and those of other benchmarks."""


class Action(StrEnum):
    """What must happen."""

    ANSWER = "answer"  # a new answer begins; a running one ends
    WAIT = "wait"  # nobody is speaking, and the assistant stays silent
    GO_ON = "go_on"  # the answer continues as if nothing had been said
    STOP = "stop"  # the answer ends, and nothing follows
    RESUME = "resume"  # the assistant speaks again: the cut answer continues


FLOORS: Mapping[Action, tuple[Floor, ...]] = {
    Action.ANSWER: (Floor.SPEAKING, Floor.SILENT),
    Action.WAIT: (Floor.SILENT,),
    Action.GO_ON: (Floor.SPEAKING,),
    Action.STOP: (Floor.SPEAKING,),
    Action.RESUME: (Floor.SILENT,),
}
"""Floors at which an action makes sense; the first is the default of a case."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something that the user, or somebody near the microphone, does at a given time."""

    at: float
    speak: str | None = None  # said at the pace of speech; [1.2] is a pause in seconds
    type: str | None = None  # sent at once
    text: str | None = None  # words of `utterance` so far, as they were recorded
    command: str | None = None  # stop, resume or respond
    utterance: str = ""
    final: bool = True  # of `text`

    @property
    def words(self) -> str:
        """The words said or typed; "" for a command."""
        return self.speak or self.type or self.text or ""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must happen. Nothing before `start` counts; `at` is the gold time, when it becomes right to act."""

    action: Action
    start: float  # the user begins
    at: float  # the user's words end
    within: float = WITHIN_S  # seconds after `at` in which it must happen, or in which nothing may
    floor: Floor = Floor.SILENT
    to: str = ""  # the turn that is answered ends with these words
    intent: str = ""  # for the table of intents

    @property
    def until(self) -> float:
        """The end of the judged period."""
        return self.at + self.within


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation. An `answer` to the last turn of `history` is running from the start."""

    id: str
    kind: str
    history: tuple[Turn, ...]
    answer: str | None
    acts: tuple[Act, ...]
    expect: tuple[Expectation, ...]
    reply: str = REPLY
    pair: str = ""  # cases with the same value form a minimal pair
    words: str = ""  # of a pair: the words that both halves share

    @property
    def end(self) -> float:
        """The time at which everything has been judged."""
        return max(one.until for one in self.expect) + 0.5

    def cues(self) -> list[Cue]:
        """The inputs of the session, in order of time. SpeechInterval grows as a recogniser would report it."""
        cues: list[Cue] = []
        for number, act in enumerate(self.acts):
            name = act.utterance or f"u{number}"
            if act.speak is not None:
                cues += spoken(act.speak, act.at, name)[0]
            elif act.type is not None:
                cues.append(Cue(act.at, act.type, name, final=True))
            elif act.text is not None:
                cues.append(Cue(act.at, act.text, name, final=act.final))
            else:
                cues.append(Cue(act.at, command=act.command))
        return sorted(cues, key=lambda cue: cue.at)

    def to_json(self) -> dict[str, Any]:
        """The case as an object, as in a line of a file."""
        row: dict[str, Any] = {"id": self.id, "kind": self.kind}
        if self.history:
            row["history"] = [{"role": turn.role.value, "text": turn.text} for turn in self.history]
        if self.answer is not None:
            row["answer"] = self.answer
        row["acts"] = [
            {"at": act.at, **{name: value for name in _ACTS if (value := getattr(act, name)) is not None}}
            | ({"utterance": act.utterance} if act.utterance else {})
            | ({"final": act.final} if act.text is not None else {})
            for act in self.acts
        ]
        row["expect"] = [
            {"action": one.action.value, "from": one.start, "at": one.at, "within": one.within}
            | {"floor": one.floor.value}
            | {name: value for name in ("to", "intent") if (value := getattr(one, name))}
            for one in self.expect
        ]
        if self.reply != REPLY:
            row["reply"] = self.reply
        return row | {name: value for name in ("pair", "words") if (value := getattr(self, name))}


_ACTS = ("speak", "type", "text", "command")
_COMMANDS = ("stop", "resume", "respond")


def spoken(text: str, at: float, utterance: str) -> tuple[list[Cue], list[tuple[float, float]], float]:
    """The cues of a speaker who begins at `at`, the pauses (start, duration), and the end of the last word."""
    cues: list[Cue] = []
    pauses: list[tuple[float, float]] = []
    parts = _PAUSE.split(text)
    said: list[str] = []
    now, number, name = at, 0, utterance
    cues.append(Cue(now, "", name))
    for chunk, pause in zip(parts[::2], [*parts[1::2], None], strict=True):
        words = words_of(chunk)
        for i, word in enumerate(words, 1):
            said.append(word)
            now = round(now + 1 / WORDS_PER_S, 3)
            if i % WORDS_PER_PARTIAL == 0 or i == len(words):
                cues.append(Cue(now, join(said), name))
        if pause is not None and float(pause) < ENDPOINT_S:
            pauses.append((now, float(pause)))
            now = round(now + float(pause), 3)
            continue
        cues.append(Cue(round(now + ENDPOINT_S, 3), join(said), name, final=True))
        if pause is not None:
            pauses.append((now, float(pause)))
            now = round(now + float(pause), 3)
            number, said = number + 1, []
            name = f"{utterance}.{number}"
            cues.append(Cue(now, "", name))
    return cues, pauses, cues[-1].at - ENDPOINT_S


def plain_words(text: str) -> list[str]:
    """Words of `text` without pauses, case and punctuation."""
    return [part for word in words_of(_PAUSE.sub(" ", text).lower()) for part in re.findall(r"[\w']+", word)]


def set_hash(cases: Iterable[Case]) -> str:
    """A hash that identifies a set. It changes with every word, time and label."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(json.dumps(case.to_json(), sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:16]


def read_cases(path: Path) -> list[Case]:
    """Read a file of cases, or all `.jsonl` files of a folder.

    Raises:
        BadData: there are no cases, or a line is invalid; the message names file and line.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    cases: list[Case] = []
    seen: dict[str, str] = {}
    for file in files:
        for number, row in read_rows(file):
            where = f"{file}, line {number}"
            try:
                case = case_from(row)
            except BadData as error:
                raise BadData(f"{where}: {error}") from error
            if case.id in seen:
                raise BadData(f"{where}: the id {case.id!r} is that of {seen[case.id]}, too")
            seen[case.id] = where
            cases.append(case)
    if not cases:
        raise BadData(f"{path} has no cases; one JSON object a line, as docs/behaviour.md describes")
    return cases


def case_from(row: Mapping[str, Any]) -> Case:
    """The case that a line describes.

    Raises:
        BadData: a field is missing or unknown, or contradicts another.
    """
    found = _fields(row, "a case", _CASE, optional={"history", "answer", "reply", "pair", "words"})
    _need(found["kind"] in KINDS, f"unknown kind {found['kind']!r}; there are {', '.join(KINDS)}")
    has_answer = "answer" in found
    case = Case(
        **{"answer": None, **found}
        | {
            "history": tuple(_turn(turn) for turn in found.get("history", ())),
            "acts": tuple(_act(one) for one in found["acts"]),
            "expect": tuple(_expectation(one, over=has_answer and not i) for i, one in enumerate(found["expect"])),
        }
    )
    check(case)
    return case


def check(case: Case) -> None:
    """Raise `BadData` if `case` contradicts itself."""
    _need(bool(case.acts and case.expect), "a case needs at least one act and one expectation")
    is_asked = bool(case.history) and case.history[-1].role is Role.USER
    _need(
        case.answer is None or is_asked,
        '"answer" is what is being said to the user: the last turn of "history" must be the user\'s',
    )
    _need(case.answer is not None or not is_asked, '"history" ends with a user\'s turn, and there is no "answer" to it')
    for name, times in (("acts", [a.at for a in case.acts]), ("expect", [e.start for e in case.expect])):
        for earlier, later in pairwise(times):
            _need(earlier <= later, f'times of "{name}" go back: {later:g} s comes behind {earlier:g} s')
    can_speak = case.answer is not None
    for number, one in enumerate(case.expect, 1):
        _check_expectation(f"expectation {number}", one, case, can_speak=can_speak)
        can_speak |= one.action is Action.ANSWER
    for number, (before, after) in enumerate(pairwise(case.expect), 1):
        _check_order(f"expectations {number} and {number + 1}", before, after)


def _check_expectation(name: str, one: Expectation, case: Case, *, can_speak: bool) -> None:
    what = f"{name}: {one.action}"
    _need(one.floor in FLOORS[one.action], f"{what} while the assistant is {one.floor} contradicts itself")
    is_possible = can_speak or one.floor is Floor.SILENT
    _need(is_possible, f"{name}: the assistant cannot be speaking; nothing has been answered by then")
    is_possible = can_speak or one.action is not Action.RESUME
    _need(is_possible, f"{name}: nothing can be resumed; nothing has been answered by then")
    _need(not one.to or one.action is Action.ANSWER, f'{what} answers nothing, so "to" cannot name what is answered')
    said = [word for act in case.acts if act.at <= one.at for word in plain_words(act.words)]
    unsaid = [word for word in plain_words(one.to) if word not in said]
    _need(not unsaid, f'{name}: "to" has {unsaid[:1]}, which nobody has said by {one.at:g} s')


def _check_order(names: str, before: Expectation, after: Expectation) -> None:
    """Check that successive expectations can both be met."""
    silent = {Action.WAIT, Action.GO_ON, Action.STOP}
    is_open = before.action not in silent or after.action in silent or after.until > before.until
    _need(
        is_open,
        f"{names} contradict each other: {before.action} until {before.until:g} s leaves no time for {after.action} "
        f"up to {after.until:g} s",
    )
    has_ended = (before.action, after.action) != (Action.ANSWER, Action.WAIT) or after.at >= before.until
    times = f"silence from {after.at:g} s, and an answer up to {before.until:g} s"
    _need(has_ended, f"{names} contradict each other: {times}")
    is_same = (before.start, before.at) == (after.start, after.at)
    is_one = not is_same or before.action is after.action
    _need(is_one, f"{names} want {before.action} and {after.action} of the same words")


def _turn(row: Any) -> Turn:
    found = _fields(row, "a turn", {"role": _text, "text": _text})
    _need(found["role"] in ("user", "assistant"), f"a turn has role {found['role']!r}; there are user and assistant")
    return Turn(Role(found["role"]), found["text"])


def _act(row: Any) -> Act:
    found = _fields(row, "an act", _ACT, optional=_ACT.keys() - {"at"})
    named = [name for name in _ACTS if name in found]
    _need(len(named) == 1, f"an act has exactly one of {', '.join(_ACTS)}; this one has {', '.join(named) or 'none'}")
    value = found[named[0]]
    is_known = named[0] != "command" or value in _COMMANDS
    _need(is_known, f"unknown command {value!r}; there are {', '.join(_COMMANDS)}")
    _need(named[0] not in ("speak", "type") or bool(value.strip()), f'"{named[0]}" has no words')
    return Act(**found)


def _expectation(row: Any, *, over: bool) -> Expectation:
    """`over`: the assistant is speaking unless the row says otherwise."""
    found = _fields(row, "an expectation", _EXPECTATION, optional=_EXPECTATION.keys() - {"action", "at"})
    name, at = found["action"], found["at"]
    _need(name in list(Action), f"unknown action {name!r}; there are {', '.join(Action)}")
    floor = found.get("floor", Floor.SPEAKING if over else FLOORS[Action(name)][-1])
    _need(floor in ("speaking", "silent"), f"unknown floor {floor!r}; there are speaking and silent")
    start = found.pop("from", at)
    _need(start <= at, f'times go back: "from" is {start:g} s and "at" {at:g} s')
    _need(found.get("within") != 0, '"within" is 0; something must have time to happen')
    return Expectation(**found | {"action": Action(name), "start": start, "floor": Floor(floor)})


def _need(is_fine: bool, message: str) -> None:
    if not is_fine:
        raise BadData(message)


def _fields(
    row: Any, what: str, kinds: Mapping[str, Callable[[Any], str]], *, optional: Iterable[str] = ()
) -> dict[str, Any]:
    """The fields of `row`. `kinds` maps each field to a function that returns what is wrong with a value, or ""."""
    _need(isinstance(row, dict), f"{what} is a JSON object, not {row!r:.60}")
    missing = sorted(kinds.keys() - set(optional) - row.keys())
    _need(not missing, f"{what} lacks {', '.join(missing)}")
    unknown = sorted(row.keys() - kinds.keys())
    _need(not unknown, f"{what} has unknown fields: {', '.join(unknown)}")
    for name, value in row.items():
        wrong = kinds[name](value)
        _need(not wrong, f'"{name}" is {value!r:.60}; it is {wrong}')
    return dict(row)


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "text in quotes"


def _list(value: Any) -> str:
    return "" if isinstance(value, list) else "a list"


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _seconds(value: Any) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "" if is_number and 0 <= value < _LATEST_S else "a number of seconds from the beginning"


_TEXTS = dict.fromkeys(("id", "kind", "answer", "reply", "pair", "words"), _text)
_CASE = {**_TEXTS, "history": _list, "acts": _list, "expect": _list}
_ACT = {"at": _seconds, "final": _flag, **dict.fromkeys((*_ACTS, "utterance"), _text)}
_NAMES = dict.fromkeys(("action", "floor", "to", "intent"), _text)
_EXPECTATION = {**_NAMES, "at": _seconds, "from": _seconds, "within": _seconds}
