"""What ballots show: wins, ties and losses, whether they may be chance, and whether raters agree.

A vote counts 1 for the first system, 0 for a tie and −1 for the second.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import comb

import numpy as np

from duologue.evaluation.people.ballots import Ballot
from duologue.evaluation.people.criteria import Criterion, Vote

NUM_RESAMPLES = 2000
_LEVEL = 95  # percent of the interval


@dataclass(frozen=True, slots=True)
class Outcome:
    """One vote on one criterion."""

    rater: str
    example: str
    value: int  # 1: the first system is better; 0: a tie; -1: the second is


def outcomes(ballots: Iterable[Ballot], criterion: Criterion, first: str) -> list[Outcome]:
    """The votes on `criterion`, from the side of the system `first`."""
    found = []
    for ballot in ballots:
        vote = ballot.votes.get(criterion)
        if vote is not None:
            winner = {Vote.A: ballot.a, Vote.B: ballot.b}.get(vote)
            found.append(Outcome(ballot.rater, ballot.example, 0 if winner is None else 1 if winner == first else -1))
    return found


def tally(votes: Iterable[Outcome]) -> tuple[int, int, int]:
    """Wins, ties and losses of the first system."""
    count = Counter(vote.value for vote in votes)
    return count[1], count[0], count[-1]


def score(values: Sequence[int]) -> float:
    """The share of the votes that the first system gets, if a tie is half a vote for each."""
    return (sum(values) / len(values) + 1) / 2


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p of the sign test: ties are left out, and each other vote is a toss of a fair coin."""
    num = wins + losses
    return min(1.0, 2 * sum(comb(num, k) for k in range(min(wins, losses) + 1)) / (1 << num))


def by_rater(votes: Iterable[Outcome]) -> dict[str, list[int]]:
    """The values of each rater's votes."""
    found: dict[str, list[int]] = defaultdict(list)
    for vote in votes:
        found[vote.rater].append(vote.value)
    return dict(found)


def sign_test_of_raters(votes: Iterable[Outcome]) -> float:
    """The sign test in which each rater counts once, by the majority of the votes that are not ties."""
    sums = [sum(values) for values in by_rater(votes).values()]
    return sign_test(sum(one > 0 for one in sums), sum(one < 0 for one in sums))


def interval(votes: Sequence[Outcome], *, seed: int) -> tuple[float, float] | None:
    """The bootstrap interval of the score, at 95 %; None if all votes are on one example by one rater.

    Raters and examples are drawn anew, independently of each other, and a vote has the product of the numbers of times
    that its rater and its example were drawn (Owen 2007, "The pigeonhole bootstrap"): votes of one rater, and votes on
    one example, depend on each other.
    """
    raters, r = np.unique([vote.rater for vote in votes], return_inverse=True)
    examples, e = np.unique([vote.example for vote in votes], return_inverse=True)
    if len(raters) == len(examples) == 1:
        return None
    values = (np.array([vote.value for vote in votes]) + 1) / 2
    rng = np.random.default_rng(seed)
    drawn_raters, drawn_examples = (  # [B, number of them], B resamples
        rng.multinomial(num, np.full(num, 1 / num), size=NUM_RESAMPLES) for num in (len(raters), len(examples))
    )
    weights = drawn_raters[:, r] * drawn_examples[:, e]  # [B, votes]
    weights = weights[weights.any(axis=1)]
    low, high = np.percentile(weights @ values / weights.sum(axis=1), [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return float(low), float(high)


def alpha(units: Iterable[Sequence[int]]) -> float | None:
    """Krippendorff's alpha for ordinal values; 1 is agreement, 0 is chance.

    Each unit has the values that raters gave it. Units with one value are left out. None if fewer than two units are
    left, or if all values are the same: then nothing tells agreement from chance.
    """
    pairs: Counter[tuple[int, int]] = Counter()
    num_units = 0
    weighted: dict[tuple[int, int], float] = defaultdict(float)
    for unit in units:
        if len(unit) > 1:
            num_units += 1
            pairs = Counter(permutations(unit, 2))
            for pair, count in pairs.items():
                weighted[pair] += count / (len(unit) - 1)
    values = sorted({value for pair in weighted for value in pair})
    totals = {value: sum(weighted[value, other] for other in values) for value in values}
    if num_units < 2 or len(values) < 2:
        return None

    def distance(low: int, high: int) -> float:
        between = sum(totals[value] for value in values if low <= value <= high)
        return (between - (totals[low] + totals[high]) / 2) ** 2

    all_pairs = [(one, other, distance(*sorted((one, other)))) for one, other in product(values, values)]
    observed = sum(weighted[one, other] * far for one, other, far in all_pairs)
    expected = sum(totals[one] * totals[other] * far for one, other, far in all_pairs) / (sum(totals.values()) - 1)
    return 1 - observed / expected


def agreement(votes: Iterable[Outcome]) -> float | None:
    """Krippendorff's alpha of the raters, with the examples as units."""
    units: dict[str, list[int]] = defaultdict(list)
    for vote in votes:
        units[vote.example].append(vote.value)
    return alpha(units.values())
