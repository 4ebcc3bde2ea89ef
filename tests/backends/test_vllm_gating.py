# ruff: noqa: E402 - what may be missing is looked for before it is imported
"""A LoRA at probe tokens alone, and states in place of the next token, on tensors; in shards as on one device."""

import pytest

torch = pytest.importorskip("torch")

from duologue.backends.vllm.gating import (
    Ids,
    Pair,
    Part,
    column_factors,
    gated_delta,
    probes_by_embedding,
    probes_by_id,
    read_outputs,
    row_factors,
)
from duologue.backends.vllm.plugin import ExportedAdapter
from duologue.errors import AdapterMismatch, BrokenModel

RANK, INNER = 3, 16
PROBES = torch.tensor([[False], [True], [False], [True]])
EXPORTED = ExportedAdapter(40, 40, 2, 6, 2.0, {"process": 42, "ignore": 43}, (46, 47))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(outputs: int, seed: int, inputs: int = INNER) -> Pair:
    return Pair(random(RANK, inputs, seed=seed), random(outputs, RANK, seed=seed + 100))


def whole(x: torch.Tensor, factors: Pair) -> torch.Tensor:
    return torch.where(PROBES, x @ factors.a.T @ factors.b.T, 0.0)


def head_parts(rank: int, ranks: int, heads: int, head: int) -> Part:
    """The heads of one rank; where there are fewer heads than ranks, several have the same."""
    size, copies = max(1, heads // ranks) * head, max(1, ranks // heads)
    return Part(rank // copies * size, size, heads * head)


def test_plain_tokens_are_left_exactly_alone() -> None:
    x, factors = random(4, INNER), pair(8, 1)
    x[0] = 1e300  # whatever the LoRA would make of it
    delta = gated_delta(x, *factors, PROBES)
    assert not delta[[0, 2]].any()
    torch.testing.assert_close(delta, whole(x.clamp(max=1e3), factors))
    assert delta[1].abs().max() > 0.1


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("missing", [None, 1])
def test_shards_by_outputs_are_parts_of_the_whole(ranks: int, missing: int | None) -> None:
    x, heads, head = random(4, INNER), (4, 2, 2), 8
    factors = [None if i == missing else pair(num * head, i) for i, num in enumerate(heads)]
    for rank in range(ranks):
        parts = [head_parts(rank, ranks, num, head) for num in heads]
        a, b = column_factors(factors, parts, "qkv_proj")
        assert (a.shape[0], b.shape[0]) == (RANK * (3 - (missing is not None)), sum(part.size for part in parts))
        found = gated_delta(x, a, b, PROBES)
        for one, part, got in zip(factors, parts, found.split([part.size for part in parts], dim=1), strict=True):
            expected = torch.zeros_like(got) if one is None else whole(x, one)[:, part.start : part.start + part.size]
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_shards_by_inputs_sum_to_the_whole(ranks: int) -> None:
    x, factors, size = random(4, INNER), pair(8, 2), INNER // ranks
    parts = [Part(rank * size, size, INNER) for rank in range(ranks)]
    deltas = [
        gated_delta(x[:, part.start : part.start + size], *row_factors(factors, part, "o_proj"), PROBES)
        for part in parts
    ]
    torch.testing.assert_close(sum(deltas), whole(x, factors))


def test_factors_of_another_model_are_refused() -> None:
    with pytest.raises(AdapterMismatch, match=r"for 8 outputs of up_proj, and the model has 12"):
        column_factors([pair(8, 0)], [Part(0, 12, 12)], "up_proj")
    with pytest.raises(AdapterMismatch, match=r"for 16 inputs of down_proj, and the model has 24"):
        row_factors(pair(8, 0), Part(0, 12, 24), "down_proj")


def test_probes_are_known_by_their_ids_and_by_their_embeddings() -> None:
    table, ids = random(48, 5).to(torch.bfloat16), torch.tensor([3, 40, 39, 41, 42, 40])
    by_id = probes_by_id(ids, EXPORTED.first_added, EXPORTED.num_probes)
    assert by_id.flatten().tolist() == [False, True, False, True, False, True]
    assert torch.equal(probes_by_embedding(table[ids], table[40:42]), by_id)


@pytest.mark.parametrize("base_size", [40, 64])  # 64: the adapter's ids are rows of the base without a token
def test_only_base_ids_are_drawn_at_plain_tokens_and_only_outputs_at_probes(base_size: int) -> None:
    logits, hidden, outputs = (random(*shape).float() for shape in ((4, 64), (4, 5), (6, 5)))
    before = logits.clone()
    found = read_outputs(logits, hidden, PROBES, outputs, Ids(base_size, EXPORTED.first_added, EXPORTED.first_output))
    assert torch.equal(logits, before)
    base = torch.arange(64) < base_size
    base[40:48] = False
    for row, is_probe in enumerate(PROBES.flatten().tolist()):
        if is_probe:
            assert torch.isinf(found[row, :42]).all()
            assert torch.isinf(found[row, 48:]).all()
            torch.testing.assert_close(found[row, 42:48], outputs @ hidden[row])
        else:
            assert torch.equal(found[row, base], logits[row, base])
            assert torch.isinf(found[row, ~base]).all()


def test_what_the_folder_says_of_its_adapter_is_checked() -> None:
    content = EXPORTED.as_json()
    assert ExportedAdapter.from_json(content) == EXPORTED
    assert (EXPORTED.first_output, EXPORTED.end) == (42, 48)
    for broken, message in (
        (None, "format None"),
        ({**content, "format": 2}, "format 2.*reads format 1; export"),
        ({key: value for key, value in content.items() if key != "timing"}, "damaged: 'timing'"),
        ({key: value for key, value in content.items() if key != "num_probes"}, "damaged.*num_probes"),
    ):
        with pytest.raises(BrokenModel, match=message):
            ExportedAdapter.from_json(broken)
