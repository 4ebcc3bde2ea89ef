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


BALANCE = 0.5
"""How far the odds that turns end are balanced in each source. 0: as found, so that the style of a corpus tells how
long its turns are. 1: even, so that whole commands look half said where few commands have a second clause."""
ONE_SIDED = 0.25
"""The weight of samples whose source never goes on, or always does, where other sources do both."""
MAX_WEIGHT = 8.0


def balance(samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """Weights [N] that bring the odds that turns end nearer to even, in each source; 0 where a sample does not say.

    So a probability depends less on how often whole turns were cut at a joint, and on whose turns they are. States are
    weighed apart. The weights of a source have a mean of 1, unless a sample would weigh more than `MAX_WEIGHT` or the
    source is one-sided.
    """
    known = Counter((sample.state, sample.source, sample.ends) for sample in samples if sample.ends is not None)
    both = {state for state, source, ends in known if ends and known[state, source, False]}
    weights = np.zeros(len(samples))
    for i, sample in enumerate(samples):
        if sample.ends is not None:
            same, other = (known[sample.state, sample.source, ends] for ends in (sample.ends, not sample.ends))
            share = 1 / (1 + (other / same) ** (1 - BALANCE))  # of the weight of the source
            one_sided = ONE_SIDED if sample.state in both else 1
            weights[i] = min(MAX_WEIGHT, share * (same + other) / same) if other else one_sided
    return weights


def needs_timing(samples: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    """Mask [N] of requests of which it is known whether the turn ends with them: only timing tells these apart."""
    return np.array([sample.ends is not None and sample.state is InputState.PROCESS for sample in samples], dtype=bool)


def timing_facts(samples: Sequence[Sample], p_ends: npt.NDArray[np.floating]) -> dict[str, Any]:
    """What `adapter.json` says of held-out samples whose words look complete: number and AUC. p_ends: [N]."""
    whole = needs_timing(samples)
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
