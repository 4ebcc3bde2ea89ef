"""Whether a speaker goes on after the words so far: how well probabilities tell the two apart. N samples."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from duologue.data.samples import Sample

Flags = npt.NDArray[np.bool_]


def is_learnable(samples: Sequence[Sample]) -> bool:
    """Whether some samples say that the turn ends with them, and some that it goes on."""
    return {sample.ends for sample in samples} >= {True, False}


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
