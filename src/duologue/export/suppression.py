"""Keeping added rows quiet: one vector, added to all of them, so that none is ever the most probable token of a text.

Where only base ids are drawn, as in this package's own backends, added rows cannot be said. Other engines draw from the
whole vocabulary. Numpy only; where hidden states come from is the caller's business.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from duologue.backends.rows import Rows
from duologue.errors import UnsupportedModel, UsageError

FloatArray = npt.NDArray[np.float32]

LEAD = 10.0
"""By how much, in logits, the best base token leads every added row on the text that the vector is computed from."""

PROBE_LEAD = 3.0
"""The same for probe rows of a tied matrix. They are inputs and cannot be shifted; below this the matrix is untied."""

_RIDGE = 1e-3  # share of the mean squared hidden state; keeps the vector short where directions hardly occur


@dataclass(frozen=True, eq=False)
class Quiet:
    """Output rows that never win: what to write in place of an adapter's."""

    states: FloatArray  # [S, D] the state rows, shifted
    padding: FloatArray  # [D] the row of the padding ids: the shift alone
    untie: bool  # a probe row would win as an output row: write a separate output matrix


@dataclass(frozen=True, slots=True)
class Leads:
    """What `check_never_wins` found."""

    num_tokens: int
    num_won: int  # positions where an added row would have been the most probable token
    smallest: float  # the smallest lead of the best base token over the best added row, in logits


def quieted(rows: Rows, hidden: FloatArray, best: FloatArray, *, lead: float = LEAD) -> Quiet:
    """Shift the state rows of `rows` so that they stay `lead` below the best base token.

    hidden: [N, D] final, normed hidden states of ordinary text; best: [N] the largest base logit at each.
    The shift c is the shortest vector with c · h ≈ -a for every h, a as small as the text allows. It is the same for
    all states, so their softmax, which decisions are made by, does not change.

    Raises:
        UsageError: too little text.
        UnsupportedModel: there is no such vector for this model.
    """
    num, width = hidden.shape
    if num < 64:
        raise UsageError(f"{num} tokens of text are too few to compute a shift from; give some hundreds")
    h = hidden.astype(np.float64)
    gram = h.T @ h / num
    gram[np.diag_indices(width)] += _RIDGE * float(np.mean(h**2))
    direction = np.linalg.solve(gram, h.mean(axis=0))  # [D], direction · h is near 1
    along = h @ direction
    if along.min() <= 0.05:
        raise UnsupportedModel(
            f"hidden states of this model have no direction in common (smallest projection {along.min():.2f}), so "
            "added rows cannot be kept quiet in engines that draw from the whole vocabulary; use duologue's backends"
        )
    loudest = np.maximum((h @ rows.states.T.astype(np.float64)).max(axis=1), 0.0)  # 0: the padding rows
    strength = max(0.0, float(((loudest - best + lead) / along).max()))
    shift = (-strength * direction).astype(np.float32)
    probes_win = bool(((h @ rows.probes.T.astype(np.float64)).max(axis=1) > best - PROBE_LEAD).any())
    return Quiet(rows.states + shift, shift, untie=probes_win)


def check_never_wins(hidden: FloatArray, best: FloatArray, added: FloatArray) -> Leads:
    """How far added output rows stay below the base. hidden: [N, D], best: [N], added: [R, D]."""
    leads = best - (hidden @ added.T).max(axis=1)
    return Leads(len(leads), int((leads <= 0).sum()), float(leads.min()))
