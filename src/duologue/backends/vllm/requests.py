"""What vLLM is asked for, and what its answers mean. Knows ids and numbers, but neither sequences nor time.

vLLM 0.32 reports the log-probabilities of given ids (`logprob_token_ids`) or of the best ones, but in one pass only one
kind for all requests. At a probe, all ids but an adapter's output rows have the probability 0, so the best ones are
exactly these; answers share the pass and have their own best ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from duologue.backends.sampling import weigh
from duologue.core.backend import Draw, Step
from duologue.errors import EngineError
from duologue.types import Token

CHANCE = "duologue"
"""The key of what `ChanceProcessor` is told about a request."""


def drawing(draw: Draw, num_tokens: int) -> dict[str, Any]:
    """Arguments of `SamplingParams` for the next `num_tokens` tokens of an answer.

    They are greedy for vLLM. Where they are not greedy, `ChanceProcessor` leaves it one token to choose.
    """
    sampling, ahead, told = draw.sampling, draw.ahead, None
    if sampling.temperature > 0 and sampling.top_k != 1:
        told = {
            "sampling": [sampling.temperature, sampling.top_k, sampling.top_p],
            "uniform": draw.uniform if ahead is None else None,
            "place": None if ahead is None else [ahead.seed, ahead.turn, ahead.index],
        }
    best = max(2, draw.num_alternatives or 0)
    return {**_greedy(num_tokens), "logprobs": best, **({} if told is None else {"extra_args": {CHANCE: told}})}


def judging(num_outputs: int) -> dict[str, Any]:
    """The same for the states at a probe of an adapter with so many output rows."""
    return {**_greedy(1), "logprobs": num_outputs}


def caching() -> dict[str, Any]:
    """The same for tokens that are to be cached only."""
    return _greedy(1)


def _greedy(num_tokens: int) -> dict[str, Any]:
    return {"max_tokens": num_tokens, "temperature": 0.0, "detokenize": False}


def read_drawn(tokens: Sequence[Token], found: Sequence[Mapping[Token, Any]], draw: Draw) -> list[Step]:
    """A step for each token of an answer, from vLLM's `Logprob` of the drawn and the best tokens at each.

    Raises:
        EngineError: a probability is not finite.
    """
    drawn: list[Step] = []
    for token, at in zip(tokens, found, strict=True):
        if not math.isfinite(at[token].logprob):
            raise EngineError("the model produced logits that are not finite; its weights or their type may be broken")
        best = sorted(((p.rank, each, float(p.logprob)) for each, p in at.items()), key=lambda each: each[0])
        log_p: tuple[tuple[Token, float], ...] = ()
        if draw.num_alternatives is not None:
            others = ((each, p) for rank, each, p in best if rank <= draw.num_alternatives)
            log_p = ((token, float(at[token].logprob)), *others)
        drawn.append(Step(0, (token,), margin=best[0][2] - best[1][2], log_p=log_p))
    return drawn


def read_states(found: Mapping[Token, Any], groups: Sequence[Sequence[Token]]) -> tuple[tuple[float, ...], ...]:
    """The probabilities of the ids in each group, from vLLM's `Logprob` of all output rows.

    Raises:
        EngineError: an id is missing, or its probability is not finite.
    """
    if missing := [id for group in groups for id in group if id not in found]:
        raise EngineError(f"vLLM reported no probability of the ids {missing}; the model's outputs are broken")
    return tuple(weigh([found[id].logprob for id in group]) for group in groups)
