"""The reference backend, and the sampling that all backends with logits share."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from duologue.backends.reference import ReferenceBackend
from duologue.backends.sampling import FloatArray, choose, drawn, largest, weigh
from duologue.core.backend import Draw, Extend, Sampling
from duologue.errors import AdapterMismatch, EngineError, UsageError
from duologue.testing.contract import PREFIX, WATCH
from duologue.testing.tiny_models import VOCAB_SIZE, tiny_model, tiny_rows

torch.set_num_threads(1)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mamba"])
def test_it_gives_the_results_of_the_plain_model(architecture: str) -> None:
    model = tiny_model(architecture)
    rows = tiny_rows(timing=True)
    backend = ReferenceBackend(model, rows=rows)
    seq = backend.fork(None)
    backend.forward([Extend(seq, PREFIX[:6])])
    watch = ((*WATCH[0], VOCAB_SIZE + 1, VOCAB_SIZE + 4), (VOCAB_SIZE + 5, VOCAB_SIZE + 6))
    step = backend.forward([Extend(seq, PREFIX[6:], watch=watch)])[0]
    with torch.no_grad():
        plain = model(torch.tensor([PREFIX]), output_hidden_states=True)
    hidden = plain.hidden_states[-1][0, -1].numpy()
    mixed = np.concatenate([plain.logits[0, -1, list(WATCH[0])], rows.states[[0, 3]] @ hidden])
    for p, logits in zip(step.p, (mixed, rows.timing @ hidden), strict=True):
        weights = np.exp(logits - logits.max())
        np.testing.assert_allclose(p, weights / weights.sum(), atol=1e-5)


def test_it_holds_no_kv_but_counts_entries() -> None:
    backend = ReferenceBackend(tiny_model("llama"))
    seq = backend.fork(None)
    backend.forward([Extend(seq, PREFIX)])
    assert (backend.usage().kv_entries, backend.usage().kv_bytes) == (len(PREFIX), 0)


def test_limits_and_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError):
        ReferenceBackend(tiny_model("llama"), capacity=0)
    with pytest.raises(UsageError, match="between 1 and 128"):
        ReferenceBackend(tiny_model("llama"), context_length=129)
    with pytest.raises(AdapterMismatch):
        ReferenceBackend(tiny_model("llama"), rows=tiny_rows(width=8))


# --- Choosing a token -------------------------------------------------------------------------------------------------

# Probabilities 0.5, 0.25, 0.125, 0.125 of ids 2, 0, 1, 3: by falling probability, ties by id.
LOGITS = np.log(np.array([0.25, 0.125, 0.5, 0.125], dtype=np.float32))


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 2), (0.49, 2), (0.51, 0), (0.74, 0), (0.76, 1), (0.87, 1), (0.88, 3), (0.999999, 3)]
)
def test_uniform_selects_by_descending_probability(uniform: float, token: int) -> None:
    assert choose(LOGITS, Draw(Sampling(1.0), uniform))[0] == token


def test_kept_tokens_are_renormalised() -> None:
    assert [choose(LOGITS, Draw(Sampling(1.0, top_k=2), u))[0] for u in (0.66, 0.67, 0.99)] == [2, 0, 0]
    assert [choose(LOGITS, Draw(Sampling(1.0, top_p=0.6), u))[0] for u in (0.66, 0.67, 0.99)] == [2, 0, 0]
    # top_p is of what top_k left: 0.5 of 0.75 is more than 0.6 of it, so one token is enough.
    assert choose(LOGITS, Draw(Sampling(1.0, top_k=2, top_p=0.6), 0.99))[0] == 2


def test_greedy_takes_the_lowest_id_on_a_tie() -> None:
    assert choose(np.array([1, 3, 2, 3], dtype=np.float32), Draw()) == (1, 0.0)
    token, margin = choose(np.array([1, 3, 2, 2.5], dtype=np.float32), Draw(uniform=0.9))
    assert (token, margin) == (1, 0.5)


def test_log_probabilities_are_those_at_temperature_one() -> None:
    logits = np.array([0.5, 3.0, -1.0, 2.0], dtype=np.float32)
    expected = logits - np.log(np.exp(logits).sum())
    step = drawn(7, logits, Draw(Sampling(5.0), 0.999, num_alternatives=2))
    assert (step.ticket, step.tokens) == (7, (2,))
    assert [token for token, _ in step.log_p] == [2, 1, 3], "the drawn token, then the most probable ones"
    assert [p for _, p in step.log_p] == pytest.approx(expected[[2, 1, 3]], abs=1e-6)
    assert [token for token, _ in drawn(7, logits, Draw(num_alternatives=0)).log_p] == [1]
    assert drawn(7, logits, Draw()).log_p == ()


def test_a_constraint_decides_what_may_be_drawn() -> None:
    class OddOnly:
        def apply(self, tokens: Sequence[int], logits: FloatArray) -> FloatArray:
            assert tokens == (5, 7)
            return np.where(np.arange(len(logits)) % 2, logits, -np.inf).astype(np.float32)

    logits = np.array([9.0, 1.0, 8.0, 2.0], dtype=np.float32)
    for uniform in (0.0, 0.5, 0.99):
        draw = Draw(Sampling(1.0), uniform, constraint=OddOnly(), answer=(5, 7))
        assert drawn(0, logits, draw).tokens[0] in (1, 3)
    assert drawn(0, logits, Draw(constraint=OddOnly(), answer=(5, 7), num_alternatives=0)).log_p[0][0] == 3


def test_a_low_temperature_is_greedy_and_a_high_one_flat() -> None:
    assert {choose(LOGITS, Draw(Sampling(1e-30), u))[0] for u in (0.0, 0.5, 0.99)} == {2}
    assert [choose(LOGITS, Draw(Sampling(10.0), u))[0] for u in (0.27, 0.6, 0.95)] == [2, 1, 3]


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.5, top_p=0.97), Sampling(0.7, top_k=900)])
def test_sorting_a_part_first_changes_nothing(sampling: Sampling) -> None:
    """A vocabulary larger than the part sorted first, compared with the plain definition."""
    logits = np.random.default_rng(1).normal(size=5000).astype(np.float32)
    order = np.argsort(-logits, kind="stable")[: sampling.top_k or None]
    weights = np.exp(logits[order].astype(np.float64) / sampling.temperature)
    kept = int(np.searchsorted(np.cumsum(weights), sampling.top_p * weights.sum() * (1 - 1e-9))) + 1
    cumulated = np.cumsum(weights[:kept]) / weights[:kept].sum()
    for uniform in np.linspace(0.0, 0.9999, 23):
        expected = order[int(np.searchsorted(cumulated, uniform, side="right"))]
        assert choose(logits, Draw(sampling, float(uniform)))[0] == expected


def test_largest_breaks_ties_by_id() -> None:
    values = np.array([1, 2, 2, 0, 2], dtype=np.float32)
    assert [list(largest(values, size)) for size in (1, 2, 4, 9)] == [[1], [1, 2], [1, 2, 4, 0], [1, 2, 4, 0, 3]]


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(EngineError, match="not finite"):
        choose(np.array([0, np.nan], dtype=np.float32), Draw())
    with pytest.raises(EngineError, match="not finite"):
        weigh([0.0, float("inf")])
