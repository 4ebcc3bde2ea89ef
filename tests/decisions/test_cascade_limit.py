"""The limit of a cascade: how sure rows must be for decisions to be as good as those of the LoRA."""

import numpy as np
import pytest

from duologue.core.policy import Thresholds
from duologue.data.samples import Sample
from duologue.decisions.cascade import TOLERANCE, cascade_facts, cascaded, find_limit
from duologue.types import InputState

STATES = tuple(InputState)
PROCESS, INCOMPLETE, IGNORE, STOP = STATES
EQUAL = (Thresholds(), Thresholds())


def sure(index: int, p: float) -> list[float]:
    """Probabilities in which state `index` has p."""
    return [p if i == index else (1 - p) / 3 for i in range(4)]


def samples(num: int, *, speaking: bool) -> list[Sample]:
    """Half of them to be answered, half to be ignored."""
    return [Sample("a", PROCESS if i % 2 else IGNORE, "s", speaking=speaking) for i in range(num)]


def right(of: list[Sample], p: float) -> np.ndarray:
    return np.array([sure(STATES.index(sample.state), p) for sample in of], dtype=np.float32)


def test_rows_decide_where_they_are_sure() -> None:
    first = np.array([sure(0, 0.8), sure(0, 0.5)], dtype=np.float32)
    second = np.array([sure(2, 0.6), sure(2, 0.6)], dtype=np.float32)
    np.testing.assert_array_equal(cascaded(first, second, 0.8), [first[0], second[1]])
    np.testing.assert_array_equal(cascaded(first, second, 0.5), first)
    np.testing.assert_array_equal(cascaded(first, second, 0.9), second)


def test_the_limit_is_the_smallest_from_which_on_no_answer_is_lost() -> None:
    of = samples(1000, speaking=False) + samples(1000, speaking=True)
    first, second = right(of, 0.95), right(of, 0.7)
    assert find_limit(of, first, second, STATES, EQUAL) == 0, "the rows are right even where they are least sure"
    first[[100, 102, 104, 106]] = [sure(0, p) for p in (0.62, 0.63, 0.64, 0.65)]
    limit = find_limit(of, first, second, STATES, EQUAL)
    assert limit == pytest.approx(0.63), "three false answers beside 500 are within the tolerance, four are not"
    first[[101, 103, 105, 107]] = sure(2, 0.9)
    assert find_limit(of, first, second, STATES, EQUAL) == pytest.approx(0.91)
    first[[1101, 1103, 1105, 1107]] = sure(2, 0.9995)
    assert find_limit(of, first, second, STATES, EQUAL) == 1, "rows that are wrong and sure of it decide nothing"


def test_the_limit_goes_by_the_worse_of_silent_and_speaking() -> None:
    of = samples(400, speaking=False) + samples(400, speaking=True)
    for start, expected in ((0, 0.71), (400, 0.71)):
        first, second = right(of, 0.95), right(of, 0.7)
        first[[start + 1, start + 3, start + 5]] = sure(2, 0.7)
        assert find_limit(of, first, second, STATES, EQUAL) == pytest.approx(expected)
    silent = samples(400, speaking=False)
    assert find_limit(silent, right(silent, 0.9), right(silent, 0.9), STATES, EQUAL) == 0, "no speaking assistant"


def test_decisions_go_by_the_thresholds_of_the_adapter() -> None:
    of = samples(400, speaking=False)
    first, second = right(of, 0.95), right(of, 0.95)
    first[1::2] = [0.55, 0.0, 0.45, 0.0]
    assert find_limit(of, first, second, STATES, EQUAL) == 0
    careful = Thresholds(process=0.6, ignore=0.3)
    assert find_limit(of, first, second, STATES, (careful, careful)) == pytest.approx(0.56)


def test_the_facts_say_what_is_saved_and_what_it_costs() -> None:
    of = samples(100, speaking=False) + samples(300, speaking=True)
    first, second = right(of, 0.9), right(of, 0.8)
    first[:25] = sure(1, 0.3)
    facts = cascade_facts(of, first, second, STATES, EQUAL, 0.5)
    assert facts["apart"] == pytest.approx(25 / 400)
    assert facts["idle"] == {
        "n": 100,
        "apart": 0.25,
        "answer_f1_rows": pytest.approx(2 * 38 / (38 + 50), abs=1e-4),
        "answer_f1_lora": 1.0,
        "answer_f1_cascade": 1.0,
    }
    assert facts["over_an_answer"]["apart"] == 0
    assert 0.002 < TOLERANCE < 0.005
