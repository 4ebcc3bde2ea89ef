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


ONE_SIDED = 0.25
"""The weight of samples whose source never goes on, or always does, where other sources do both."""
MAX_WEIGHT = 8.0


def balance(samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """Weights [N] under which turns end as often as they go on, in each source; 0 where a sample does not say.

    So a probability depends neither on how often whole turns were cut at a joint nor on whose turns they are: a corpus
    of single sentences would else teach that its style ends, and another that its style goes on. States are weighed
    apart. No sample weighs more than `MAX_WEIGHT`.
    """
    known = Counter((sample.state, sample.source, sample.ends) for sample in samples if sample.ends is not None)
    both = {state for state, source, ends in known if ends and known[state, source, False]}
    weights = np.zeros(len(samples))
    for i, sample in enumerate(samples):
        if sample.ends is not None:
            same, other = (known[sample.state, sample.source, ends] for ends in (sample.ends, not sample.ends))
            one_sided = ONE_SIDED if sample.state in both else 1
            weights[i] = min(MAX_WEIGHT, (other / same + 1) / 2) if other else one_sided
    return weights


def looks_complete(samples: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    """Which samples [N] say whether their turn ends though their words are a request: where timing has to tell."""
    return np.array([sample.ends is not None and sample.state is InputState.PROCESS for sample in samples], dtype=bool)


def timing_facts(samples: Sequence[Sample], p_ends: npt.NDArray[np.floating]) -> dict[str, Any]:
    """What `adapter.json` says of held-out samples whose words look complete: number and AUC. p_ends: [N]."""
    whole = looks_complete(samples)
    ends = np.array([sample.ends is True for sample in samples], dtype=bool)
    return {"n": int(whole.sum()), "auc": rounded(auc(p_ends[whole], ends[whole]))}


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
