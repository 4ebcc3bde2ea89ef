"""Choosing a token and weighing watched ids, from logits. Knows numpy only, so that every backend does it alike."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from duologue.core.backend import Draw
from duologue.errors import EngineError

FloatArray = npt.NDArray[np.float32]

_FIRST_LOOK = 512  # ids sorted at first; nearly every draw ends among them, and sorting a vocabulary costs milliseconds


def choose(logits: FloatArray, draw: Draw) -> tuple[int, float]:
    """The token that `draw` takes from `logits` (one per base id), and the margin between the best two logits.

    Temperature first, then `top_k`, then `top_p` of what is left; what is kept is weighed anew. Tokens are ordered by
    falling probability, ties by id, and the first whose cumulated probability exceeds `draw.uniform` is taken.

    Raises:
        EngineError: the logits are not finite.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise EngineError("the model produced logits that are not finite; its weights or their type may be broken")
    margin = _margin(logits, best)
    sampling = draw.sampling
    if sampling.temperature == 0.0 or sampling.top_k == 1:
        return best, margin
    with np.errstate(over="ignore"):
        # A temperature near 0 overflows to -inf, which is the right limit: probability 0.
        scaled = (logits - logits[best]) / np.float32(sampling.temperature)
    return _walk(scaled, sampling.top_k or len(logits), sampling.top_p, draw.uniform), margin


def _walk(scaled: FloatArray, top_k: int, top_p: float, uniform: float) -> int:
    """The token at `uniform` of the cumulated weights of the `top_k` largest, cut at `top_p`."""
    num_kept = min(top_k, len(scaled))
    is_cut = num_kept < len(scaled)
    size = num_kept if is_cut else min(_FIRST_LOOK, num_kept)
    # Sums are float64 so that their order does not show; the logits themselves are float32.
    whole = 0.0 if is_cut else float(np.exp(scaled, dtype=np.float64).sum())
    while True:
        ids = largest(scaled, size)
        cumulated = np.cumsum(np.exp(scaled[ids], dtype=np.float64))
        is_all = size == num_kept
        total = float(cumulated[-1]) if is_all else whole
        is_enough = is_all
        if top_p < 1.0 and (is_all or cumulated[-1] >= top_p * total):
            cumulated = cumulated[: int(np.searchsorted(cumulated, top_p * total)) + 1]
            total = float(cumulated[-1])
            is_enough = True
        target = uniform * total
        if is_enough or (top_p == 1.0 and target < cumulated[-1]):
            index = int(np.searchsorted(cumulated, target, side="right"))
            return int(ids[min(index, len(cumulated) - 1)])  # rounding can push `uniform` next to 1 past the end
        size = min(size * 8, num_kept)


def largest(values: FloatArray, size: int) -> npt.NDArray[np.intp]:
    """Ids of the `size` largest values, falling, ties by id."""
    if size >= len(values):
        return np.argsort(-values, kind="stable")
    threshold = np.partition(values, len(values) - size)[len(values) - size]
    ids = np.flatnonzero(values >= threshold)
    return ids[np.argsort(-values[ids], kind="stable")][:size]


def weigh(logits: Sequence[float] | FloatArray) -> tuple[float, ...]:
    """Softmax in float32 over the logits of the watched ids alone.

    Raises:
        EngineError: they are not finite.
    """
    values = np.asarray(logits, dtype=np.float32)
    if not np.isfinite(values).all():
        raise EngineError("the model produced logits that are not finite; its weights or their type may be broken")
    weights = np.exp(values - values.max())
    return tuple(float(p) for p in weights / weights.sum())


def _margin(logits: FloatArray, best: int) -> float:
    if len(logits) < 2:
        return 0.0
    second = max(logits[:best].max(initial=-np.inf), logits[best + 1 :].max(initial=-np.inf))
    return float(logits[best] - second)
