"""Makes conversations from templates: fills in names and places, and draws forms, contexts and times.

The same seed gives the same conversations on every machine, because a hash is the only source of randomness.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import final

from duologue.core.transitions import Floor
from duologue.errors import UsageError
from duologue.evaluation.behaviour.cases import (
    PLAYED_PER_S,
    REPLY,
    WITHIN_S,
    Act,
    Action,
    Case,
    Expectation,
    check,
    plain_words,
    set_hash,
    spoken,
)
from duologue.types import Role, Turn

TEST_SEED = 0
DEV_SEED = 1
DEV_SHARE = 10  # every tenth conversation, or minimal pair, of the other seed
FROZEN = "2f598ebee4abb260"
"""Hash of the test set. It must never change: results are comparable as long as it is the same."""

PAUSES_S = (0.6, 1.2, 2.0)
_WAIT_S = 2.5
_STEP = re.compile(r"(?:\+(?P<gap>[\d.]+) )?(?P<who>2|echo|raw)?> (?P<text>.+?)(?: => (?P<action>\w+))?")
_SLOT = re.compile(r"\{(?P<name>[a-z]+)(?P<other>2?)\}")
_FIRST_S = 1.0  # when the user begins, if nobody speaks
_OVER_S = (2.6, 4.6)  # when the user begins, if an answer is running
_ECHO_S = 0.4  # from the playback of words to their recognition
_REPLY_S = 0.8  # approximate time until an answer begins
_OPENINGS = ("I need some help.", "Hi, do you have a minute?", "Let's get started.", "Okay, I'm ready.", "Hello again!")

_SIDE_TALK = {"to_somebody_else", "two_users", "pair_bystander", "pair_name"}
_REPLIES = {"reply", "wait_a_second", "pair_list", "pair_stop", "pair_echo"}
_STEERING = {"steering", "self_correction", "typed_correction", "reply"}


@final
class HashedRandom:
    """Random numbers that depend only on a name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number from `low` to below `high`."""
        digest = hashlib.sha256(f"{self._name}/{self._count}".encode()).digest()
        self._count += 1
        return low + (high - low) * int.from_bytes(digest[:6], "big") / (1 << 48)

    def choice(self, values: Sequence[str]) -> str:
        """One of `values`."""
        return values[int(self.uniform(0, len(values)))]


@dataclass(frozen=True, slots=True)
class _Section:
    """The templates of one kind of conversation."""

    kind: str
    form: str
    wait_s: float
    lines: tuple[str, ...]


def generate(seed: int = TEST_SEED) -> list[Case]:
    """All conversations of `seed`."""
    cases: list[Case] = []
    for section in _sections():
        for number, line in enumerate(section.lines):
            if section.kind == "pause":
                for pause in PAUSES_S:
                    name = f"pause_{pause:.1f}"
                    filled = line.replace("[P]", f"[{pause}]")
                    cases += _Writer(section, name, number, seed).cases(filled)
            else:
                cases += _Writer(section, section.kind, number, seed).cases(line)
    return cases


def split(name: str) -> list[Case]:
    """The conversations of a split: "test" is frozen; "dev", for tuning, has a tenth as many.

    Raises:
        UsageError: there is no such split, or the test set is not the one that was frozen.
    """
    if name == "dev":
        cases = generate(DEV_SEED)
        names = list(dict.fromkeys(case.pair or case.id for case in cases))[::DEV_SHARE]
        return [case for case in cases if (case.pair or case.id) in names]
    if name != "test":
        raise UsageError(f"no split {name!r}; there are test and dev")
    cases = generate(TEST_SEED)
    if set_hash(cases) != FROZEN:
        raise UsageError(
            f"the conversations of this installation have the hash {set_hash(cases)}, those of the benchmark {FROZEN}: "
            "their texts were changed, so results would not be comparable; reinstall duologue"
        )
    return cases


@final
class _Writer:
    """Turns one line into a conversation, or into the two of a minimal pair."""

    def __init__(self, section: _Section, kind: str, number: int, seed: int) -> None:
        self._kind = kind
        self._wait_s = section.wait_s
        self._name = f"{kind}-{number + 1:02d}"
        self._chance = HashedRandom(f"{seed}/{section.kind}/{number}")
        self._slots: dict[str, str] = {}
        self._form = section.form if section.form != "both" else self._chance.choice(("spoken", "spoken", "typed"))

    def cases(self, line: str) -> list[Case]:
        """The cases that the line describes."""
        variants = line.split(" || ")
        if len(variants) == 1:
            return [self._case(self._name, variants[0])]
        a, b = (self._case(f"{self._name}{letter}", text) for letter, text in zip("ab", variants, strict=True))
        shared = next(words for words in _chunks(b) if words in _chunks(a)[-1:])
        return [
            Case(c.id, c.kind, c.history, c.answer, c.acts, c.expect, c.reply, pair=self._name, words=shared)
            for c in (a, b)
        ]

    def _case(self, name: str, text: str) -> Case:
        history: list[Turn] = []
        answer: str | None = None
        steps: list[re.Match[str]] = []
        for part in text.split(" | "):
            tag, _, rest = part.partition(" ")
            if tag == "U:":
                history.append(Turn(Role.USER, self._said(rest)))
            elif tag == "A:":
                history.append(Turn(Role.ASSISTANT, self._filled(rest, "typed")))
            elif tag == "S:":
                answer = self._filled(rest, "typed")
            elif part[0] in "@#":
                names = sorted(_contexts())
                question, said = _contexts()[part[1:] if part[1:] != "*" else self._chance.choice(names)]
                history.append(Turn(Role.USER, self._said(question)))
                if part[0] == "@":
                    answer = said
                else:
                    history.append(Turn(Role.ASSISTANT, said))
            elif (step := _STEP.fullmatch(part)) is not None:
                steps.append(step)
            else:
                raise ValueError(f"{self._name}: {part!r} is not part of a conversation")
        if history and history[0].role is Role.ASSISTANT:  # some chat templates require that a user begins
            history.insert(0, Turn(Role.USER, self._said(self._chance.choice(_OPENINGS))))
        case = self._timed(name, history, answer, steps)
        check(case)
        return case

    def _timed(self, name: str, history: list[Turn], answer: str | None, steps: list[re.Match[str]]) -> Case:
        """Give every step its time and its label."""
        acts: list[Act] = []
        expect: list[Expectation] = []
        floor_until = len(answer) / PLAYED_PER_S if answer else 0.0  # when the assistant will have finished
        now = 0.0
        onsets = []
        for number, step in enumerate(steps):
            onset = self._onset(step, number, now, answer)
            onsets.append(onset)
            said = step["text"] if step["who"] == "raw" else self._said(step["text"])
            is_typed = self._form == "typed" or step["who"] == "raw"
            acts.append(Act(onset, type=said) if is_typed else Act(onset, speak=said))
            pauses, now = ([], onset) if is_typed else spoken(said, onset, "")[1:]
            floor = Floor.SPEAKING if onset < floor_until else Floor.SILENT
            start = onset
            for at, seconds in pauses if step["action"] else ():
                expect.append(self._expectation(Action.WAIT, start, at, seconds, Floor.SILENT, ""))
                start = round(at + seconds, 3)
            if step["action"]:
                action = Action(step["action"])
                within = self._wait_s if action is Action.WAIT else WITHIN_S
                to = " ".join(plain_words(said)) if action is Action.ANSWER else ""
                expect.append(self._expectation(action, start, now, within, floor, to))
                if action is Action.ANSWER:
                    floor_until = now + _REPLY_S + len(REPLY) / PLAYED_PER_S
                elif action in (Action.STOP, Action.WAIT):
                    floor_until = 0.0
        expect = [
            _before(one, min((at for at in onsets if at > one.start and at >= one.at), default=1e9)) for one in expect
        ]
        return Case(name, self._kind, tuple(history), answer, tuple(acts), tuple(expect))

    def _onset(self, step: re.Match[str], number: int, now: float, answer: str | None) -> float:
        if step["who"] == "echo":
            assert answer is not None, "what is heard of an answer"
            return round(answer.lower().index(step["text"]) / PLAYED_PER_S + _ECHO_S, 1)
        gap = float(step["gap"]) if step["gap"] else None
        if number:
            return round(now + (2.5 if gap is None else gap), 3)
        if answer is not None:
            return round(self._chance.uniform(*_OVER_S) + (gap or 0.0), 1)
        return _FIRST_S if gap is None else gap

    def _expectation(
        self, action: Action, start: float, at: float, within: float, floor: Floor, to: str
    ) -> Expectation:
        return Expectation(action, start, round(at, 3), within, floor, to, _intent(self._kind, action, floor))

    def _said(self, text: str) -> str:
        """The words of a user: as typed, or as a recogniser writes them, in lower case and without punctuation."""
        filled = self._filled(text, self._form)
        if self._form == "typed":
            return filled
        return re.sub(r'[,;:!?"“”*]|\.(?!\d)', "", filled.replace("-", " ")).lower()

    def _filled(self, text: str, form: str) -> str:
        return _SLOT.sub(lambda slot: self._slot(slot, form), text)

    def _slot(self, slot: re.Match[str], form: str) -> str:
        name, key = slot["name"], slot["name"] + slot["other"]
        for needed in (name, key):  # the second city differs from the first
            if needed not in self._slots:
                taken = self._slots.get(name)
                self._slots[needed] = self._chance.choice([one for one in _slots()[name] if one != taken])
        typed, _, said = self._slots[key].partition("~")
        return said if said and form == "spoken" else typed


def _before(one: Expectation, next_at: float) -> Expectation:
    """`one`, judged no longer than until the user continues."""
    within = round(min(one.within, next_at - one.at), 3)
    return Expectation(one.action, one.start, one.at, within, one.floor, one.to, one.intent)


def _chunks(case: Case) -> list[str]:
    """The words of each utterance, divided at pauses."""
    texts = [part for act in case.acts for part in re.split(r"\[[\d.]+\]", act.speak or act.type or "")]
    return [" ".join(plain_words(text)) for text in texts]


def _intent(kind: str, action: Action, floor: Floor) -> str:
    """The intent of CoDeTT's table, by what the user does and who has the floor."""
    if action is Action.RESUME:
        return "cooperation"
    if action is Action.ANSWER and floor is Floor.SPEAKING:
        return "collaboration" if kind in _STEERING else "interruption"
    if action is Action.ANSWER:
        return "cooperation" if kind in _REPLIES or kind.startswith("pair_") else "completion"
    if action is Action.STOP:
        return "dismissal"
    if kind in _SIDE_TALK:
        return "side_talk"
    if kind in ("echo", "recogniser_mark", "pair_echo"):
        return "invalidation"
    if kind.startswith("background"):
        return "distraction" if floor is Floor.SPEAKING else "exclusion"
    if action is Action.GO_ON:
        return "backchannel"
    return "dismissal" if kind == "wait_a_second" else "incomplete"


def _read(name: str) -> list[str]:
    text = (resources.files(__package__) / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("# ")]


@cache
def _sections() -> tuple[_Section, ...]:
    found: list[tuple[list[str], list[str]]] = []
    for line in _read("conversations.txt"):
        if line.startswith("[") and line.endswith("]"):
            found.append((line[1:-1].split(), []))
        else:
            found[-1][1].append(line)
    return tuple(
        _Section(head[0], head[1], float(head[2].removeprefix("wait=")) if head[2:] else _WAIT_S, tuple(lines))
        for head, lines in found
    )


@cache
def _contexts() -> dict[str, tuple[str, str]]:
    """The question and the answer of each context, by name."""
    lines = _read("contexts.txt")
    names = [line[1:-1] for line in lines[::3]]
    return dict(zip(names, zip(lines[1::3], lines[2::3], strict=True), strict=True))


@cache
def _slots() -> dict[str, list[str]]:
    return {name: values.split(", ") for name, _, values in (line.partition(": ") for line in _read("slots.txt"))}
