"""Samples a token and computes probabilities of watched ids from logits. NumPy only, so all backends share it.

Shapes: V is the size of the base vocabulary, W the number of ids in a watched group.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from duologue.core.backend import Draw, Step, TokenScore
from duologue.errors import EngineError

FloatArray = npt.NDArray[np.float32]

_FIRST_SORTED = 512  # nearly every draw ends among the top ids, and sorting a whole vocabulary takes milliseconds
_NOT_FINITE = "the model produced logits that are not finite; its weights or their type may be broken"


def drawn(ticket: int, logits: FloatArray, draw: Draw) -> Step:
    """The result of a draw from `logits`: [V].

    Raises:
        EngineError: the logits are not finite, or the constraint allows no token.
    """
    allowed = logits if draw.constraint is None else draw.constraint.apply(draw.answer, logits)
    token, margin = choose(allowed, draw)
    log_p = () if draw.num_alternatives is None else _log_p(logits, token, draw.num_alternatives)
    return Step(ticket, (token,), margin=margin, log_p=log_p)


def _log_p(logits: FloatArray, token: int, num: int) -> tuple[tuple[int, float], ...]:
    """`token` and the `num` most probable ones, with their log probabilities. logits: [V]."""
    best = logits.max()
    norm = best + np.log(np.exp(logits - best, dtype=np.float64).sum())
    ids = [token, *map(int, largest(logits, num))] if num else [token]
    return tuple((each, float(logits[each] - norm)) for each in ids)


def choose(logits: FloatArray, draw: Draw) -> tuple[int, float]:
    """The token that `draw` selects, and the margin between the two largest logits. logits: [V].

    Applies the temperature, then `top_k`, then `top_p` to the rest, and renormalises. Tokens are ordered by descending
    probability, ties by id; the first token whose cumulative probability exceeds `draw.uniform` is selected.

    Raises:
        EngineError: the logits are not finite.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise EngineError(_NOT_FINITE)
    margin = _margin(logits, best)
    sampling = draw.sampling
    if sampling.temperature == 0.0 or sampling.top_k == 1:
        return best, margin
    with np.errstate(over="ignore"):
        # A temperature near 0 overflows to -inf, the correct limit: probability 0.
        scaled = (logits - logits[best]) / np.float32(sampling.temperature)
    return _walk(scaled, sampling.top_k or len(logits), sampling.top_p, draw.uniform), margin


def _walk(scaled: FloatArray, top_k: int, top_p: float, uniform: float) -> int:
    """The token at `uniform` of the cumulative weights of the `top_k` largest, cut at `top_p`. scaled: [V]."""
    num_kept = min(top_k, len(scaled))
    is_cut = num_kept < len(scaled)
    size = num_kept if is_cut else min(_FIRST_SORTED, num_kept)
    # Sums are float64, so the order of addition does not matter; the logits are float32.
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
            return int(ids[min(index, len(cumulated) - 1)])  # rounding can put a `uniform` near 1 past the end
        size = min(size * 8, num_kept)


def largest(values: FloatArray, size: int) -> npt.NDArray[np.intp]:
    """Ids of the `size` largest values in descending order, ties by id. values: [V], result: [size]."""
    if size >= len(values):
        return np.argsort(-values, kind="stable")
    threshold = np.partition(values, len(values) - size)[len(values) - size]
    ids = np.flatnonzero(values >= threshold)
    return ids[np.argsort(-values[ids], kind="stable")][:size]


def weigh(logits: Sequence[float] | FloatArray) -> tuple[float, ...]:
    """Softmax in float32 over the logits of one group of watched ids. logits: [W].

    Raises:
        EngineError: the logits are not finite.
    """
    values = np.asarray(logits, dtype=np.float32)
    if not np.isfinite(values).all():
        raise EngineError(_NOT_FINITE)
    weights = np.exp(values - values.max())
    return tuple(float(p) for p in weights / weights.sum())


def score(logits: FloatArray, tokens: Sequence[int]) -> tuple[TokenScore, ...]:
    """How probable each of S `tokens` is at its position. logits: [S, V].

    Raises:
        EngineError: the logits are not finite.
    """
    best = logits.argmax(1)  # [S]
    found = []
    for row, token, greedy in zip(logits, tokens, map(int, best), strict=True):
        if not np.isfinite(row[greedy]):
            raise EngineError(_NOT_FINITE)
        total = np.exp(row - row[greedy]).sum(dtype=np.float64)
        logprob = float(np.float64(row[token]) - row[greedy] - np.log(total))
        found.append(TokenScore(logprob, greedy, _margin(row, greedy)))
    return tuple(found)


def _margin(logits: FloatArray, best: int) -> float:
    """The largest logit, at `best`, minus the second largest. logits: [V]."""
    if len(logits) < 2:
        return 0.0
    second = max(logits[:best].max(initial=-np.inf), logits[best + 1 :].max(initial=-np.inf))
    return float(logits[best] - second)
