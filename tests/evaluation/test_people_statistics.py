"""The statistics of a study against values that were computed by hand, and against published examples."""

import pytest

from duologue.evaluation.people import statistics as stat
from duologue.evaluation.people.ballots import Ballot
from duologue.evaluation.people.criteria import Criterion, Vote

RELIABILITY = (  # Krippendorff (2011), "Computing Krippendorff's alpha-reliability", section D: 4 observers, 12 units
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)


def votes(**by_rater: str) -> list[stat.Outcome]:
    """A vote on each of the examples 0, 1, …: +, 0 or -."""
    return [
        stat.Outcome(rater, str(i), {"+": 1, "0": 0, "-": -1}[sign])
        for rater, signs in by_rater.items()
        for i, sign in enumerate(signs)
    ]


def test_votes_are_counted_from_the_side_of_the_first_system() -> None:
    def ballot(rater: str, a: str, b: str, vote: Vote) -> Ballot:
        return Ballot(rater, "x", a, b, {Criterion.OVERALL: vote})

    ballots = [
        ballot("1", "one", "two", Vote.A),
        ballot("2", "two", "one", Vote.A),
        ballot("3", "two", "one", Vote.B),
        ballot("4", "one", "two", Vote.TIE),
    ]
    found = stat.outcomes(ballots, Criterion.OVERALL, "one")
    assert [one.value for one in found] == [1, -1, 1, 0]
    assert stat.tally(found) == (2, 1, 1)
    assert stat.score([one.value for one in found]) == 0.625
    assert stat.outcomes(ballots, Criterion.FACTUALITY, "one") == []


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (10, 4, 2 * (1 + 14 + 91 + 364 + 1001) / 16384),  # the responsiveness of the duplex models' paper
        (7, 0, 2 / 128),
        (5, 5, 1.0),
        (1, 0, 1.0),
        (0, 0, 1.0),
    ],
)
def test_the_sign_test(wins: int, losses: int, p: float) -> None:
    assert stat.sign_test(wins, losses) == pytest.approx(p)


def test_many_votes_do_not_overflow() -> None:
    assert 0 < stat.sign_test(1000, 1200) < 1e-4


def test_each_rater_counts_once() -> None:
    cast = votes(a="+++", b="++-", c="0+0", d="--+", e="+-0", f="+++")
    assert stat.sign_test_of_raters(cast) == pytest.approx(2 * (1 + 5) / 32)  # four for, one against, one undecided


def test_alpha_is_the_published_one() -> None:
    units = [[value for value in unit if value is not None] for unit in zip(*RELIABILITY, strict=True)]
    assert stat.alpha(units) == pytest.approx(0.815, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert stat.agreement(votes(a="++--", b="++--", c="++--")) == pytest.approx(1.0)
    assert stat.agreement(votes(a="+-+-", b="-+-+")) < 0
    assert stat.agreement(votes(a="++++", b="++++")) is None  # agreement or chance: nobody can tell
    assert stat.agreement(votes(a="+-0+")) is None  # nobody to agree with
    assert stat.agreement(votes(a="+", b="-")) is None  # a single unit


def test_alpha_by_hand() -> None:
    # Units (+, +) and (+, -): values + three times, - once. The observed pairs that differ are 2 of 4, and so 1 of 2;
    # by chance, it would be 2 * 3 * 1 of 4 * 3, also 1 of 2. The distance between the two values is the same in both.
    assert stat.agreement(votes(a="++", b="+-")) == pytest.approx(0.0)


def test_the_interval_of_independent_raters_is_that_of_the_binomial_distribution() -> None:
    cast = [stat.Outcome(str(i), "talk", 1 if i < 14 else -1) for i in range(20)]
    assert stat.interval(cast, seed=0) == (0.5, 0.9)  # 10 and 18 of 20: percentiles of B(20, 0.7)


def test_votes_of_a_rater_depend_on_each_other() -> None:
    low, high = stat.interval(votes(a="+" * 30, b="-" * 30), seed=0) or (None, None)
    assert (low, high) == (0.0, 1.0)  # in half of the resamples, one rater is drawn twice
    low, high = stat.interval(votes(**{str(i): "+" * 30 for i in range(5)}), seed=0) or (None, None)
    assert (low, high) == (1.0, 1.0)


def test_the_interval_depends_on_the_seed_only() -> None:
    cast = votes(a="+-0+", b="+++-", c="00-+")
    assert stat.interval(cast, seed=1) == stat.interval(cast, seed=1)


def test_one_vote_has_no_interval() -> None:
    assert stat.interval(votes(a="+"), seed=0) is None
