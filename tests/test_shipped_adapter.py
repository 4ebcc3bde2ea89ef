"""The shipped adapter on its model: what people say and type in a first conversation is understood."""

from collections import Counter

import pytest

pytest.importorskip("torch")

import torch

from demo import demo_samples
from duologue.adapters import default_for
from duologue.catalogue import DEFAULT, find
from duologue.errors import ModelNotFound
from duologue.metrics.decisions import decide
from duologue.template import Template
from duologue.training.job import fingerprint_of, load_base, score_samples
from duologue.training.layout import Layouts
from duologue.training.rows import RowsModel
from duologue.types import InputState


@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")  # of the reader of GGUF files
def test_a_first_conversation_is_understood() -> None:
    try:
        source = find(DEFAULT)
    except ModelNotFound as error:
        pytest.skip(str(error))
    model, tokenizer = load_base(source, torch.bfloat16)
    adapter = default_for(fingerprint_of(model, tokenizer))
    assert adapter is not None
    assert adapter.rows is not None
    rows_model = RowsModel(model, adapter.states, [0], len(adapter.rows.probes))
    rows_model.set_rows(adapter.rows)
    samples = demo_samples()
    p = score_samples(rows_model, Layouts(Template.from_tokenizer(tokenizer)), samples)
    decisions = decide(p, samples, adapter.states, adapter.thresholds_for("bf16"))
    wrong = [(s.text, s.state.value, d.value) for s, d in zip(samples, decisions, strict=True) if d not in s.right]
    assert len(wrong) <= 0.15 * len(samples), wrong
    missed = Counter(state for _, state, _ in wrong)
    for state in InputState:
        assert missed[state.value] <= 0.25 * sum(s.state is state for s in samples), wrong
