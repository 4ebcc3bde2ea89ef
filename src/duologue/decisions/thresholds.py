"""Thresholds calibrated on judged samples. N samples, S states."""

import itertools
from collections.abc import Sequence

import numpy as np

from duologue.core.policy import Thresholds
from duologue.data.samples import Sample
from duologue.decisions.choice import Probabilities, Thresholds2
from duologue.types import InputState

_PROCESS, _IGNORE = InputState.PROCESS, InputState.IGNORE
_BASE = 0.3  # threshold of ignore in a calibrated set; the others are found relative to it
_FACTORS = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8)


def calibrate(
    samples: Sequence[Sample],
    p: Probabilities,
    states: Sequence[InputState],
    *,
    max_false_answers: float = 0.04,
) -> Thresholds2:
    """Thresholds for an idle and a speaking assistant: mean recall of the states and F1 of answering, together.

    False answers beyond the share `max_false_answers` cost twice as much again: enough to be wary, not so much that a
    weak classifier keeps to it by silence. A state without samples has the threshold of ignore; where nothing is to be
    answered or nothing to be ignored, thresholds are equal.
    """
    found = []
    for speaking in (False, True):
        rows = [i for i, sample in enumerate(samples) if sample.speaking is speaking]
        found.append(_calibrate([samples[i] for i in rows], p[rows], states, max_false_answers))
    return found[0], found[1]


def _calibrate(
    samples: list[Sample], p: Probabilities, states: Sequence[InputState], max_false_answers: float
) -> Thresholds:
    present = [state for state in states if any(sample.state is state for sample in samples)]
    if _IGNORE not in present or _PROCESS not in present:
        return Thresholds()
    right = np.array([[state in sample.right for state in states] for sample in samples])  # [N, S]
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
        value -= 0.02 * float(np.abs(np.log(factors)).sum())  # no extreme set for a few samples more
        if value > best:
            best, chosen = value, Thresholds.from_mapping(values)
    return chosen
