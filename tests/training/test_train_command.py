"""`duologue data build` and `duologue train`, from sources to an adapter folder, on a tiny model in a folder."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import transformers

from duologue.cli.main import main, parser
from duologue.errors import AdapterMismatch, BadData, BrokenModel, ModelNotFound, UsageError
from duologue.models.adapters import Adapter
from duologue.models.model import load
from duologue.training.probe.training import ProbeTraining
from duologue.types import InputState
from lines import write_sources
from tiny_chat import tiny_chat_folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_folder(tmp_path_factory.mktemp("model"), padding=4, hidden_size=16, intermediate_size=24)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    sources, out = write_sources(tmp_path_factory.mktemp("sources")), tmp_path_factory.mktemp("data")
    unseen = ("--unseen", "desk", "market", "icsi_meeting_acts", "disfl_qa")
    small = ("--samples", 120, "--dev", 50, "--test", 9, "--cuts-by", model_folder)
    assert run("data", "build", "duologue", "--sources", sources, "--out", out, *small, *unseen) == 0
    return out


def run(*arguments: object) -> int:
    args = parser().parse_args(list(map(str, arguments)))
    return int(args.run(args))


SMALL = ("--epochs", 2, "--dtype", "f32", "--allow-worse")  # too few steps to learn anything
TARGETS = ("--targets", "q_proj", "down_proj", "--rank", 2)


@pytest.mark.parametrize("kind", ["rows", "alora"])
def test_sources_become_samples_and_samples_an_adapter(
    kind: str, model_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = TARGETS if kind == "alora" else ()
    assert run("train", kind, "--model", model_folder, "--data", data, "--out", tmp_path, *SMALL, *options) == 0
    adapter = Adapter.load(tmp_path)
    assert adapter.kind == kind
    assert adapter.states == tuple(InputState)
    assert adapter.rows is not None
    assert adapter.rows.probes.shape == (1, 16)
    assert (adapter.lora is not None) == (kind == "alora")
    assert adapter.lora is None or (len(adapter.lora.layers), adapter.lora.rank) == (4, 2)
    assert adapter.fingerprint is not None
    assert adapter.fingerprint.hidden_size == 16
    assert adapter.facts["data"]["unseen"] == ["desk", "disfl_qa", "icsi_meeting_acts", "market"]
    assert set(adapter.facts["sources"]).isdisjoint(adapter.facts["data"]["unseen"])
    names = sorted(path.name for path in tmp_path.iterdir())
    folders = [] if adapter.cascade is None else ["cascade"]
    assert names == ["README.md", "adapter.json", "adapter.safetensors", *folders, "training.jsonl", "training.png"]
    out = capsys.readouterr().out
    assert ("held out, cascade" in out) == ("cascade" in adapter.facts) == (kind == "alora")
    assert "120 samples to train on" in out
    assert "epoch 2" in out
    assert "held out, over an answer" in out
    model = load(
        str(model_folder), backend="torch", adapter=tmp_path, weights="f32", context_length=512, allow_worse=True
    )
    assert model.adapter.kind == kind


def test_samples_that_say_whether_the_turn_ends_give_an_adapter_a_timing_pair(
    model_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    knowing, silent = tmp_path / "knowing", tmp_path / "silent"
    for folder, ends in ((knowing, (None, True, False)), (silent, (None,))):
        folder.mkdir()
        for name in ("train", "dev"):
            rows = map(json.loads, (data / f"{name}.jsonl").read_text().splitlines())
            said = [{**row, "ends": ends[number % len(ends)]} for number, row in enumerate(rows)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    common = ("train", "rows", "--model", model_folder, *SMALL, "--out")
    assert run(*common, tmp_path / "timed", "--data", knowing) == 0
    adapter = Adapter.load(tmp_path / "timed")
    assert adapter.has_timing
    facts = adapter.facts["timing"]
    assert 0 < facts["n"] < 2 * 50 / 3, "whole requests"
    assert f"held out, timing (n {facts['n']}): AUC {100 * facts['auc']:.1f} %" in capsys.readouterr().out
    taught = ("--start", tmp_path / "timed", "--teacher", tmp_path / "timed")
    assert run(*common, tmp_path / "plain", "--data", silent, *taught) == 0
    assert not Adapter.load(tmp_path / "plain").has_timing
    assert run(*common, tmp_path / "again", "--data", knowing, "--teacher", tmp_path / "plain") == 0
    assert Adapter.load(tmp_path / "again").has_timing


def test_training_can_begin_from_an_adapter_and_learn_from_another(
    model_folder: Path, data: Path, tmp_path: Path
) -> None:
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    common = ("--model", model_folder, "--data", data, *SMALL)
    assert run("train", "alora", *common, "--out", first, *TARGETS) == 0
    # so small a rate that nothing moves: what comes out is what it began from
    still = ("--start", first, "--lr", 1e-12, "--lora-lr", 1e-12)
    assert run("train", "alora", *common, "--out", second, *TARGETS, *still) == 0
    before, after = Adapter.load(first), Adapter.load(second)
    assert before.rows is not None
    assert before.lora is not None
    assert after.rows is not None
    assert after.lora is not None
    scale = np.abs(after.rows.states).max() / np.abs(before.rows.states).max()  # a temperature, fitted anew
    assert after.rows.states == pytest.approx(scale * before.rows.states, abs=1e-5)
    for path, pair in before.lora.layers.items():
        assert after.lora.layers[path].b == pytest.approx(pair.b, abs=1e-3)
    with pytest.raises(AdapterMismatch, match="--probes"):
        run("train", "rows", *common, "--out", third, "--start", first, "--probes", 2)
    assert run("train", "rows", *common, "--out", third, "--teacher", first) == 0
    assert Adapter.load(third).facts["teacher"] == "alora"
    with pytest.raises(UsageError, match="for rows"):
        run("train", "alora", *common, "--out", tmp_path / "fourth", "--teacher", first)
    with pytest.raises(UsageError, match="holds an adapter of kind rows"):
        run("train", "alora", *common, "--out", third)


def test_rows_become_the_cascade_of_an_adapter_that_exists(
    model_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", model_folder, "--data", data, *SMALL)
    out = tmp_path / "out"
    assert run("train", "alora", *common, "--out", out, *TARGETS, "--no-cascade", "--probes", 2) == 0
    assert (Adapter.load(out).cascade, "cascade" in Adapter.load(out).facts) == (None, False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert run("train", "rows", *common, "--into", out) == 0
    adapter = Adapter.load(out)
    facts = adapter.facts["cascade"]
    assert f"held out, cascade (limit {facts['limit']:g})" in capsys.readouterr().out
    assert adapter.cascade is not None
    assert (adapter.cascade_limit, adapter.cascade.facts["teacher"]) == (facts["limit"], "alora")
    assert adapter.rows is not None
    assert adapter.cascade.rows is not None
    assert adapter.cascade.rows.shapes == adapter.rows.shapes
    assert {key: value for key, value in adapter.facts.items() if key != "cascade"} == json.loads(
        before["adapter.json"]
    )["training"]
    for name in ("adapter.safetensors", "training.jsonl", "training.png"):
        assert (out / name).read_bytes() == before[name]
    assert {path.name for path in (out / "cascade").iterdir()} == before.keys() - {"README.md"}
    assert "rows of a cascade" in (out / "README.md").read_text()
    (out / "cascade" / "adapter.json").unlink()
    with pytest.raises(AdapterMismatch, match=f"train rows --into {out}"):
        Adapter.load(out)
    assert run("train", "rows", *common, "--into", out) == 0, "a folder without these rows gets new ones"
    assert Adapter.load(out).cascade_limit == facts["limit"]


def test_a_cascade_needs_an_adapter_with_a_lora_and_samples_that_suit_it(
    model_folder: Path, data: Path, tmp_path: Path
) -> None:
    common = ("--model", model_folder, "--data", data, *SMALL)
    assert run("train", "rows", *common, "--out", tmp_path / "rows") == 0
    with pytest.raises(UsageError, match="kind rows; only alora"):
        run("train", "rows", *common, "--into", tmp_path / "rows")
    for options, complaint in (
        (("rows", "--out", tmp_path, "--into", tmp_path), "give --out"),
        (("rows",), "give --out"),
        (("alora", "--into", tmp_path / "rows"), "alora does not take --into"),
        (("rows", "--out", tmp_path, "--no-cascade"), "rows does not take --no-cascade"),
        (("rows", "--into", tmp_path / "rows", "--probes", 2), "does not take --probes"),
        (("rows", "--into", tmp_path / "rows", "--teacher", tmp_path / "rows"), "does not take --teacher"),
        (("lora", "--into", tmp_path / "rows"), "lora does not take --into"),
    ):
        with pytest.raises(UsageError, match=complaint):
            run("train", *options, *common)


def test_what_is_longer_than_the_model_takes_is_shortened(
    model_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"text": "word " * 3000 + "end", "state": "ignore", "source": "own"}
    for name in ("train", "dev"):
        lines = [*(data / f"{name}.jsonl").read_text().splitlines()[:40], json.dumps(row)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    assert run("train", "rows", "--model", model_folder, "--data", tmp_path, "--out", out, *SMALL) == 0
    said = capsys.readouterr().out
    assert (
        "longer than the 2048 tokens of this model: in training 0 lost their oldest turns, 1 their first words" in said
    )


def test_held_out_samples_keep_to_the_memory(
    model_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """50 samples of some 40 tokens, of 64 float32 numbers each (two layers, keys and values of 16)."""
    command = ("train", "rows", "--model", model_folder, "--data", data, "--out", tmp_path, *SMALL)
    assert run(*command, "--memory-gb", 0.0008) == 0
    said = capsys.readouterr().out
    first = re.search(r"only the first (\d+) held-out samples are used", said)
    assert first is not None
    assert 4 < int(first[1]) < 50
    places = Adapter.load(tmp_path).facts["dev"]
    assert places["idle"]["n"] + places["over_an_answer"]["n"] == 50, "thresholds come from all"


def test_bad_input_is_explained(model_folder: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="duologue data build"):
        run("train", "rows", "--model", model_folder, "--data", tmp_path / "nowhere", "--out", tmp_path)
    with pytest.raises(UsageError, match=r"train\.jsonl"):
        run("train", "rows", "--model", model_folder, "--data", tmp_path, "--out", tmp_path / "out")
    with pytest.raises(UsageError, match="rows does not take --rank"):
        run("train", "rows", "--model", model_folder, "--data", data, "--out", tmp_path, "--rank", 4)
    with pytest.raises(UsageError, match="--memory-gb"):
        run("train", "rows", "--model", model_folder, "--data", data, "--out", tmp_path, "--memory-gb", 1e-7)
    for text, complaint in (("", "no samples"), ('{"text": "a", "source": "b"}\n', "line 1: .*state")):
        broken = tmp_path / "broken_data"
        broken.mkdir(exist_ok=True)
        (broken / "train.jsonl").write_text(text)
        with pytest.raises(BadData, match=complaint):
            run("train", "rows", "--model", model_folder, "--data", broken, "--out", tmp_path / "out")
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    for name, left_out in (("train", "ignore"), ("dev", "stop")):
        for part in ("train", "dev"):
            kept = [row for row in rows if part != name or row["state"] != left_out]
            (broken / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        with pytest.raises(BadData, match=rf"{name}\.jsonl has no sample of {left_out}"):
            run("train", "rows", "--model", model_folder, "--data", broken, "--out", tmp_path / "out")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(BrokenModel, match="broken"):
        run("train", "rows", "--model", broken, "--data", data, "--out", tmp_path / "out")
    with pytest.raises(BadData, match="queries"):
        run("data", "build", "duologue", "--sources", tmp_path, "--out", tmp_path / "samples", "--cuts-by", "rules")
    with pytest.raises(UsageError, match="not a folder"):
        run("data", "build", "paper", "--sources", tmp_path / "nowhere", "--out", tmp_path / "samples")
    with pytest.raises(UsageError, match=r"--unseen dessk: no such source; the folder has .*desk"):
        run("data", "build", "paper", "--sources", write_sources(tmp_path), "--out", tmp_path, "--unseen", "dessk")
    with pytest.raises(UsageError, match="must be given together"):
        run("data", "build", "paper", "--sources", tmp_path, "--out", tmp_path, "--judge-url", "http://localhost:1/v1")


def test_a_run_that_is_stopped_says_how_it_goes_on_and_where(
    model_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("train", "rows", "--model", model_folder, "--data", data, "--out", tmp_path, *SMALL)
    with monkeypatch.context() as patch:
        epoch = ProbeTraining._train_epoch

        def interrupted(training: ProbeTraining, number: int, *rest: Any) -> float:
            if number == 1:
                raise KeyboardInterrupt
            return epoch(training, number, *rest)

        patch.setattr(ProbeTraining, "_train_epoch", interrupted)
        assert main([str(part) for part in command]) == 130
    assert "Stopped. To go on, repeat the command." in capsys.readouterr().out
    assert run(*command) == 0
    assert "continuing after epoch 1\n" in capsys.readouterr().out


def test_without_a_number_of_samples_a_small_corpus_gives_what_it_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, out = write_sources(tmp_path / "sources"), tmp_path / "samples"
    assert run("data", "build", "paper", "--sources", sources, "--out", out, "--test", 0, "--dev", 20) == 0
    text = capsys.readouterr().out
    said = re.search(r"give only (\d+) different samples for train\.jsonl, not the recipe's 10000", text)
    assert said is not None
    number = len((out / "train.jsonl").read_text().splitlines())
    assert int(said[1]) == number > 20
    assert text.startswith(f"train.jsonl: {number} samples (process ")
    assert f"{out / 'report.md'} says more" in text
    assert len(text.splitlines()) < 8, "not the whole report"


def test_the_model_that_judges_cuts_can_be_pinned(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: str, **options: object) -> None:
        raise OSError(f"asked for {folder}, {options['revision']}")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    build = ("data", "build", "duologue", "--sources", write_sources(tmp_path / "sources"), "--out", tmp_path / "out")
    with pytest.raises(ModelNotFound, match="asked for owner/model, 1a2b"):
        run(*build, "--cuts-by", "owner/model", "--cuts-by-revision", "1a2b")
    with pytest.raises(UsageError, match="only downloads from the hub"):
        run(*build, "--cuts-by", model_folder, "--cuts-by-revision", "1a2b")
