"""Decisions are counted as the documents and the paper count them; every figure here was worked out by hand."""

import numpy as np
import pytest

from duologue.core.policy import Policy, Thresholds
from duologue.data.samples import Sample
from duologue.decisions.calibration import (
    Bin,
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from duologue.decisions.metrics import DecisionMetrics, Detection, adapter_facts, metrics_by, wilson
from duologue.decisions.thresholds import accepted, calibrate, decide
from duologue.decisions.timing import MAX_WEIGHT, ONE_SIDED, auc, balance, is_learnable
from duologue.decisions.tradeoff import Tradeoff, tradeoffs
from duologue.types import InputState

STATES = tuple(InputState)
PROCESS, INCOMPLETE, IGNORE, STOP = STATES

SAMPLES = [
    Sample("a", PROCESS, "own"),
    Sample("b", PROCESS, "own"),
    Sample("c", PROCESS, "own", speaking=True),
    Sample("d", IGNORE, "radio", accept=(INCOMPLETE,)),
    Sample("e", IGNORE, "radio"),
    Sample("f", IGNORE, "radio"),
    Sample("g", IGNORE, "radio"),
    Sample("h", INCOMPLETE, "own", kind="cut"),
    Sample("i", STOP, "own"),
]
DECIDED = [PROCESS, INCOMPLETE, IGNORE, INCOMPLETE, PROCESS, IGNORE, STOP, PROCESS, STOP]


def test_outcomes_count_as_the_paper_does() -> None:
    result = DecisionMetrics.of(SAMPLES, DECIDED)
    # on the seven process and ignore rows: one of three found, one false
    assert result.answer == Detection(precision=1 / 2, recall=1 / 3, f1=2 / 5)
    # not-ignore: a and b of a, b, c; false are d, e and g
    assert result.respond == Detection(precision=2 / 5, recall=2 / 3, f1=4 / 8)
    assert result.false_answers == 1 / 4
    assert result.false_waits == 1 / 4  # by the label, though waiting was accepted
    assert result.recall == {"process": 1 / 3, "incomplete": 0.0, "ignore": 2 / 4, "stop": 1.0}
    assert result.accuracy == 4 / 9
    assert result.confusion["ignore"] == {"process": 1, "incomplete": 1, "ignore": 1, "stop": 1}


def test_shares_of_nothing_are_none() -> None:
    result = DecisionMetrics.of([], [])
    assert result.accuracy is None
    assert result.false_answers is None
    assert result.answer == Detection(None, None, None)
    silent = DecisionMetrics.of([Sample("a", PROCESS, "own")], [IGNORE])
    assert silent.answer == Detection(precision=None, recall=0.0, f1=0.0)
    assert silent.recall["stop"] is None


def test_outcomes_as_json_have_the_agreed_names() -> None:
    result = DecisionMetrics.of(SAMPLES, DECIDED).to_json()
    assert list(result) == [
        *("n", "accuracy", "answer", "respond"),
        *("false_answer_rate", "false_wait_rate", "recall", "confusion"),
    ]
    assert result["answer"] == {"precision": 0.5, "recall": 0.3333, "f1": 0.4}


def test_groups_are_judged_apart() -> None:
    by_source = metrics_by(lambda sample: sample.source, SAMPLES, DECIDED)
    assert {name: result.num for name, result in by_source.items()} == {"own": 5, "radio": 4}
    assert by_source["radio"].false_answers == 1 / 4
    facts = adapter_facts(SAMPLES, DECIDED)
    assert facts["all"]["answer_f1"] == 0.4
    assert facts["over_an_answer"]["recall"] == {"process": 0.0}
    assert facts["cases"]["incomplete / own / cut / idle"] == {"n": 1, "right": 0.0, "process": 1.0}


def test_decisions_are_those_of_the_policy() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 200).astype(np.float32)
    samples = [Sample("…", PROCESS, "own", speaking=i % 2 == 0) for i in range(200)]
    policy = Policy(idle=Thresholds(0.9, 0.2, 0.4, 0.3), speaking=Thresholds(0.1, 0.5, 0.8, 0.9))
    expected = [
        policy.decide(STATES, tuple(map(float, row)), speaking=s.speaking).state
        for row, s in zip(p, samples, strict=True)
    ]
    assert decide(p, samples, STATES, (policy.idle, policy.speaking)) == expected
    assert decide(p, samples, STATES) != expected


def test_calibration_error_is_the_gap_weighted_by_samples() -> None:
    p = np.array([[0.9, 0.1, 0, 0], [0.8, 0.2, 0, 0], [0.6, 0.4, 0, 0], [0.5, 0.1, 0.4, 0]], np.float32)
    samples = [Sample("…", state, "own") for state in (PROCESS, PROCESS, PROCESS, INCOMPLETE)]
    bins = reliability(samples, p, STATES, num_bins=2)
    assert bins == [Bin(2, pytest.approx(0.55), 0.5), Bin(2, pytest.approx(0.85), 1.0)]
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.05 + 2 * 0.15) / 4)
    assert [each.num for each in reliability(samples[:3], p[:3], STATES)] == [1, 1, 1]
    assert reliability([], p[:0], STATES) == []
    either = [Sample("…", IGNORE, "own", accept=(INCOMPLETE,))] * 4
    assert reliability(either, p, STATES) == [], "nobody can be too unsure between two that are right"
    assert expected_calibration_error([]) is None


def test_the_curve_trades_false_actions_for_delay() -> None:
    samples = [
        Sample("a", PROCESS, "own"),
        Sample("b", PROCESS, "own"),
        Sample("c", IGNORE, "own"),
        Sample("d", INCOMPLETE, "own"),
        Sample("e", IGNORE, "own", accept=(PROCESS,)),
        Sample("f", STOP, "own"),
    ]
    column = np.array([0.9, 0.4, 0.6, 0.2, 0.99, 0.99])
    p = np.stack([column, 0 * column, 1 - column, 0 * column], 1).astype(np.float32)
    points = tradeoffs(samples, p, STATES, num_points=6)
    assert points[0] == Tradeoff(0.0, 1.0, 0.0)
    assert points[-1] == Tradeoff(1.0, 0.0, 1.0)
    # at the quantile 0.6 of a, b, c, d: c is answered, b waits
    assert Tradeoff(pytest.approx(0.6), 0.5, 0.5) in points
    # what is exactly as probable as the threshold is answered
    assert Tradeoff(pytest.approx(0.4), 0.5, 0.0) in points
    assert tradeoffs(samples[:2], p[:2], STATES) == []
    assert tradeoffs([], p[:0], STATES) == []


def test_calibration_trades_false_answers_and_sets_the_two_cases_apart() -> None:
    rng = np.random.default_rng(0)
    samples, p = [], []
    for i in range(600):
        state, speaking = (PROCESS, IGNORE)[i % 2], i % 4 < 2
        # over an answer this model is too eager: without calibration it answers most of what it should ignore
        lean = rng.normal() + (1.5 if state is PROCESS else -1.5) + (1.0 if speaking else 0.0)
        answer = 1 / (1 + np.exp(-2 * lean))
        samples.append(Sample("…", state, "own", speaking=speaking))
        p.append([0.98 * answer, 0.01, 0.98 * (1 - answer), 0.01])
    table = np.array(p, dtype=np.float32)
    before = DecisionMetrics.of(samples, decide(table, samples, STATES))
    idle, speaking = calibrate(samples, table, STATES)
    after = DecisionMetrics.of(samples, decide(table, samples, STATES, (idle, speaking)))
    assert speaking.process > idle.process
    assert before.false_answers is not None
    assert after.false_answers is not None
    assert after.false_answers < 0.6 * before.false_answers
    assert speaking.incomplete == speaking.stop == speaking.ignore, "states without samples are not made rarer"
    assert calibrate([], np.zeros((0, 4), np.float32), STATES) == (Thresholds(), Thresholds())
    asked = [i for i, sample in enumerate(samples) if sample.state is PROCESS]
    assert calibrate([samples[i] for i in asked], table[asked], STATES) == (Thresholds(), Thresholds())


def test_a_temperature_makes_an_oversure_model_as_sure_as_it_is_right() -> None:
    rng = np.random.default_rng(0)
    states = tuple(InputState)
    samples, rows = [], []
    for i in range(400):
        label = int(rng.integers(4))
        said = label if rng.random() < 0.8 else int(rng.integers(4))
        rows.append([0.997 if column == said else 0.001 for column in range(4)])
        samples.append(Sample(f"text {i}", states[label], "made"))
    p = np.array(rows, dtype=np.float32)
    temperature = fit_temperature(p, accepted(samples, states))
    cooled = apply_temperature(p, temperature)
    assert temperature > 1.5
    assert (cooled.argmax(1) == p.argmax(1)).all()
    accuracy = float(np.mean([states[i] is sample.state for i, sample in zip(p.argmax(1), samples, strict=True)]))
    assert cooled.max(1).mean() == pytest.approx(accuracy, abs=0.03)
    np.testing.assert_allclose(apply_temperature(p, 1.0), p, atol=1e-4)


def test_auc_counts_the_pairs_in_order() -> None:
    p, ends = np.array([0.1, 0.4, 0.4, 0.8, 0.9]), np.array([False, True, False, False, True])
    assert auc(p, ends) == pytest.approx((1 + 0.5 + 0 + 3) / 6)
    assert auc(np.array([0.2, 0.3]), np.array([True, True])) is None


def test_the_end_of_a_turn_is_learned_from_both_kinds_of_samples() -> None:
    known = [Sample("what", INCOMPLETE, "own", ends=ends) for ends in (True, False)]
    assert is_learnable([*known, *SAMPLES])
    assert not is_learnable([known[0], *SAMPLES])


def test_odds_that_turns_end_are_brought_nearer_to_even_in_every_source() -> None:
    shop = [Sample("a", PROCESS, "shop", ends=ends) for ends in (True, True, True, True, False)]
    hotel = [Sample("a", PROCESS, "hotel", ends=ends) for ends in (False, False, True, True)]
    commands = [Sample("lights on", PROCESS, "commands", ends=True)] * 5  # says nothing about ends but its style
    cuts = [Sample("b", INCOMPLETE, "shop", ends=False)] * 2
    found = balance([*shop, *hotel, *commands, *cuts, Sample("c", IGNORE, "shop")])
    fewer_ends = [5 / 6] * 4 + [5 / 3]  # odds of 2 for odds of 4, and a mean of 1
    assert found.tolist() == pytest.approx([*fewer_ends, *[1] * 4, *[ONE_SIDED] * 5, 1, 1, 0])


def test_one_sample_of_a_source_does_not_outweigh_the_others() -> None:
    samples = [Sample("a", PROCESS, "shop", ends=number > 0) for number in range(1000)]
    assert balance(samples)[0] == MAX_WEIGHT


def test_intervals_are_wilsons() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(5, 5)[1] == 1.0
