"""False actions against delay: what a threshold on the probability of process trades."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from duologue.data.samples import Sample
from duologue.decisions.choice import Probabilities
from duologue.types import InputState

_PROCESS, _STOP = InputState.PROCESS, InputState.STOP


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """What comes of answering whenever process is at least `threshold` probable."""

    threshold: float
    false_actions: float  # share of what is ignore or incomplete that is answered
    delay: float  # share of what is process that waits for quiet periods to release it

    def to_json(self) -> dict[str, Any]:
        """Rounded, for files."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def tradeoffs(
    samples: Sequence[Sample], p: Probabilities, states: Sequence[InputState], *, num_points: int = 41
) -> list[Tradeoff]:
    """The curve from answering everything to answering nothing; [] without samples of both sides.

    Thresholds are quantiles of what occurs, so that points are dense where the samples are. Samples for which process
    would be right too, and commands to stop, count on neither side.
    """
    column = p[:, list(states).index(_PROCESS)] if len(samples) else np.zeros(0, np.float32)
    asked = np.array([sample.state is _PROCESS for sample in samples], dtype=bool)
    others = np.array([_PROCESS not in s.right and s.state is not _STOP for s in samples], dtype=bool)
    if not asked.any() or not others.any():
        return []
    inner = np.quantile(column[asked | others], np.linspace(0, 1, num_points - 2))
    points = []
    for threshold in sorted({0.0, 1.0, *map(float, inner)}):
        points.append(
            Tradeoff(threshold, float((column[others] >= threshold).mean()), float((column[asked] < threshold).mean()))
        )
    return points
