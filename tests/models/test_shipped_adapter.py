"""The shipped adapter on its model decides correctly in a first conversation, spoken and typed."""

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch")

from demo import demo_samples
from duologue.decisions.thresholds import decide
from duologue.errors import ModelNotFound
from duologue.evaluation.labelled_rows import LabelledRows, lay_out
from duologue.evaluation.scoring import score
from duologue.models.model import load
from duologue.types import InputState


@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")  # of the reader of GGUF files
def test_a_first_conversation_is_understood() -> None:
    try:
        model = load(backend="torch")
    except ModelNotFound as error:
        pytest.skip(str(error))
    assert model.adapter.kind != "prompted"
    samples = demo_samples()
    p = score(model, lay_out(LabelledRows(Path("demo"), tuple(samples), tuple(range(len(samples)))), model))
    decisions = decide(p, samples, model.adapter.states, model.adapter.thresholds_for("bf16"))
    wrong = [(s.text, s.state.value, d.value) for s, d in zip(samples, decisions, strict=True) if d not in s.right]
    assert len(wrong) <= 0.15 * len(samples), wrong
    missed = Counter(state for _, state, _ in wrong)
    for state in InputState:
        assert missed[state.value] <= 0.25 * sum(s.state is state for s in samples), wrong
