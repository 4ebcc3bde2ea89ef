"""One number that makes probabilities as sure as they are right: a temperature of the states' logits."""

from collections.abc import Sequence

import numpy as np

from duologue.data.samples import Sample
from duologue.decisions.choice import Probabilities
from duologue.types import InputState

GRID = np.exp(np.linspace(np.log(0.5), np.log(5.0), 47))
"""The temperatures that are tried."""
_LEAST = 1e-6


def tempered(p: Probabilities, temperature: float) -> Probabilities:
    """Probabilities [N, S] as if their logits had been divided by `temperature`."""
    raised = np.power(np.maximum(p, _LEAST), 1 / temperature)
    return np.asarray(raised / raised.sum(1, keepdims=True), dtype=np.float32)


def fit_temperature(samples: Sequence[Sample], p: Probabilities, states: Sequence[InputState]) -> float:
    """The temperature at which the right states (label and accepted together) of `samples` are most likely."""
    right = np.array([[state in sample.right for state in states] for sample in samples])  # [N, S]
    losses = [-np.log(np.maximum((tempered(p, t) * right).sum(1), _LEAST)).mean() for t in GRID]
    return float(GRID[int(np.argmin(losses))])
