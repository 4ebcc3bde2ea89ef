"""`duologue train` from sources to an adapter folder, on a tiny model in a folder."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

import transformers

from duologue.adapters import Adapter
from duologue.cli import train as command
from duologue.errors import BadData, BrokenModel, UsageError
from duologue.types import InputState
from lines import write_sources
from scripted import CHATML
from tiny_tokenizers import bytelevel


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = bytelevel(["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>").wrapped
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + 4,  # padded, as many are
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"))


def train(*arguments: object) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["train", "rows", *map(str, arguments)])
    return int(args.run(args))


UNSEEN = ("--unseen", "desk", "market", "icsi_meeting_acts", "disfl_qa")
SMALL = ("--samples", 120, "--epochs", 2, "--test", 6, "--dtype", "f32", *UNSEEN)


def test_a_folder_of_sources_becomes_an_adapter(
    model_folder: Path, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--model", model_folder, "--sources", sources, "--out", tmp_path, *SMALL) == 0
    adapter = Adapter.load(tmp_path)
    assert adapter.states == tuple(InputState)
    assert adapter.rows is not None
    assert adapter.rows.probes.shape == (1, 16)
    assert adapter.fingerprint is not None
    assert adapter.fingerprint.hidden_size == 16
    assert adapter.facts["recipe"]["unseen"] == ["desk", "disfl_qa", "icsi_meeting_acts", "market"]
    assert set(adapter.facts["sources"]).isdisjoint(adapter.facts["recipe"]["unseen"])
    assert adapter.facts["unseen"]["over_an_answer"]["n"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]
    out = capsys.readouterr().out
    assert "120 samples to train on" in out
    assert "epoch 2" in out
    assert "process / disfl_qa / disfluent_query / over an answer" in out


def test_training_can_begin_from_an_adapter(model_folder: Path, sources: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train("--model", model_folder, "--sources", sources, "--out", first, *SMALL) == 0
    # so small a rate that nothing moves: what comes out is what it began from
    assert (
        train(
            *("--model", model_folder, "--sources", sources, "--out", second, *SMALL),
            *("--start", first, "--lr", 1e-12),
        )
        == 0
    )
    before, after = Adapter.load(first).rows, Adapter.load(second).rows
    assert before is not None
    assert after is not None
    assert after.states == pytest.approx(before.states, abs=1e-6)
    assert after.probes == pytest.approx(before.probes, abs=1e-6)
    with pytest.raises(UsageError, match="--probes"):
        train("--model", model_folder, "--sources", sources, "--out", second, *SMALL, "--start", first, "--probes", 2)


def test_too_little_memory_is_said_before_anything_is_computed(
    model_folder: Path, sources: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--memory-gb"):
        train("--model", model_folder, "--sources", sources, "--out", tmp_path, *SMALL, "--memory-gb", 0.0001)


def test_bad_input_is_explained(model_folder: Path, sources: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        train("--model", model_folder, "--sources", tmp_path / "nowhere", "--out", tmp_path)
    with pytest.raises(BadData, match="queries"):
        train("--model", model_folder, "--sources", tmp_path, "--out", tmp_path / "out")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(BrokenModel, match="broken"):
        train("--model", broken, "--sources", sources, "--out", tmp_path / "out")
