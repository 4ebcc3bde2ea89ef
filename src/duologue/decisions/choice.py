"""From probabilities to decisions, as the policy takes them. N samples, S states."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from duologue.core.policy import Thresholds
from duologue.data.samples import Sample
from duologue.types import InputState

Probabilities: TypeAlias = npt.NDArray[np.float32]
"""[N, S], rows summing to 1, columns in the order of the states."""

Thresholds2: TypeAlias = tuple[Thresholds, Thresholds]
"""For an idle and for a speaking assistant."""

EQUAL: Thresholds2 = (Thresholds(), Thresholds())
"""The most probable state is chosen."""


def decide(
    p: Probabilities,
    samples: Sequence[Sample],
    states: Sequence[InputState],
    thresholds: Thresholds2 = EQUAL,
) -> list[InputState]:
    """The state with the largest p / threshold for every sample, as `Policy.decide` chooses; `p` is [N, S]."""
    limits = np.array([[one.of(state) for state in states] for one in thresholds])
    speaking = np.array([sample.speaking for sample in samples], dtype=int)
    return [states[i] for i in (p / limits[speaking]).argmax(1)]
