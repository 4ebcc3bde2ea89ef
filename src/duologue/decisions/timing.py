"""Whether a speaker goes on after the words so far: how well probabilities tell the two apart. N samples."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from duologue.data.samples import Sample
from duologue.decisions.metrics import rounded
from duologue.types import InputState

Flags = npt.NDArray[np.bool_]


def is_learnable(samples: Sequence[Sample]) -> bool:
    """Whether some samples say that the turn ends with them, and some that it goes on."""
    return {sample.ends for sample in samples} >= {True, False}


def balance(samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """Weights [N] under which turns end as often as they go on, in each state; 0 where a sample does not say.

    So a probability does not depend on how often whole turns were cut at a joint. The mean over samples that say is 1.
    """
    known = Counter((sample.state, sample.ends) for sample in samples if sample.ends is not None)
    weights = np.zeros(len(samples))
    for i, sample in enumerate(samples):
        if sample.ends is not None:
            other = known[sample.state, not sample.ends]
            weights[i] = (other / known[sample.state, sample.ends] + 1) / 2 if other else 1
    return weights


def timing_facts(samples: Sequence[Sample], p_ends: npt.NDArray[np.floating]) -> dict[str, Any]:
    """What `adapter.json` says of held-out samples whose words look complete: number and AUC. p_ends: [N]."""
    whole = [i for i, sample in enumerate(samples) if sample.ends is not None and sample.state is InputState.PROCESS]
    ends = np.array([samples[i].ends is True for i in whole], dtype=bool)
    return {"n": len(whole), "auc": rounded(auc(p_ends[whole], ends))}


def auc(p: npt.NDArray[np.floating], positive: Flags) -> float | None:
    """The share of pairs of a positive and a negative row in which the positive has the larger `p`; a tie is half.

    p, positive: [N]. None if there are no pairs.
    """
    num_positive = int(positive.sum())
    num_pairs = num_positive * (len(p) - num_positive)
    if not num_pairs:
        return None
    _, which, counts = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # from 1; ties share the mean of their ranks
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / num_pairs)
