"""A cascade: rows decide where they are sure, and a LoRA, which costs a pass more, elsewhere. N samples, S states."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from duologue.data.samples import Sample
from duologue.decisions.metrics import DecisionMetrics, rounded
from duologue.decisions.thresholds import Probabilities, ThresholdPair, decide
from duologue.types import InputState

TOLERANCE = 0.003
"""How far the F1 of answering may fall below that of always asking the LoRA, silent and over an answer."""

_LIMITS = (*(percent / 100 for percent in range(100)), 0.995, 0.999)


def cascaded(first: Probabilities, second: Probabilities, limit: float) -> Probabilities:
    """Probabilities [N, S] with the rows of `first` whose largest is at least `limit`, and those of `second` else."""
    return np.where(first.max(1, keepdims=True) >= limit, first, second)


def find_limit(
    samples: Sequence[Sample],
    first: Probabilities,
    second: Probabilities,
    states: Sequence[InputState],
    thresholds: ThresholdPair,
) -> float:
    """The smallest limit from which on decisions are as good as those of `second` alone, up to `TOLERANCE`.

    Good is the F1 of answering, on the samples with a silent and on those with a speaking assistant. 1 if no lower
    limit is good enough. first, second: [N, S].
    """
    wanted = [f1 - TOLERANCE for f1 in _answer_f1(samples, second, states, thresholds)]
    limit = 1.0
    for lower in reversed(_LIMITS):
        found = _answer_f1(samples, cascaded(first, second, lower), states, thresholds)
        if any(f1 < least for f1, least in zip(found, wanted, strict=True)):
            break
        limit = lower
    return limit


def cascade_facts(
    samples: Sequence[Sample],
    first: Probabilities,
    second: Probabilities,
    states: Sequence[InputState],
    thresholds: ThresholdPair,
    limit: float,
) -> dict[str, Any]:
    """What `adapter.json` says of a cascade: the share of decisions that ask the LoRA, and F1 with, by and without it.

    first, second: [N, S].
    """
    is_unsure = first.max(1) < limit
    facts: dict[str, Any] = {}
    for name, speaking in (("idle", False), ("over_an_answer", True)):
        rows = [i for i, sample in enumerate(samples) if sample.speaking is speaking]
        chosen = [samples[i] for i in rows]
        facts[name] = {
            "n": len(rows),
            "apart": rounded(float(is_unsure[rows].mean())) if rows else None,
            **{
                f"answer_f1_{kind}": rounded(
                    DecisionMetrics.of(chosen, decide(p[rows], chosen, states, thresholds)).answer.f1
                )
                for kind, p in (("rows", first), ("lora", second), ("cascade", cascaded(first, second, limit)))
            },
        }
    return {"apart": rounded(float(is_unsure.mean())), **facts}


def _answer_f1(
    samples: Sequence[Sample], p: Probabilities, states: Sequence[InputState], thresholds: ThresholdPair
) -> list[float]:
    """With a silent and with a speaking assistant; 1 where no sample should be answered or was. p: [N, S]."""
    decisions = decide(p, samples, states, thresholds)
    found = []
    for speaking in (False, True):
        rows = [i for i, sample in enumerate(samples) if sample.speaking is speaking]
        f1 = DecisionMetrics.of([samples[i] for i in rows], [decisions[i] for i in rows]).answer.f1
        found.append(1.0 if f1 is None else f1)
    return found
