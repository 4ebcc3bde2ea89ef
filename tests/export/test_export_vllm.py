# ruff: noqa: E402 - what may be missing is looked for before it is imported
"""Folders for vLLM: what is in them, and what is refused. `tests/vllm_plugin` loads them with vLLM itself."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from duologue.backends.lora import Lora, adapter_digest
from duologue.backends.vllm.plugin import ARCHITECTURES, CONFIG_KEY, OUTPUTS, PREFIX, TENSORS, ExportedAdapter
from duologue.cli.main import main
from duologue.errors import AdapterMismatch, UnsupportedModel, UsageError
from duologue.export.vllm import export_vllm
from duologue.models.adapters import Adapter, Fingerprint, prompted
from duologue.testing.tiny_models import VOCAB_SIZE, tiny_lora, tiny_model, tiny_rows
from duologue.types import InputState
from tiny_tokenizers import small_tokenizer

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
STATES = tuple(InputState)


def base(folder: Path, name: str, size: int = VOCAB_SIZE, **options: Any) -> tuple[Path, Any]:
    model = tiny_model(name)
    model.save_pretrained(folder / "base", **options)
    small_tokenizer(size).save_pretrained(folder / "base")
    return folder / "base", model


def adapter_for(model: Any, **changes: Any) -> Adapter:
    return Adapter(
        **{"kind": "alora", "states": STATES, "rows": tiny_rows(timing=True), "lora": tiny_lora(model), **changes}
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_has_the_base_and_the_adapter(tmp_path: Path, name: str) -> None:
    source, model = base(tmp_path, name)
    adapter = adapter_for(model)
    report = export_vllm(source, adapter, tmp_path / "out", dtype="float32")
    assert report.decision_error < 1e-4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [report.architecture] == [ARCHITECTURES[type(model).__name__]]
    first = VOCAB_SIZE + (name == "qwen2")  # whose tokenizer has a token of its own
    states = {state.value: first + 1 + i for i, state in enumerate(STATES)}
    digest = adapter_digest(adapter.rows, adapter.lora)
    expected = ExportedAdapter(VOCAB_SIZE, first, 1, 6, 2.0, states, (first + 5, first + 6), digest)
    assert ExportedAdapter.from_json(config[CONFIG_KEY]) == report.adapter == expected
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(list(report.added)) == list(range(first, first + 7))
    tensors = load_file(tmp_path / "out" / TENSORS)
    np.testing.assert_array_equal(tensors.pop(OUTPUTS), adapter.rows.outputs)
    assert tensors.keys() == {f"{PREFIX}{name}" for name in adapter.lora.tensors()}
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before, after = model.state_dict(), written.state_dict()
    assert before.keys() == after.keys()
    for key, matrix in before.items():
        assert torch.equal(after[key][: len(matrix)], matrix), key
    assert written.config.vocab_size == report.vocab_size == 320
    embedded = written.get_input_embeddings()(torch.tensor([first]))
    np.testing.assert_allclose(embedded.detach().numpy(), adapter.rows.probes, rtol=1e-5, atol=1e-6)


def test_rows_of_the_base_without_a_token_are_used(tmp_path: Path) -> None:
    source, model = base(tmp_path, "qwen2", size=284)
    report = export_vllm(source, adapter_for(model), tmp_path / "out", dtype="float32")
    assert (report.adapter.base_size, report.adapter.first_added, report.vocab_size) == (VOCAB_SIZE, 285, VOCAB_SIZE)


def test_a_model_of_several_files_names_the_adapter_in_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = base(tmp_path, "llama")
    save = type(model).save_pretrained
    monkeypatch.setattr(type(model), "save_pretrained", lambda self, path: save(self, path, max_shard_size="50KB"))
    export_vllm(source, adapter_for(model), tmp_path / "out", dtype="float32")
    weights = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weights.values())) > 2
    assert {name for name, file in weights.items() if file == TENSORS} == set(load_file(tmp_path / "out" / TENSORS))


def test_what_cannot_work_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    source, model = base(tmp_path, "llama")
    rows, lora = tiny_rows(timing=True), tiny_lora(model)
    other_layer = Lora({**lora.layers, "layers.0.mlp.router": next(iter(lora.layers.values()))}, 1.0)
    deep = Lora({"layers.7.self_attn.q_proj": lora.layers["layers.0.self_attn.q_proj"]}, 1.0)
    cases = [
        (adapter_for(model, kind="rows", lora=None), UsageError, "no plug-in for it; use --format hf"),
        (prompted(), UsageError, "kind prompted and has no LoRA.*duologue train alora"),
        (adapter_for(model, lora=other_layer), UnsupportedModel, r"layers\.0\.mlp\.router, and in vLLM only"),
        (adapter_for(model, lora=deep), AdapterMismatch, r"layers\.7.*does not have"),
        (adapter_for(model, fingerprint=Fingerprint(9, 9, 9, "")), AdapterMismatch, "trained for another model"),
    ]
    for adapter, error, message in cases:
        with pytest.raises(error, match=message):
            export_vllm(source, adapter, tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists()
    phi, model = base(tmp_path / "phi", "phi")
    with pytest.raises(UnsupportedModel, match="no class for PhiForCausalLM; there are LlamaForCausalLM, "):
        export_vllm(phi, adapter_for(model, lora=lora), tmp_path / "out", dtype="float32")
    export_vllm(source, adapter_for(tiny_model("llama"), rows=rows), tmp_path / "out", dtype="float32")
    with pytest.raises(UsageError, match="exists already"):
        export_vllm(source, adapter_for(tiny_model("llama")), tmp_path / "out", dtype="float32")
    with pytest.raises(UsageError, match=r"already has <\|prediction\|>"):
        export_vllm(tmp_path / "out", adapter_for(tiny_model("llama")), tmp_path / "again", dtype="float32")


def test_the_command_says_how_to_start_and_how_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, model = base(tmp_path, "qwen3")
    adapter_for(model).save(tmp_path / "adapter")
    command = ["export", "--model", str(source), "--format", "vllm", "--adapter", str(tmp_path / "adapter")]
    out = str(tmp_path / "out")
    assert main([*command, "--weights", "f32", "--out", out]) == 0
    said = capsys.readouterr().out
    assert f"vllm serve {out}" in said
    assert '"prompt": [..., 300], "max_tokens": 1' in said
    assert '"logprob_token_ids": [301, 302, 303, 304, 305, 306]' in said
    assert main([*command, "--weights", "f32", "--out", out, "--force", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["added"]["<|prediction|>"] == printed["adapter"]["first_added"] == 300
    for options, message in (
        (["--one-pass"], "does not go with --format vllm"),
        (["--weights", "Q8_0"], "not available"),
    ):
        assert main([*command, "--out", str(tmp_path / "other"), *options]) == 2
        assert message in capsys.readouterr().err


def test_vllm_finds_the_plugin() -> None:
    found = importlib.metadata.entry_points(group="vllm.general_plugins", name="duologue")
    if not found:
        pytest.skip("the package is not installed with this entry point")
    assert {entry.value for entry in found} == {"duologue.backends.vllm.plugin:register"}
