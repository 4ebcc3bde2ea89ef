"""Teaching an adapter to hear, on a tiny model and clips whose words are the same."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import transformers

from duologue.backends.torch.backend import TorchBackend
from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.cli.main import main
from duologue.data.samples import Sample, write_samples
from duologue.errors import AdapterMismatch, BadData, UsageError
from duologue.evaluation.labelled_rows import lay_out, read, with_sounds
from duologue.evaluation.scoring import score, score_timing
from duologue.hearing.clips.files import Sounds, beside, read_sounds
from duologue.models.adapters import Adapter
from duologue.models.model import Model
from duologue.testing.tiny_models import tiny_lora, tiny_model, tiny_rows
from duologue.text.template import Template
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.probe.sound import SoundRun, SoundSettings, _logits, _read, train_sound
from duologue.training.runs import fingerprint_of
from duologue.types import InputState
from scripted import CHATML
from tiny_tokenizers import bytelevel

torch.set_num_threads(1)

STATES = tuple(InputState)
LABELS = (InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE)
K, F = 4, 10
QUICK = SoundSettings(epochs=12, lr=2e-2, batch=16, hidden=8, noise=0.1)


@pytest.fixture(scope="module")
def tokenizer() -> HfTokenizer:
    made = bytelevel(["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")
    made.wrapped.chat_template = CHATML
    return HfTokenizer(made.wrapped)


def fresh(tokenizer: HfTokenizer) -> transformers.PreTrainedModel:
    """The same weights each time; no LoRA was ever put into them."""
    return tiny_model("llama", vocab_size=len(tokenizer.wrapped) + 4)


@pytest.fixture
def model(tokenizer: HfTokenizer) -> transformers.PreTrainedModel:
    return fresh(tokenizer)


@pytest.fixture(scope="module")
def adapter(tokenizer: HfTokenizer) -> Adapter:
    model = fresh(tokenizer)
    rows, lora = tiny_rows(timing=True), tiny_lora(model)
    return Adapter("alora", STATES, rows, lora, fingerprint=fingerprint_of(model, tokenizer), name="tiny")


def write_clips(folder: Path, sizes: Mapping[str, int], *, width: int = F) -> Path:
    """The state is in the first features alone: the words are drawn apart from it."""
    for split, count in sizes.items():
        chance, numbers = random.Random(split), np.random.default_rng(len(split))
        samples, features = [], numbers.normal(size=(count, K, width)).astype(np.float32)
        for index in range(count):
            state = chance.choice(LABELS)
            features[index, :, LABELS.index(state)] += 4.0
            ends = state is not InputState.INCOMPLETE
            text = chance.choice(("what is it", "and then the", "so", "it is late"))
            samples.append(Sample(text, state, "toy", "whole" if ends else "pause", ends=ends))
        write_samples(folder / f"{split}.jsonl", samples)
        Sounds(features, np.zeros((count, 3), np.float32), "tiny").save(beside(folder / f"{split}.jsonl"))
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), {"train": 96, "dev": 48, "test": 24})


@pytest.fixture(scope="module")
def trained(tokenizer: HfTokenizer, adapter: Adapter, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    out = tmp_path_factory.mktemp("adapter")
    train_sound(SoundRun(clips, out, adapter, QUICK), fresh(tokenizer), tokenizer, say=lambda line: None)
    return Adapter.load(out)


def opened(model: transformers.PreTrainedModel, tokenizer: HfTokenizer, adapter: Adapter) -> Model:
    template = Template.from_tokenizer(tokenizer)
    backend = TorchBackend(model, rows=adapter.rows, lora=adapter.lora, capacity=4096)
    probe = adapter.probe_for(backend.info.vocab_size, template)
    return Model("tiny", backend, template, adapter, probe, backend.info.context_length)


def test_what_only_the_sound_tells_is_learned(trained: Adapter) -> None:
    facts = trained.facts["sound"]
    assert facts["words_alone"]["auc_incomplete"] < 0.75
    assert facts["with_sound"]["auc_incomplete"] > 0.95
    assert facts["with_sound"]["loss"] < facts["words_alone"]["loss"]
    assert facts["recogniser"] == "tiny"


def test_decisions_on_text_stay_bit_for_bit(
    model: transformers.PreTrainedModel, tokenizer: HfTokenizer, adapter: Adapter, trained: Adapter, clips: Path
) -> None:
    assert adapter.rows is not None
    assert trained.rows is not None
    assert adapter.lora is not None
    assert trained.lora is not None
    for ours, theirs in zip(
        (trained.rows.probes, trained.rows.outputs), (adapter.rows.probes, adapter.rows.outputs), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    for path, pair in adapter.lora.layers.items():
        np.testing.assert_array_equal(trained.lora.layers[path].a, pair.a)
        np.testing.assert_array_equal(trained.lora.layers[path].b, pair.b)
    rows = read(clips / "test.jsonl")
    before, after = (opened(model, tokenizer, one) for one in (adapter, trained))
    layouts = lay_out(rows, after)
    assert layouts == lay_out(rows, before)
    np.testing.assert_array_equal(score(after, layouts), score(before, layouts))
    np.testing.assert_array_equal(score_timing(after, layouts), score_timing(before, layouts))


def test_a_conversation_decides_as_training_did(
    model: transformers.PreTrainedModel, tokenizer: HfTokenizer, trained: Adapter, clips: Path
) -> None:
    rows = with_sounds(read(clips / "dev.jsonl"))
    running = opened(model, tokenizer, trained)
    layouts = lay_out(rows, running)
    assert all(len(layout.evidence) == K for layout in layouts)
    served = score(running, layouts)
    probe = ProbeModel.from_adapter(trained, fresh(tokenizer))
    _, dev, _ = _read(SoundRun(clips, clips, trained), probe, tokenizer, lambda *about: None)
    assert trained.sound is not None
    soft = torch.from_numpy(np.stack([trained.sound.rows(one) for one in dev.features.numpy()]))
    with torch.no_grad():
        everyone = list(range(len(rows.samples)))
        logits = _logits(probe, dev.prefixes.past(everyone), soft)
    np.testing.assert_allclose(served, logits[:, : len(STATES)].softmax(-1).numpy(), atol=1e-4)
    assert np.abs(served - score(running, lay_out(read(clips / "dev.jsonl"), running))).max() > 0.1, "sound matters"
    assert running.backend.usage().num_seqs == 0


def test_training_is_the_same_again(tokenizer: HfTokenizer, adapter: Adapter, clips: Path, tmp_path: Path) -> None:
    run = SoundRun(clips, tmp_path, adapter, replace(QUICK, epochs=2))
    one, other = (train_sound(run, fresh(tokenizer), tokenizer, say=lambda line: None) for _ in range(2))
    assert one.sound is not None
    assert other.sound is not None
    np.testing.assert_array_equal(one.sound.up, other.sound.up)


def test_sounds_that_do_not_fit_are_refused(tokenizer: HfTokenizer, adapter: Adapter, tmp_path: Path) -> None:
    run = SoundRun(write_clips(tmp_path, {"train": 8, "dev": 8}), tmp_path / "out", adapter, QUICK)
    write_clips(tmp_path, {"dev": 8}, width=F + 1)
    with pytest.raises(BadData, match="different recognisers"):
        train_sound(run, fresh(tokenizer), tokenizer)
    beside(tmp_path / "dev.jsonl").unlink()
    with pytest.raises(BadData, match="build-audio"):
        train_sound(run, fresh(tokenizer), tokenizer)
    beside(tmp_path / "dev.jsonl").write_bytes(b"nothing")
    with pytest.raises(BadData, match="cannot be read"):
        train_sound(run, fresh(tokenizer), tokenizer)
    write_clips(tmp_path, {"dev": 8})
    with pytest.raises(BadData, match="8 sounds for 9 samples"):
        read_sounds(tmp_path / "dev.jsonl", 9)
    with pytest.raises(UsageError, match="do not fit into memory"):
        train_sound(replace(run, memory_gb=1e-6), fresh(tokenizer), tokenizer)
    (tmp_path / "dev.jsonl").unlink()
    with pytest.raises(UsageError, match="does not exist"):
        train_sound(run, fresh(tokenizer), tokenizer)


def test_adapters_that_cannot_hear_are_refused(
    model: transformers.PreTrainedModel, tokenizer: HfTokenizer, adapter: Adapter, clips: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no probe that could learn to hear"):
        train_sound(SoundRun(clips, tmp_path, Adapter("prompted", STATES)), model, tokenizer)
    other = replace(adapter, fingerprint=replace(adapter.fingerprint, vocab_size=5))  # type: ignore[type-var]
    with pytest.raises(AdapterMismatch, match="another model"):
        train_sound(SoundRun(clips, tmp_path, other), model, tokenizer)
    running = opened(model, tokenizer, adapter)
    assert not running.hears
    with pytest.raises(UsageError, match="hears no sound"):
        running.evidence(np.zeros((K, F), np.float32))


def test_commands_train_and_judge_by_sound(
    model: transformers.PreTrainedModel,
    tokenizer: HfTokenizer,
    adapter: Adapter,
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in (tmp_path / "model", tmp_path / "start"):
        folder.mkdir()
    model.save_pretrained(tmp_path / "model")
    tokenizer.wrapped.save_pretrained(tmp_path / "model")
    dev = {"n": 1, "recall": {}, "answer_f1": 1.0, "false_answer_rate": 0.0, "loss": 0.1, "chance": 0.2, "ece": 0.0}
    facts = {"dev": dict.fromkeys(("all", "idle", "over_an_answer"), dev)}
    replace(adapter, facts=facts).save(tmp_path / "start")
    name = ("--model", str(tmp_path / "model"))
    quick = ("--epochs", "3", "--lr", "0.02", "--batch", "16", "--dtype", "f32", "--threads", "1")
    out = str(tmp_path / "out")
    command = ["train", "alora", "--audio", "--data", str(clips), "--out", out, "--start", str(tmp_path / "start")]
    assert main([*command, *name, *quick]) == 0
    assert "with sound" in capsys.readouterr().out
    judged = ["eval", "states", str(clips / "test.jsonl"), "--adapter", out, *name, "--latencies", "2", "--json"]
    judged += ["--weights", "f32", "--backend", "torch"]
    assert main(judged) == 0
    by_words = capsys.readouterr().out
    assert main([*judged, "--audio"]) == 0
    assert capsys.readouterr().out != by_words
    assert main(["train", "rows", "--audio", "--data", str(clips), "--out", out, *name]) == 2
    assert "--audio is for alora" in capsys.readouterr().err
