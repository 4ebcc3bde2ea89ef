"""False actions against delay: what a threshold on the probability of process trades. N samples, S states."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from duologue.data.samples import Sample
from duologue.decisions.metrics import rounded
from duologue.decisions.thresholds import Probabilities
from duologue.types import InputState

_PROCESS, _STOP = InputState.PROCESS, InputState.STOP


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """The rates if everything is answered whose probability of process is at least `threshold`."""

    threshold: float
    false_actions: float  # share of ignore and incomplete that is answered
    delay: float  # share of process that has to wait until quiet periods release it

    def to_json(self) -> dict[str, float | None]:
        """Rounded, for files."""
        return {name: rounded(value) for name, value in asdict(self).items()}


def tradeoffs(
    samples: Sequence[Sample], p: Probabilities, states: Sequence[InputState], *, num_points: int = 41
) -> list[Tradeoff]:
    """The curve from answering everything to answering nothing; empty without samples of both sides. p: [N, S].

    Thresholds are quantiles of the probabilities that occur, so the points are dense where the samples are. Samples for
    which process would be right too, and commands to stop, count on neither side.
    """
    column = p[:, list(states).index(_PROCESS)] if len(samples) else np.zeros(0, np.float32)
    asked, others = _sides(samples)
    if not asked.any() or not others.any():
        return []
    inner = np.quantile(column[asked | others], np.linspace(0, 1, num_points - 2))
    return [
        Tradeoff(threshold, float((column[others] >= threshold).mean()), float((column[asked] < threshold).mean()))
        for threshold in sorted({0.0, 1.0, *map(float, inner)})
    ]


def operating_point(samples: Sequence[Sample], decisions: Sequence[InputState]) -> dict[str, float] | None:
    """Where the decisions themselves lie in the plane of the curve; None without samples of both sides."""
    answered = np.array([state is _PROCESS for state in decisions], dtype=bool)
    asked, others = _sides(samples)
    if not asked.any() or not others.any():
        return None
    return {
        "false_actions": round(float(answered[others].mean()), 4),
        "delay": round(1 - float(answered[asked].mean()), 4),
    }


def _sides(samples: Sequence[Sample]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks [N] of the samples to be answered, and of those for which an answer would be a false action."""
    asked = np.array([sample.state is _PROCESS for sample in samples], dtype=bool)
    others = np.array([_PROCESS not in s.right and s.state is not _STOP for s in samples], dtype=bool)
    return asked, others
