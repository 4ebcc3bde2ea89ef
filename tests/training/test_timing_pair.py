"""The timing pair alone, on a tiny model and turns whose ends are in their words."""

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import transformers

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.cli.main import main
from duologue.data.samples import Sample, write_samples
from duologue.errors import AdapterMismatch, BadData
from duologue.models.adapters import Adapter
from duologue.testing.tiny_models import tiny_lora, tiny_model, tiny_rows
from duologue.training.probe.timing_pair import FIT, TimingRun, fit_pair, train_timing
from duologue.training.runs import fingerprint_of
from duologue.types import InputState
from scripted import CHATML
from tiny_tokenizers import bytelevel

torch.set_num_threads(1)

STATES = tuple(InputState)


@pytest.fixture(scope="module")
def tokenizer() -> HfTokenizer:
    made = bytelevel(["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")
    made.wrapped.chat_template = CHATML
    return HfTokenizer(made.wrapped)


@pytest.fixture
def model(tokenizer: HfTokenizer) -> transformers.PreTrainedModel:
    return tiny_model("llama", vocab_size=len(tokenizer.wrapped) + 4)


@pytest.fixture
def adapter(tokenizer: HfTokenizer, model: transformers.PreTrainedModel) -> Adapter:
    made = fingerprint_of(model, tokenizer)
    return Adapter("alora", STATES, tiny_rows(timing=True), tiny_lora(model), fingerprint=made, name="tiny")


def write_turns(folder: Path, *, ends: bool = True) -> Path:
    """Turns that end with "please" and those that go on after "and", besides words that are no requests."""
    for split, count in (("train", 400), ("dev", 100)):
        chance, samples = random.Random(split), []
        for _ in range(count):
            is_end = chance.random() < 0.7
            text = f"{chance.choice(('tea', 'bread', 'a taxi'))} {'please' if is_end else 'then and'}"
            samples.append(Sample(text, InputState.PROCESS, "shop", ends=is_end if ends else None))
        samples += [Sample("mhm", state, "shop") for state in STATES[1:]]
        write_samples(folder / f"{split}.jsonl", samples)
    return folder


def test_the_pair_is_fitted_and_nothing_else_is_changed(tmp_path, model, tokenizer, adapter):
    said: list[str] = []
    run = TimingRun(write_turns(tmp_path), tmp_path / "out", adapter)
    found = train_timing(run, model, tokenizer, say=said.append)
    assert found.rows is not None
    assert adapter.rows is not None
    assert found.lora is not None
    assert adapter.lora is not None
    assert np.array_equal(found.rows.states, adapter.rows.states)
    assert np.array_equal(found.rows.probes, adapter.rows.probes)
    assert found.lora.layers.keys() == adapter.lora.layers.keys()
    assert found.facts["timing"]["auc"] > 0.95
    assert found.facts[FIT]["loss"]["now"] < found.facts[FIT]["loss"]["before"]
    assert any("held-out loss" in line for line in said)
    loaded = Adapter.load(tmp_path / "out")
    assert loaded.rows is not None
    assert np.allclose(loaded.rows.timing, found.rows.timing)
    assert (tmp_path / "out" / "README.md").exists()


def test_an_adapter_without_a_pair_gets_one(tmp_path, model, tokenizer, adapter):
    bare = Adapter("alora", STATES, tiny_rows(), adapter.lora, fingerprint=adapter.fingerprint, name="tiny")
    found = train_timing(TimingRun(write_turns(tmp_path), tmp_path / "out", bare), model, tokenizer)
    assert found.has_timing
    assert found.facts["timing"]["auc"] > 0.95


def test_the_pull_keeps_the_pair_near_to_where_it_was():
    numbers = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 8, generator=numbers)
    ends = (hidden[:, 0] > 0).long()
    start, weights = torch.zeros(2, 8), torch.ones(300)
    weak, strong = (fit_pair(hidden, ends, weights, start, strength) for strength in (0.001, 10.0))
    assert weak.norm() > 10 * strong.norm() > 0
    assert ((hidden @ weak.T).argmax(1) == ends).float().mean() > 0.95
    assert torch.allclose(weak[0], -weak[1])


def test_what_cannot_be_fitted_is_refused(tmp_path, model, tokenizer, adapter):
    folder = write_turns(tmp_path, ends=False)
    with pytest.raises(BadData, match="some end a turn and some do not"):
        train_timing(TimingRun(folder, tmp_path / "out", adapter), model, tokenizer)
    other = tiny_model("llama", vocab_size=len(tokenizer.wrapped) + 5)
    with pytest.raises(AdapterMismatch):
        train_timing(TimingRun(write_turns(tmp_path), tmp_path / "out", adapter), other, tokenizer)


def test_options_of_other_recipes_are_refused(tmp_path, capsys):
    write_turns(tmp_path)
    assert main(["train", "timing", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--epochs", "2"]) == 2
    assert "does not take --epochs" in capsys.readouterr().err
