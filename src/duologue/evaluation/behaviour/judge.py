"""Judges a case by rules on events, never by a model.

The assistant speaks from the first released text of an answer to the end of the answer, or the cut. An answer of which
no whole word was heard does not count as spoken. Gaps of up to half a second within an answer are ignored, as in
Full-Duplex-Bench v1.5 (arXiv 2507.23159), which merges such gaps before it measures overlap.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from duologue.core import events as e
from duologue.core.transitions import Floor
from duologue.evaluation.behaviour.cases import PLAYED_PER_S, Action, Case, Expectation, plain_words
from duologue.text.words import words_of

GAP_S = 0.5
_EARLY_WORDS, _EARLY_S = 3, 1.0  # not yet a takeover, by Full-Duplex-Bench v1 (arXiv 2503.04721)


@dataclass(frozen=True, slots=True)
class SpeechInterval:
    """A stretch in which the assistant speaks."""

    answer: int
    start: float
    end: float
    asked: str  # the user's turn that it answers
    text: str = ""  # the part that was heard
    resumed: bool = False  # it continues an answer that was cut
    cut: bool = False  # it ended before the answer did

    @property
    def is_takeover(self) -> bool:
        """Whether it counts as a takeover: not if it was shorter than a second and had at most three words."""
        return self.end - self.start >= _EARLY_S or len(words_of(self.text)) > _EARLY_WORDS


class Problem(StrEnum):
    """Why an expectation was not met."""

    NONE = ""
    EARLY = "early"  # an answer began before the user had finished
    MISSED = "missed"  # nothing began in time
    WRONG_TURN = "wrong turn"  # an answer began in time, to something else
    CUT = "cut"  # the answer did not continue
    WENT_ON = "went on"  # the answer was not cut
    SPOKE = "spoke"  # the assistant should have been silent
    NOT_SPEAKING = "not speaking"  # there was no answer left to continue


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one expectation."""

    expectation: Expectation
    problem: Problem
    acted: bool  # whether the action was right, as CoDeTT counts it, regardless of what was answered
    delay_s: float | None = None  # from the gold time to the first sound of an answer
    overlap_s: float | None = None  # from the start of the user to the cut of the running answer

    @property
    def right(self) -> bool:
        """Whether the expectation was met."""
        return self.problem is Problem.NONE

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON, for the page and for files."""
        return {
            "action": self.expectation.action.value,
            "from": self.expectation.start,
            "at": self.expectation.at,
            "until": round(self.expectation.until, 3),
            "problem": self.problem.value,
            "delay_s": None if self.delay_s is None else round(self.delay_s, 3),
        }


def speeches(events: Iterable[e.Event], end: float) -> list[SpeechInterval]:
    """The stretches in which the assistant speaks."""
    found: list[SpeechInterval] = []
    asked: dict[int, str] = {}
    texts: dict[int, str] = {}
    resumed: set[int] = set()
    now: SpeechInterval | None = None
    begun = 0  # characters that had been heard when it began

    def close(at: float, *, cut: bool) -> None:
        nonlocal now
        if now is not None and now.text.strip():
            found.append(replace(now, end=at, cut=cut))
        now = None

    for event in events:
        match event:
            case e.Promoted(text=text, answer=answer):
                asked[answer] = text
            case e.Resumed(answer=answer, suspended=suspended):
                resumed.add(answer)
                asked.setdefault(answer, asked.get(suspended, ""))
            case e.Said(at, answer, start, text):
                texts[answer] = texts.get(answer, "")[:start] + text
                if now is None or now.answer != answer:
                    close(at, cut=True)
                    now, begun = SpeechInterval(answer, at, at, asked.get(answer, ""), resumed=answer in resumed), start
            case e.Heard(answer=answer, position=position) if now is not None and now.answer == answer:
                now = replace(now, text=texts[answer][begun:position])
            case e.Suspended(at) | e.Withdrawn(at) | e.TakenBack(at):
                close(at, cut=True)
            case e.Committed(at):
                close(at, cut=False)
            case _:
                pass
    close(end, cut=False)
    return _merged(found)


def _merged(found: Sequence[SpeechInterval]) -> list[SpeechInterval]:
    merged: list[SpeechInterval] = []
    for one in found:
        last = merged[-1] if merged else None
        if last is not None and last.cut and last.answer == one.answer and one.start - last.end <= GAP_S:
            merged[-1] = replace(last, end=one.end, cut=one.cut, text=last.text + one.text)
        else:
            merged.append(one)
    return merged


def judge(case: Case, spoken: Sequence[SpeechInterval]) -> list[Verdict]:
    """A verdict on each expectation of `case`."""
    return [_verdict(one, spoken, _said_before(case, one.start)) for one in case.expect]


def _said_before(case: Case, start: float) -> str:
    return " ".join(act.words for act in case.acts if act.at < start)


def _verdict(one: Expectation, spoken: Sequence[SpeechInterval], before: str) -> Verdict:
    running = next((s for s in spoken if s.start < one.start <= s.end), None)  # the first sound may cut it at once
    begun = [s for s in spoken if one.start < s.start <= one.until]
    overlap = running.end - one.start if running is not None and running.cut and running.end <= one.until else None
    match one.action:
        case Action.ANSWER | Action.RESUME:
            return _on_speaking(one, begun, running, overlap, before)
        case Action.WAIT:
            problem = Problem.SPOKE if begun else Problem.NONE
            return Verdict(one, problem, acted=not begun)
        case Action.GO_ON if running is None:
            return Verdict(one, Problem.NOT_SPEAKING, acted=False)
        case Action.GO_ON:
            problem = Problem.CUT if overlap is not None else Problem.NONE
            return Verdict(one, problem, acted=overlap is None, overlap_s=overlap)
        case Action.STOP:
            went_on = running is not None and overlap is None and running.end >= one.until
            problem = Problem.WENT_ON if went_on else Problem.SPOKE if begun else Problem.NONE
            return Verdict(one, problem, acted=not went_on, overlap_s=overlap)


def _on_speaking(
    one: Expectation,
    begun: Sequence[SpeechInterval],
    running: SpeechInterval | None,
    overlap: float | None,
    before: str,
) -> Verdict:
    """An answer must begin, or continue, after the gold time and within the limit."""
    wanted = [s for s in begun if one.action is Action.RESUME or not s.resumed]
    # An answer to words that had been said before is not early.
    early = [s for s in wanted if s.start <= one.at and not (s.asked and _ends_with(before, s.asked))]
    timely = [s for s in wanted if s.start > one.at]
    first = timely[0] if timely else None
    delay = first.start - one.at if first is not None else None
    goes_on = running is not None and overlap is None and running.end >= one.until
    if early:
        problem, delay = Problem.EARLY, early[0].start - one.at
    elif first is None:
        problem = Problem.WENT_ON if goes_on or len(wanted) < len(begun) else Problem.MISSED
    elif one.to and not _ends_with(first.asked, one.to):
        problem = Problem.WRONG_TURN
    else:
        problem = Problem.NONE
    yields = one.floor is Floor.SPEAKING
    acted = not goes_on if yields else first is not None and not early
    return Verdict(one, problem, acted=acted, delay_s=delay, overlap_s=overlap)


def _ends_with(asked: str, to: str) -> bool:
    words, wanted = plain_words(asked), plain_words(to)
    return words[len(words) - len(wanted) :] == wanted


def rest_s(case: Case, spoken: Sequence[SpeechInterval], at: float) -> tuple[float, float]:
    """Seconds that the answer running at `at` would take, from then on and in all, if nobody cut it."""
    running = next((s for s in spoken if s.start < at <= s.end), None)
    if running is None:
        return 0.0, 0.0
    is_opening = case.answer is not None and running.answer == 0
    whole = len(case.answer or "" if is_opening else case.reply) / PLAYED_PER_S
    return max(0.0, whole - (at - running.start)), whole
