"""How far probabilities can be believed: bins of equal mass over the probability of the most probable state.

Of samples with one right state: where two are right, a model that halves its probability between them is not wrong.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from duologue.data.samples import Sample
from duologue.decisions.choice import Probabilities
from duologue.types import InputState

NUM_BINS = 15


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples of similar confidence."""

    num: int
    confidence: float  # mean probability of the most probable state
    accuracy: float  # share in which that state is right

    def to_json(self) -> dict[str, Any]:
        """Rounded, for files."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def reliability(
    samples: Sequence[Sample], p: Probabilities, states: Sequence[InputState], *, num_bins: int = NUM_BINS
) -> list[Bin]:
    """Samples ordered by the probability [N, S] of their most probable state, in `num_bins` bins of equal mass."""
    clear = [i for i, sample in enumerate(samples) if len(sample.right) == 1]
    if not clear:
        return []
    top, confidence = p[clear].argmax(1), p[clear].max(1)
    right = np.array([states[best] is samples[i].state for best, i in zip(top, clear, strict=True)])
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(num_bins, len(clear)))
    return [Bin(len(part), float(confidence[part].mean()), float(right[part].mean())) for part in parts]


def expected_error(bins: Sequence[Bin]) -> float | None:
    """Expected calibration error: the mean gap of confidence and accuracy, weighted by samples; None of none."""
    num = sum(each.num for each in bins)
    return sum(each.num * abs(each.confidence - each.accuracy) for each in bins) / num if num else None
