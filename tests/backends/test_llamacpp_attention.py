"""Flash attention or standard attention: measured once on a machine."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("torch")

from duologue.backends.llamacpp import attention
from duologue.backends.llamacpp.attention import prefers_flash
from duologue.testing.tiny_models import tiny_model
from tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.llamacpp


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("DUOLOGUE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model with eight heads that share four."""
    write_tiny_gguf(tiny_model("llama"), "llama", tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


def measurements(cache: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(cache.glob("attention/*/*"))]


def test_the_faster_one_is_found_by_a_measurement_with_the_heads_of_the_model(cache: Path, file: Path) -> None:
    found = prefers_flash(file, 3)
    (kept,) = measurements(cache)
    assert found is (kept["flash_ms"] <= kept["standard_ms"])
    assert min(kept["flash_ms"], kept["standard_ms"]) > 0
    model = tiny_model("llama").config
    assert (kept["num"], kept["num_kv"]) == (model.num_attention_heads, model.num_key_value_heads)
    assert (kept["key_length"], kept["sessions"]) == (model.hidden_size // model.num_attention_heads, 3)


def test_it_is_measured_once(cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(path: Path, sessions: int) -> dict[str, float]:
        asked.append(sessions)
        return {"flash_ms": 2.0, "standard_ms": 1.0}

    monkeypatch.setattr(attention, "_measured", measured)
    assert [prefers_flash(file, sessions) for sessions in (2, 2, 3, 40, 50)] == [False] * 5
    assert asked == [2, 3, 8], "many sessions are measured as a few"


def test_heads_that_a_plain_layer_cannot_have_end_no_load(
    cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = attention._Heads(num=4, num_kv=4, key_length=24, value_length=16)
    monkeypatch.setattr(attention._Heads, "of", lambda path: heads)
    assert prefers_flash(file, 2)
    assert not measurements(cache)


def test_nothing_is_measured_for_layers_that_differ(cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention._Heads, "of", lambda path: None)
    assert prefers_flash(file, 4)
    assert not cache.exists()
