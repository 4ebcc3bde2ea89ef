"""Suppresses added rows: one vector, added to all of them, so that none is ever the most probable token of a text.

This package's own backends sample base ids only, so they never produce an added token. Other engines sample from the
whole vocabulary. NumPy only; the caller provides hidden states. Shapes: M tokens of text, D the hidden width, P probe
tokens.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from duologue.backends.rows import AdapterRows
from duologue.errors import UnsupportedModel, require

FloatArray = npt.NDArray[np.float32]

LEAD = 10.0
"""The lead, in logits, of the best base token over every added row on the text that the vector is computed from."""

PROBE_LEAD = 3.0
"""The same for probe rows of a tied matrix. They are inputs and cannot be shifted; below this, the matrix is untied."""

_RIDGE = 1e-3  # share of the mean squared hidden state; keeps the vector short along directions that hardly occur


@dataclass(frozen=True, eq=False)
class SuppressedRows:
    """Rows that never win, to be written instead of an adapter's own."""

    rows: AdapterRows  # the adapter's, with shifted output rows
    padding: FloatArray  # [D], the row of the padding ids: the shift alone
    untie: bool  # a probe row would win as an output row: write a separate output matrix


@dataclass(frozen=True, slots=True)
class Leads:
    """By how much base tokens lead added rows in a text."""

    num_tokens: int
    num_won: int  # positions at which an added row would have been the most probable token
    smallest: float  # the smallest lead of the best base token over the best added row, in logits

    @classmethod
    def of(cls, leads: FloatArray) -> "Leads":
        """Summarise the lead [M] at each position."""
        return cls(len(leads), int((leads <= 0).sum()), float(leads.min()))


def suppress(rows: AdapterRows, hidden: FloatArray, best: FloatArray, *, lead: float = LEAD) -> SuppressedRows:
    """Shift the output rows so that they stay `lead` below the best base token.

    hidden: [M, D], final, normed hidden states of ordinary text; best: [M], the largest base logit at each.
    The shift c is the shortest vector with c · h ≈ -a for every h, with a as small as the text allows. It is the same
    for all of them, so it does not change the softmax within a group, which decisions are based on.

    Raises:
        UsageError: there is too little text.
        UnsupportedModel: no such vector exists for this model.
    """
    num, width = hidden.shape
    require(num >= 64, f"{num} tokens of text are too few to compute a shift from; give some hundreds")
    h = hidden.astype(np.float64)
    gram = h.T @ h / num
    gram[np.diag_indices(width)] += _RIDGE * float(np.mean(h**2))
    direction = np.linalg.solve(gram, h.mean(axis=0))  # [D], direction · h is near 1
    along = h @ direction
    if along.min() <= 0.05:
        raise UnsupportedModel(
            f"the hidden states of this model have no common direction (smallest projection {along.min():.2f}), so "
            "added rows cannot be suppressed for engines that sample the whole vocabulary; use duologue's backends"
        )
    highest = np.maximum((h @ rows.outputs.T.astype(np.float64)).max(axis=1), 0.0)  # 0: the padding rows
    strength = max(0.0, float(((highest - best + lead) / along).max()))
    shift = (-strength * direction).astype(np.float32)
    probes_win = bool(((h @ rows.probes.T.astype(np.float64)).max(axis=1) > best - PROBE_LEAD).any())
    return SuppressedRows(rows.shifted(shift), shift, untie=probes_win)
