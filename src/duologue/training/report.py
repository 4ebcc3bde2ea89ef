"""What decisions come to: the confusion over all states, answer-or-ignore, per source; and thresholds calibrated on it.

Numbers and numpy only: probabilities of any backend can be judged. N samples, S states.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from duologue.core.policy import Thresholds
from duologue.data.samples import Sample
from duologue.types import InputState

_PROCESS, _IGNORE = InputState.PROCESS, InputState.IGNORE
_BASE = 0.3  # threshold of ignore in a calibrated set; the others are found relative to it
_FACTORS = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8)

Thresholds2 = tuple[Thresholds, Thresholds]
"""For an idle and for a speaking assistant."""

EQUAL: Thresholds2 = (Thresholds(), Thresholds())
"""The most probable state is chosen."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a set of decisions came to. Shares of nothing are None."""

    num: int
    accuracy: float | None  # accepted states count as right
    recall: dict[str, float]  # by state, accepted states counting as right
    answer_f1: float | None  # process against the rest, on the samples labelled process or ignore
    false_answers: float | None  # share of ignore that got process
    confusion: dict[str, dict[str, int]]  # label, then decision

    def to_json(self) -> dict[str, Any]:
        """Rounded, for files."""
        return {
            "n": self.num,
            "accuracy": _round(self.accuracy),
            "recall": {state: round(value, 4) for state, value in self.recall.items()},
            "answer_f1": _round(self.answer_f1),
            "false_answer_rate": _round(self.false_answers),
            "confusion": self.confusion,
        }


def decide(
    p: npt.NDArray[np.float32],
    samples: Sequence[Sample],
    states: Sequence[InputState],
    thresholds: Thresholds2 = EQUAL,
) -> list[InputState]:
    """The state with the largest p / threshold for every sample; `p` is [N, S]."""
    limits = np.array([[one.of(state) for state in states] for one in thresholds])
    speaking = np.array([sample.speaking for sample in samples], dtype=int)
    return [states[i] for i in (p / limits[speaking]).argmax(1)]


def outcome(samples: Sequence[Sample], decisions: Sequence[InputState]) -> Outcome:
    """Judge `decisions`."""
    pairs = list(zip(samples, decisions, strict=True))
    states = [state for state in InputState if any(sample.state is state for sample in samples)]
    confusion = {
        label.value: {state.value: sum(s.state is label and d is state for s, d in pairs) for state in InputState}
        for label in states
    }
    recall = {label.value: float(np.mean([d in s.right for s, d in pairs if s.state is label])) for label in states}
    answered = sum(s.state is _PROCESS and d is _PROCESS for s, d in pairs)
    false = sum(s.state is _IGNORE and d is _PROCESS for s, d in pairs)
    missed = sum(s.state is _PROCESS and d is not _PROCESS for s, d in pairs)
    num_ignore = sum(s.state is _IGNORE for s, _ in pairs)
    return Outcome(
        num=len(pairs),
        accuracy=float(np.mean([d in s.right for s, d in pairs])) if pairs else None,
        recall=recall,
        answer_f1=2 * answered / (2 * answered + false + missed) if answered + false + missed else None,
        false_answers=false / num_ignore if num_ignore else None,
        confusion=confusion,
    )


def groups(samples: Sequence[Sample], decisions: Sequence[InputState]) -> dict[str, Any]:
    """Judged as a whole, idle and over an answer apart, and by source and kind."""
    pairs = list(zip(samples, decisions, strict=True))

    def judge(chosen: list[tuple[Sample, InputState]]) -> Outcome:
        return outcome([s for s, _ in chosen], [d for _, d in chosen])

    by_case: dict[str, list[tuple[Sample, InputState]]] = defaultdict(list)
    for sample, decision in pairs:
        where = "over an answer" if sample.speaking else "idle"
        by_case[f"{sample.state.value} / {sample.source} / {sample.kind} / {where}"].append((sample, decision))
    cases = {}
    for name, chosen in sorted(by_case.items()):
        right = float(np.mean([d in s.right for s, d in chosen]))
        answered = float(np.mean([d is _PROCESS for _, d in chosen]))
        cases[name] = {"n": len(chosen), "right": round(right, 3), "process": round(answered, 3)}
    return {
        "all": judge(pairs).to_json(),
        "idle": judge([pair for pair in pairs if not pair[0].speaking]).to_json(),
        "over_an_answer": judge([pair for pair in pairs if pair[0].speaking]).to_json(),
        "cases": cases,
    }


def calibrate(
    samples: Sequence[Sample],
    p: npt.NDArray[np.float32],
    states: Sequence[InputState],
    *,
    max_false_answers: float = 0.06,
) -> Thresholds2:
    """Thresholds for an idle and a speaking assistant: mean recall of the states and F1 of answering, together.

    False answers beyond the share `max_false_answers` cost twice as much again: enough to be wary, not so much that a
    weak classifier keeps to it by silence. Where there is nothing to calibrate on, thresholds are equal.
    """
    found = []
    for speaking in (False, True):
        rows = [i for i, sample in enumerate(samples) if sample.speaking is speaking]
        found.append(_calibrate([samples[i] for i in rows], p[rows], states, max_false_answers))
    return found[0], found[1]


def _calibrate(
    samples: list[Sample], p: npt.NDArray[np.float32], states: Sequence[InputState], max_false_answers: float
) -> Thresholds:
    if not samples:
        return Thresholds()
    right = np.array([[state in sample.right for state in states] for sample in samples])  # [N, S]
    labels = np.array([states.index(sample.state) for sample in samples])
    present = sorted(set(labels.tolist()))
    ignored, asked = labels == states.index(_IGNORE), labels == states.index(_PROCESS)
    best, chosen = -np.inf, Thresholds()
    free = [state for state in states if state is not _IGNORE]
    for factors in itertools.product(_FACTORS, repeat=len(free)):
        values = {_IGNORE.value: _BASE} | {s.value: round(_BASE * f, 4) for s, f in zip(free, factors, strict=True)}
        decided = (p / np.array([values[state.value] for state in states])).argmax(1)
        hits = right[np.arange(len(labels)), decided]
        value = float(np.mean([hits[labels == label].mean() for label in present]))
        answered = decided == states.index(_PROCESS)
        if ignored.any() and asked.any():
            false, found = int((answered & ignored).sum()), int((answered & asked).sum())
            value += 2 * found / (found + false + int(asked.sum()))  # F1
            value -= 2 * max(0.0, false / int(ignored.sum()) - max_false_answers)
        value -= 0.02 * float(np.abs(np.log(factors)).sum())  # no extreme set for a few samples more
        if value > best:
            best, chosen = value, Thresholds.from_mapping(values)
    return chosen


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
