"""Decisions by thresholds, and thresholds calibrated on labelled samples. N samples, S states."""

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from duologue.core.policy import Thresholds
from duologue.data.samples import Sample
from duologue.types import InputState

Probabilities: TypeAlias = npt.NDArray[np.float32]
"""[N, S], rows summing to 1, columns in the order of the states."""

ThresholdPair: TypeAlias = tuple[Thresholds, Thresholds]
"""For a silent and for a speaking assistant."""

EQUAL: ThresholdPair = (Thresholds(), Thresholds())
"""The most probable state is chosen."""

_PROCESS, _IGNORE = InputState.PROCESS, InputState.IGNORE
_BASE = 0.3  # threshold of ignore in a calibrated set; the others are searched relative to it
_FACTORS = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8)


def decide(
    p: Probabilities,
    samples: Sequence[Sample],
    states: Sequence[InputState],
    thresholds: ThresholdPair = EQUAL,
) -> list[InputState]:
    """The state with the largest p / threshold of each sample, as `Policy.decide` chooses it. p: [N, S]."""
    limits = np.array([[one.of(state) for state in states] for one in thresholds])  # [2, S]
    speaking = np.array([sample.speaking for sample in samples], dtype=int)  # [N]
    return [states[i] for i in (p / limits[speaking]).argmax(1)]


def accepted(samples: Sequence[Sample], states: Sequence[InputState]) -> npt.NDArray[np.bool_]:
    """Which states are right for which sample, the label and those accepted beside it. [N, S]"""
    return np.array([[state in sample.right for state in states] for sample in samples], dtype=bool)


def calibrate(
    samples: Sequence[Sample],
    p: Probabilities,
    states: Sequence[InputState],
    *,
    max_false_answers: float = 0.04,
) -> ThresholdPair:
    """Thresholds that maximise the mean recall of the states plus the F1 of answering. p: [N, S].

    False answers beyond the share `max_false_answers` cost twice their share: enough to be cautious, not so much that a
    weak classifier never answers. A state without samples gets the threshold of ignore. Without samples to answer, or
    without samples to ignore, all thresholds are equal.
    """
    found = []
    for speaking in (False, True):
        rows = [i for i, sample in enumerate(samples) if sample.speaking is speaking]
        found.append(_calibrate([samples[i] for i in rows], p[rows], states, max_false_answers))
    return found[0], found[1]


def _calibrate(
    samples: list[Sample], p: Probabilities, states: Sequence[InputState], max_false_answers: float
) -> Thresholds:
    """Exhaustive search over the factors of the states. p: [N, S]."""
    present = [state for state in states if any(sample.state is state for sample in samples)]
    if _IGNORE not in present or _PROCESS not in present:
        return Thresholds()
    right = accepted(samples, states)
    labels = np.array([states.index(sample.state) for sample in samples])
    ignored, asked = labels == states.index(_IGNORE), labels == states.index(_PROCESS)
    best, chosen = -np.inf, Thresholds()
    free = [state for state in states if state is not _IGNORE and state in present]
    equal = {state.value: _BASE for state in states}
    for factors in itertools.product(_FACTORS, repeat=len(free)):
        values = equal | {s.value: round(_BASE * f, 4) for s, f in zip(free, factors, strict=True)}
        decided = (p / np.array([values[state.value] for state in states])).argmax(1)
        hits = right[np.arange(len(labels)), decided]
        value = float(np.mean([hits[labels == states.index(state)].mean() for state in present]))
        answered = decided == states.index(_PROCESS)
        false, found = int((answered & ignored).sum()), int((answered & asked).sum())
        value += 2 * found / (found + false + int(asked.sum()))  # F1
        value -= 2 * max(0.0, false / int(ignored.sum()) - max_false_answers)
        value -= 0.02 * float(np.abs(np.log(factors)).sum())  # no extreme thresholds for the sake of a few samples
        if value > best:
            best, chosen = value, Thresholds.from_mapping(values)
    return chosen
