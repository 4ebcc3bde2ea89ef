"""Conversations with labels: who has the floor, what the user does, what must happen, by when.

A case is one line of JSON. `docs/behaviour.md` describes every field.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
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
from duologue.types import Role, Turn

WORDS_PER_S = 2.5
"""Pace of speech, 150 words a minute."""
WORDS_PER_PARTIAL = 2
"""A recogniser reports its words so far after every second word, and at once when the speaker pauses."""
ENDPOINT_S = 0.8
"""Silence after which a recogniser ends the utterance; what follows is a new one."""
PLAYED_PER_S = WORDS_PER_S * CHARACTERS_PER_WORD
"""Characters of an answer that are heard in a second."""
WITHIN_S = 2.0
"""TurnBench counts what happens up to two seconds after the gold time."""
REPLY = "It is simply a name for that, nothing more."
"""What the assistant says where a case does not say it."""

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
"""Kinds of conversations: those of the set, recorded ones, and other people's."""


class Action(StrEnum):
    """What must happen."""

    ANSWER = "answer"  # a new answer begins; one that is running ends
    WAIT = "wait"  # nobody is speaking, and the assistant stays silent
    GO_ON = "go_on"  # the answer goes on as if nothing had been said
    STOP = "stop"  # the answer ends, and nothing follows
    RESUME = "resume"  # the assistant speaks again: the answer that was cut goes on


FLOORS: Mapping[Action, tuple[Floor, ...]] = {
    Action.ANSWER: (Floor.SPEAKING, Floor.SILENT),
    Action.WAIT: (Floor.SILENT,),
    Action.GO_ON: (Floor.SPEAKING,),
    Action.STOP: (Floor.SPEAKING,),
    Action.RESUME: (Floor.SILENT,),
}
"""Where an action makes sense; the first is what it means if a case does not say it."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something the user, or somebody near the microphone, does at a time."""

    at: float
    speak: str | None = None  # said at the pace of speech; [1.2] is a pause of so many seconds
    type: str | None = None  # sent at once
    text: str | None = None  # words of `utterance` so far, as they were recorded
    command: str | None = None  # stop, resume or respond
    utterance: str = ""
    final: bool = True  # of `text`


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must happen. Nothing before `start` counts; `at` is the gold time, when it becomes right to act."""

    action: Action
    start: float  # the user begins
    at: float  # the user's words end
    within: float = WITHIN_S  # seconds behind `at` in which it must happen, or in which nothing must
    floor: Floor = Floor.SILENT
    to: str = ""  # the turn that is answered ends with these words
    intent: str = ""  # for the table of intents

    @property
    def until(self) -> float:
        """End of what is judged."""
        return self.at + self.within


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation. An `answer` is being said from the beginning on, to the last turn of `history`."""

    id: str
    kind: str
    history: tuple[Turn, ...]
    answer: str | None
    acts: tuple[Act, ...]
    expect: tuple[Expectation, ...]
    reply: str = REPLY
    pair: str = ""  # cases with the same name here are a minimal pair
    words: str = ""  # of a pair: the words that both halves share

    @property
    def end(self) -> float:
        """Time at which everything has been judged."""
        return max(one.until for one in self.expect) + 0.5

    def cues(self) -> list[Cue]:
        """What the session is told, in order of time. Speech grows as a recogniser would report it."""
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
        """As a line of a file has it."""
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
    """Cues of a speaker who begins at `at`; the pauses (when, how long); when the last word ends."""
    cues: list[Cue] = []
    pauses: list[tuple[float, float]] = []
    parts = _PAUSE.split(text)
    said: list[str] = []
    now, number, name = at, 0, utterance
    cues.append(Cue(now, "", name))
    for chunk, pause in zip(parts[::2], [*parts[1::2], None], strict=True):
        words = chunk.split()
        for i, word in enumerate(words, 1):
            said.append(word)
            now = round(now + 1 / WORDS_PER_S, 3)
            if i % WORDS_PER_PARTIAL == 0 or i == len(words):
                cues.append(Cue(now, " ".join(said), name))
        if pause is not None and float(pause) < ENDPOINT_S:
            pauses.append((now, float(pause)))
            now = round(now + float(pause), 3)
            continue
        cues.append(Cue(round(now + ENDPOINT_S, 3), " ".join(said), name, final=True))
        if pause is not None:
            pauses.append((now, float(pause)))
            now = round(now + float(pause), 3)
            number, said = number + 1, []
            name = f"{utterance}.{number}"
            cues.append(Cue(now, "", name))
    return cues, pauses, cues[-1].at - ENDPOINT_S


def plain_words(text: str) -> list[str]:
    """Words of `text` without pauses, case and punctuation."""
    return re.findall(r"[\w']+", _PAUSE.sub(" ", text).lower())


def set_hash(cases: Iterable[Case]) -> str:
    """What names a set: changes with every word, time and label in it."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(json.dumps(case.to_json(), sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:16]


def read_cases(path: Path) -> list[Case]:
    """Read a file of cases, or all `.jsonl` files of a folder.

    Raises:
        BadData: nothing is there, or a line cannot be used; the message names file and line.
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
        BadData: something is missing, unknown, or contradicts the rest.
    """
    _only(row, "a case", {"id", "kind", "acts", "expect"}, {"history", "answer", "reply", "pair", "words"})
    kind = _text(row, "kind")
    if kind not in KINDS:
        raise BadData(f"unknown kind {kind!r}; there are {', '.join(KINDS)}")
    history = tuple(_turn(turn) for turn in _list(row, "history")) if "history" in row else ()
    answer = _text(row, "answer") if "answer" in row else None
    acts = tuple(_act(one) for one in _list(row, "acts"))
    expect = tuple(
        _expectation(one, is_first=i == 0, has_answer=answer is not None) for i, one in enumerate(_list(row, "expect"))
    )
    case = Case(
        _text(row, "id"), kind, history, answer, acts, expect,
        reply=_text(row, "reply") if "reply" in row else REPLY,
        pair=_text(row, "pair") if "pair" in row else "",
        words=_text(row, "words") if "words" in row else "",
    )  # fmt: skip
    check(case)
    return case


def check(case: Case) -> None:
    """Raise `BadData` for what contradicts itself in `case`."""
    if not case.acts or not case.expect:
        raise BadData("a case needs at least one act and one expectation")
    if case.answer is not None and (not case.history or case.history[-1].role is not Role.USER):
        raise BadData('"answer" is what is being said to the user: the last turn of "history" must be the user\'s')
    if case.answer is None and case.history and case.history[-1].role is Role.USER:
        raise BadData('"history" ends with a user\'s turn, and there is no "answer" to it')
    for name, times in (("acts", [a.at for a in case.acts]), ("expect", [e.start for e in case.expect])):
        for earlier, later in pairwise(times):
            if later < earlier:
                raise BadData(f'times of "{name}" go back: {later:g} s comes behind {earlier:g} s')
    can_speak = case.answer is not None
    for number, one in enumerate(case.expect):
        if one.floor not in FLOORS[one.action]:
            raise BadData(
                f"expectation {number + 1}: {one.action} while the assistant is {one.floor} contradicts itself"
            )
        if one.floor is Floor.SPEAKING and not can_speak:
            raise BadData(
                f"expectation {number + 1}: the assistant cannot be speaking; nothing has been answered by then"
            )
        if one.action is Action.RESUME and not can_speak:
            raise BadData(f"expectation {number + 1}: nothing can be resumed; nothing has been answered by then")
        if one.to and one.action is not Action.ANSWER:
            raise BadData(f'expectation {number + 1}: "to" names what is answered, and {one.action} answers nothing')
        can_speak |= one.action is Action.ANSWER
    for number, (before, after) in enumerate(pairwise(case.expect), 1):
        _check_order(number, before, after)
    _check_answered(case)


def _check_order(number: int, before: Expectation, after: Expectation) -> None:
    """Two expectations that cannot both be met."""
    silent = {Action.WAIT, Action.GO_ON, Action.STOP}
    if before.action in silent and after.action not in silent and after.until <= before.until:
        raise BadData(
            f"expectations {number} and {number + 1} contradict each other: {before.action} until {before.until:g} s "
            f"leaves no time for {after.action} up to {after.until:g} s"
        )
    if (before.start, before.at) == (after.start, after.at) and before.action is not after.action:
        raise BadData(
            f"expectations {number} and {number + 1} want {before.action} and {after.action} of the same words"
        )


def _check_answered(case: Case) -> None:
    """Words that are to be answered must have been said by then."""
    for number, one in enumerate(case.expect, 1):
        said = [word for act in case.acts if act.at <= one.at for word in plain_words(_said(act))]
        for word in plain_words(one.to):
            if word not in said:
                raise BadData(f'expectation {number}: "to" has {word!r}, which nobody has said by {one.at:g} s')


def _said(act: Act) -> str:
    return act.speak or act.type or act.text or ""


def _turn(row: Any) -> Turn:
    _only(row, "a turn", {"role", "text"})
    role = _text(row, "role")
    if role not in (Role.USER, Role.ASSISTANT):
        raise BadData(f"a turn has role {role!r}; there are user and assistant")
    return Turn(Role(role), _text(row, "text"))


def _act(row: Any) -> Act:
    _only(row, "an act", {"at"}, {*_ACTS, "utterance", "final"})
    named = [name for name in _ACTS if name in row]
    if len(named) != 1:
        raise BadData(f"an act has exactly one of {', '.join(_ACTS)}; this one has {', '.join(named) or 'none'}")
    value = _text(row, named[0])
    if named[0] == "command" and value not in _COMMANDS:
        raise BadData(f"unknown command {value!r}; there are {', '.join(_COMMANDS)}")
    if named[0] in ("speak", "type") and not value.strip():
        raise BadData(f'"{named[0]}" has no words')
    final = row.get("final", True)
    if not isinstance(final, bool):
        raise BadData(f'"final" is {final!r}; it is true or false')
    utterance = _text(row, "utterance") if "utterance" in row else ""
    return Act(_seconds(row, "at"), **{named[0]: value}, utterance=utterance, final=final)


def _expectation(row: Any, *, is_first: bool, has_answer: bool) -> Expectation:
    _only(row, "an expectation", {"action", "at"}, {"from", "within", "floor", "to", "intent"})
    name = _text(row, "action")
    if name not in list(Action):
        raise BadData(f"unknown action {name!r}; there are {', '.join(Action)}")
    action, at = Action(name), _seconds(row, "at")
    start = _seconds(row, "from") if "from" in row else at
    if start > at:
        raise BadData(f'times go back: "from" is {start:g} s and "at" {at:g} s')
    within = _seconds(row, "within") if "within" in row else WITHIN_S
    if within == 0:
        raise BadData('"within" is 0; something must have time to happen')
    floor = Floor.SPEAKING if is_first and has_answer else FLOORS[action][-1]
    if "floor" in row:
        if row["floor"] not in list(Floor):
            raise BadData(f"unknown floor {row['floor']!r}; there are speaking and silent")
        floor = Floor(row["floor"])
    texts = {key: _text(row, key) for key in ("to", "intent") if key in row}
    return Expectation(action, start, at, within, floor, **texts)


def _only(row: Any, what: str, needed: set[str], allowed: Sequence[str] | set[str] = ()) -> None:
    if not isinstance(row, dict):
        raise BadData(f"{what} is a JSON object, not {row!r:.60}")
    if missing := needed - row.keys():
        raise BadData(f"{what} lacks {', '.join(sorted(missing))}")
    if unknown := row.keys() - needed - set(allowed):
        raise BadData(f"{what} has unknown fields: {', '.join(sorted(unknown))}")


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row[name]
    if not isinstance(value, list):
        raise BadData(f'"{name}" is a list, not {value!r:.60}')
    return value


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise BadData(f'"{name}" is text in quotes, not {value!r:.60}')
    return value


def _seconds(row: Mapping[str, Any], name: str) -> float:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _LATEST_S:
        raise BadData(f'"{name}" is {value!r:.60}; it is a number of seconds from the beginning')
    return float(value)
