"""Calibration: how far probabilities can be believed, and the temperature that makes them believable.

N samples, S states. Reliability counts samples with one right state only: where two are right, a model that splits its
probability between them is not wrong.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from duologue.data.samples import Sample
from duologue.decisions.metrics import rounded
from duologue.decisions.thresholds import Probabilities
from duologue.types import InputState

NUM_BINS = 15
TEMPERATURES = np.exp(np.linspace(np.log(0.5), np.log(5.0), 47))
"""The temperatures that `fit_temperature` tries."""
_MIN_P = 1e-6


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples of similar confidence."""

    num: int
    confidence: float  # mean probability of the most probable state
    accuracy: float  # share in which that state is right

    def to_json(self) -> dict[str, float | None]:
        """Rounded, for files."""
        return {name: rounded(value) for name, value in asdict(self).items()}


def reliability(
    samples: Sequence[Sample], p: Probabilities, states: Sequence[InputState], *, num_bins: int = NUM_BINS
) -> list[Bin]:
    """Samples in `num_bins` bins of equal size, ordered by the probability of their most probable state. p: [N, S]."""
    clear = [i for i, sample in enumerate(samples) if len(sample.right) == 1]
    if not clear:
        return []
    top, confidence = p[clear].argmax(1), p[clear].max(1)
    right = np.array([states[best] is samples[i].state for best, i in zip(top, clear, strict=True)])
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(num_bins, len(clear)))
    return [Bin(len(part), float(confidence[part].mean()), float(right[part].mean())) for part in parts]


def expected_calibration_error(bins: Sequence[Bin]) -> float | None:
    """The mean gap between confidence and accuracy, weighted by samples; None without bins."""
    num = sum(each.num for each in bins)
    return sum(each.num * abs(each.confidence - each.accuracy) for each in bins) / num if num else None


def apply_temperature(p: Probabilities, temperature: float) -> Probabilities:
    """Probabilities as if their logits had been divided by `temperature`. p and result: [N, S]."""
    raised = np.power(np.maximum(p, _MIN_P), 1 / temperature)
    return np.asarray(raised / raised.sum(1, keepdims=True), dtype=np.float32)


def fit_temperature(
    p: Probabilities, right: npt.NDArray[np.bool_], weights: npt.NDArray[np.floating] | None = None
) -> float:
    """The temperature at which the `right` columns of each row are together most likely.

    p, right: [N, S]; weights: [N], of the rows (None: equal).
    """
    losses = [mean_loss(apply_temperature(p, temperature), right, weights) for temperature in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def mean_loss(p: Probabilities, right: npt.NDArray[np.bool_], weights: npt.NDArray[np.floating] | None = None) -> float:
    """The mean negative log of the probability of the `right` columns of each row together; as `fit_temperature`."""
    return -float(np.average(np.log(np.maximum((p * right).sum(1), _MIN_P)), weights=weights))


def chance_loss(right: npt.NDArray[np.bool_]) -> float:
    """The mean loss if every row has the same probabilities: the frequencies of the `right` columns, [N, S]."""
    shares = right.mean(0, keepdims=True)
    return mean_loss(np.asarray(shares / shares.sum(), dtype=np.float32), right)
