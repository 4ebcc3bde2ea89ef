"""`full` and `lora` on tiny models: layouts, losses, whole runs, and results that load."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
import transformers

from duologue.cli.main import main
from duologue.core.backend import Extend
from duologue.data.samples import Sample, read_samples, write_samples
from duologue.errors import BadData, EngineError, UsageError
from duologue.models.adapters import Adapter
from duologue.models.model import load
from duologue.testing.tiny_models import tiny_model
from duologue.text.template import Template
from duologue.training.finetune.duplex_model import DuplexModel
from duologue.training.finetune.examples import Batch, Example, lay_out
from duologue.training.finetune.run import Finetuning, Validation, finetune
from duologue.training.recipes import FINETUNE_RECIPES, FinetuneSettings
from duologue.training.runs import plot
from duologue.training.tensors import state_losses
from duologue.types import InputState, Role, Turn
from scripted import ByteTokenizer
from tiny_chat import tiny_chat

STATES = tuple(InputState)
PROCESS, INCOMPLETE, IGNORE, STOP = STATES
TALK = (
    Turn(Role.USER, "is it far"),
    Turn(Role.ASSISTANT, "Two hours by train."),
    Turn(Role.USER, "and by car"),
    Turn(Role.ASSISTANT, "One hour, if"),
)
FULL = FinetuneSettings(
    kind="full", lr=5e-3, rows_lr=3e-2, batch=16, steps=60, max_length=200, precision="f32", eval_every=20
)
LORA = replace(FULL, kind="lora", lr=1e-2, lora_rank=4, lora_alpha=8)


# Layouts


def test_the_response_does_not_see_the_probe() -> None:
    template = Template.from_tokenizer(ByteTokenizer())
    sample = Sample("how far", PROCESS, "own", context=TALK, response="Ninety miles.")
    (example,), shortened = lay_out([sample], template, 500)
    turns = [*TALK, Turn(Role.USER, "how far")]
    assert example.heard == tuple(template.render(turns))
    end = template.close[:1]
    assert example.reply == (*example.heard, *template.header, *template.answer("Ninety miles."), *end)
    assert example.num_response == len("Ninety miles.") + 1
    assert set(end) <= template.stop_tokens
    assert (shortened.contexts, shortened.texts, shortened.responses) == (0, 0, 0)


def test_only_what_is_processed_is_answered() -> None:
    template = Template.from_tokenizer(ByteTokenizer())
    samples = [Sample("far", state, "own", response="Yes.") for state in STATES]
    examples, _ = lay_out([*samples, Sample("far", PROCESS, "own")], template, 500)
    assert [bool(example.reply) for example in examples] == [state is PROCESS for state in STATES] + [False]


def test_what_is_too_long_loses_its_oldest_turns_and_is_counted() -> None:
    template = Template.from_tokenizer(ByteTokenizer())
    asked = Turn(Role.USER, "how far")
    whole, newest, alone = (len(template.render([*turns, asked])) for turns in (TALK, TALK[2:], ()))
    sample = Sample("how far", PROCESS, "own", context=TALK)

    def heard(max_length: int) -> tuple[tuple[int, ...], int]:
        (example,), shortened = lay_out([sample], template, max_length)
        assert example.length <= max_length
        assert (shortened.texts, shortened.responses) == (0, 0)
        return example.heard, shortened.contexts

    assert heard(whole + 1) == (tuple(template.render([*TALK, asked])), 0)
    assert heard(whole) == (tuple(template.render([*TALK[2:], asked])), 1)
    assert heard(newest) == (tuple(template.render([asked])), 1)
    assert len(heard(alone + 1)[0]) == alone


def test_words_and_responses_that_are_too_long_are_cut_and_counted() -> None:
    template = Template.from_tokenizer(ByteTokenizer())
    words = " ".join(["over", "and"] * 40)
    response = "word " * 60
    samples = [Sample(words, IGNORE, "own", context=TALK), Sample("what", PROCESS, "own", response=response)]
    (cut, answered), shortened = lay_out(samples, template, 100)
    assert (shortened.contexts, shortened.texts, shortened.responses) == (0, 1, 1)
    assert 90 < cut.length <= 100
    assert words.endswith(template.tokenizer.decode(cut.heard[-70:]))
    assert template.tokenizer.decode(cut.heard).split("user\n")[1].startswith(("over", "and"))
    assert len(answered.reply) == 100
    assert answered.reply[-1] not in template.stop_tokens, "the end was not reached"
    with pytest.raises(UsageError, match="max_length"):
        lay_out(samples, template, 12)


# Losses and steps


def examples(num: int, seed: int) -> list[Example]:
    """The last token tells the state; what is processed is answered with its own first token, several times."""
    rng = random.Random(seed)
    made = []
    for number in range(num):
        label = number % 4
        heard = (*(rng.randrange(4, 60) for _ in range(rng.randint(2, 12))), 100 + 40 * label)
        said = (heard[0],) * rng.randint(2, 5)
        is_answered = STATES[label] is PROCESS
        reply, num_said = ((*heard, 90, *said), len(said)) if is_answered else ((), 0)
        made.append(Example(Sample("…", STATES[label], "toy"), heard, reply, num_said))
    return made


def duplex(architecture: str, settings: FinetuneSettings) -> DuplexModel:
    torch.manual_seed(0)
    return DuplexModel(tiny_model(architecture), 4, range(10, 20), settings)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "gemma2", "minicpm3", "mamba"])
def test_losses_are_those_of_one_sequence_at_a_time(architecture: str) -> None:
    model = duplex(architecture, FULL).eval()
    chosen = examples(8, seed=3)
    batch = Batch.of(chosen, model.vocab_size, STATES, 0.5)
    logits, response_loss = model(batch)
    expected = 0.0
    embed = model.base.get_input_embeddings()
    for row, example in enumerate(chosen):
        fed = torch.cat([embed(torch.tensor([example.heard])), model.probes[None]], 1)
        hidden = model.base.base_model(inputs_embeds=fed).last_hidden_state[0, -1]
        torch.testing.assert_close(logits[row], hidden @ model.states.T, atol=1e-4, rtol=1e-4)
        if example.reply:
            said = model.base(torch.tensor([example.reply])).logits[0].log_softmax(-1).detach()
            start = len(example.reply) - example.num_response
            expected -= sum(float(said[i - 1, example.reply[i]]) for i in range(start, len(example.reply)))
    assert float(response_loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert state_losses(logits, batch.targets).shape == (8,)


def test_lora_is_held_to_the_base() -> None:
    model = duplex("llama", LORA).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()  # its initial value is zero
    chosen = examples(8, seed=3)
    batch = Batch.of(chosen, model.vocab_size, STATES, 0.5)
    _, divergence = model(batch)
    base, expected = tiny_model("llama"), 0.0
    for example in (example for example in chosen if example.reply):
        places = range(len(example.reply) - example.num_response - 1, len(example.reply) - 1)
        ids = torch.tensor([example.reply])
        kept, changed = (m(ids).logits[0, places].log_softmax(-1) for m in (base, model.base))
        expected += float((kept.exp() * (kept - changed)).detach().sum())
    assert float(divergence.detach()) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.1
    assert model.lora is not None
    with model.lora.disable_adapter():
        assert float(model(batch)[1].detach()) == pytest.approx(0.0, abs=1e-5)


def finetuned(
    folder: Path, settings: FinetuneSettings, *, architecture: str = "llama", stop_at: int | None = None
) -> tuple[Finetuning, list[Validation]]:
    folder.mkdir(exist_ok=True)
    run = Finetuning(
        duplex(architecture, settings), STATES, examples(240, seed=0), examples(40, seed=1), settings, folder
    )

    def progress(what: str, done: int, total: int) -> None:
        assert re.fullmatch(r"(lora|full): loss \d+\.\d{3}(, \d+\.\d % right)?", what)
        if done == stop_at:
            raise KeyboardInterrupt

    return run, run.run(progress=progress)


def weights(run: Finetuning) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.model.state_dict().items()}


def assert_close(run: Finetuning, other: Finetuning, **tolerance: float) -> None:
    theirs = weights(other)
    for name, value in weights(run).items():
        torch.testing.assert_close(value, theirs[name], **tolerance)


def assert_same_log(folder: Path, other: Path) -> None:
    """The same losses and gradients; Adam forgives a gradient that is wrong by a factor, so weights tell too little."""
    logs = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (folder, other)]
    for line, theirs in zip(*logs, strict=True):
        assert {**line, "seconds": 0} == pytest.approx({**theirs, "seconds": 0}, rel=1e-3)


@pytest.mark.parametrize("settings", [FULL, LORA], ids=["full", "lora"])
def test_accumulated_passes_are_one_large_batch(settings: FinetuneSettings, tmp_path: Path) -> None:
    # two steps suffice to reveal wrong loss weights; later ones amplify rounding
    large, _ = finetuned(tmp_path / "large", replace(settings, batch=8, steps=2))
    small, _ = finetuned(tmp_path / "small", replace(settings, batch=2, accumulation=4, steps=2))
    assert_close(large, small, atol=2e-4, rtol=1e-3)
    assert_same_log(tmp_path / "large", tmp_path / "small")


def test_two_processes_are_one_with_twice_the_passes(tmp_path: Path) -> None:
    settings = replace(FULL, batch=2, steps=2, eval_every=2)  # small enough that some passes have no response
    finetuned(tmp_path / "one", replace(settings, accumulation=2))
    code = "from test_finetune import *\nfinetuned(Path(sys.argv[1]), replace(FULL, batch=2, steps=2, eval_every=2))\n"
    script = tmp_path / "script.py"
    script.write_text("import sys\n" + code)
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, script, tmp_path / "two"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two"))
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=1e-4, rtol=1e-3)
    assert_same_log(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("settings", [FULL, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing(settings: FinetuneSettings, tmp_path: Path) -> None:
    plain, _ = finetuned(tmp_path / "plain", replace(settings, steps=2))
    spared, _ = finetuned(tmp_path / "spared", replace(settings, steps=2, gradient_checkpointing=True))
    assert_close(plain, spared, atol=1e-6, rtol=1e-5)


# Whole runs


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # with untied and tied output embeddings
@pytest.mark.parametrize("settings", [FULL, LORA], ids=["full", "lora"])
def test_it_learns(architecture: str, settings: FinetuneSettings, tmp_path: Path) -> None:
    run, validations = finetuned(tmp_path, settings, architecture=architecture)
    assert [validation.step for validation in validations] == [20, 40, 60]
    assert validations[-1].dev_loss < validations[0].dev_loss
    assert validations[-1].dev_accuracy > 0.8, "a quarter is chance"
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 60 + 3
    assert lines[0]["lr"] == settings.lr
    changed = {name for name, value in tiny_model(architecture).state_dict().items() if not _is_in(run, name, value)}
    assert bool(changed) == (settings.kind == "full"), "only `full` changes the base's own weights"


def _is_in(run: Finetuning, name: str, value: torch.Tensor) -> bool:
    found = {key.replace(".base_layer", ""): tensor for key, tensor in run.model.base.state_dict().items()}
    return torch.equal(found[name], value)


@pytest.mark.parametrize("settings", [FULL, LORA], ids=["full", "lora"])
def test_a_killed_run_goes_on_to_the_same_bits(settings: FinetuneSettings, tmp_path: Path) -> None:
    settings = replace(settings, schedule="linear", warmup=0.1, steps=30, eval_every=10)
    # with dropout, so that random numbers must continue as well
    whole, validations = finetuned(
        tmp_path / "whole", settings, architecture="gpt2" if settings.kind == "full" else "llama"
    )
    with pytest.raises(KeyboardInterrupt):
        finetuned(tmp_path / "cut", settings, architecture=_same(whole), stop_at=17)
    resumed, again = finetuned(tmp_path / "cut", settings, architecture=_same(whole))
    assert again == validations
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole" / "log.jsonl", tmp_path / "cut" / "log.jsonl")
    ]
    assert logs[0] == logs[1]
    with pytest.raises(UsageError, match="another lr"):
        finetuned(tmp_path / "cut", replace(settings, lr=1e-6), architecture=_same(whole))


def _same(run: Finetuning) -> str:
    return str(run.model.base.config.model_type)


def test_patience_ends_a_run_with_its_best_weights(tmp_path: Path) -> None:
    settings = replace(FULL, lr=0.05, steps=400, eval_every=5, patience=2)  # a rate so large that the loss rises
    run, validations = finetuned(tmp_path, settings)
    losses = [validation.dev_loss for validation in validations]
    assert len(losses) < 80
    assert losses.index(min(losses)) == len(losses) - 3
    p = run.score(examples(40, seed=1))
    right = np.mean([STATES[c] is e.sample.state for c, e in zip(p.argmax(1), examples(40, seed=1), strict=True)])
    assert right == pytest.approx(validations[-3].dev_accuracy)


def test_a_loss_that_explodes_is_said(tmp_path: Path) -> None:
    model = duplex("llama", FULL)
    with torch.no_grad():
        model.states.fill_(float("inf"))
    run = Finetuning(model, STATES, examples(8, seed=0), examples(8, seed=1), FULL, tmp_path)
    with pytest.raises(EngineError, match="smaller lr"):
        run.run()


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.partial").mkdir()
    with pytest.raises(UsageError, match="free some space"):
        finetuned(tmp_path, replace(FULL, steps=1))


def test_the_rate_follows_its_schedule() -> None:
    audio = FINETUNE_RECIPES["lora"]
    assert [audio.rate(step, 100) for step in (10, 55, 99)] == pytest.approx([1.0, 0.5, 1 / 90])
    assert 0 < audio.rate(0, 100) < audio.rate(9, 100) < 1
    assert {FINETUNE_RECIPES["full"].rate(step, 100) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    "wrong", [{"steps": None}, {"epochs": 2}, {"batch": 0}, {"lr": -1.0}, {"warmup": 1.0}, {"patience": 0}]
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(FULL, **wrong)  # type: ignore[arg-type]


# From a folder of samples to a model that decides

_THINGS = ("kettle", "lamp", "boat", "ladder", "piano", "carpet", "drum", "tent", "mirror", "shovel")
_WORDS: dict[InputState, str] = {
    PROCESS: "where is the {} now",
    INCOMPLETE: "where is the {} of",
    IGNORE: "they sold the {} then",
    STOP: "no more {} please stop",
}


def write_data(folder: Path, **changes: str) -> Path:
    """A few dozen lines, some of them over an answer."""
    for part, things in (("train", _THINGS[:8]), ("dev", _THINGS[8:])):
        samples = [
            Sample(words.format(thing), state, "own", response="In the hall." if state is PROCESS else "")
            for thing in things
            for state, words in _WORDS.items()
        ]
        inside = [replace(sample, context=TALK, speaking=True) for sample in samples[::2]]
        write_samples(folder / f"{part}.jsonl", [replace(s, **changes) for s in (*samples, *inside)])  # type: ignore
    return folder


def tied(*, is_tied: bool = True) -> tuple[transformers.PreTrainedModel, "object"]:
    return tiny_chat(padding=3, tie_word_embeddings=is_tied)


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("settings", [FULL, LORA], ids=["full", "lora"])
def test_what_is_written_loads_and_decides_as_in_training(
    settings: FinetuneSettings, is_tied: bool, tmp_path: Path
) -> None:
    said: list[str] = []
    model, tokenizer = tied(is_tied=is_tied)
    spec = (write_data(tmp_path), tmp_path / "out", replace(settings, steps=30, eval_every=15))
    adapter = finetune(*spec, model, tokenizer, name="tiny", say=said.append)  # type: ignore[arg-type]
    assert "48 samples to train on" in said[0]
    assert adapter.facts["steps"] == 30
    written = {path.name for path in spec[1].iterdir()}
    assert written - {"lora", "curve.png"} == {"adapter.json", "adapter.safetensors", "model", "log.jsonl"}
    assert ("lora" in written) == (settings.kind == "lora")

    loaded = load(str(spec[1] / "model"), backend="torch", adapter=spec[1], weights="f32")
    torch.manual_seed(0)
    plain, _ = tied(is_tied=is_tied)
    samples = [Sample("where is the tent now", PROCESS, "own"), Sample("the lamp of", IGNORE, "own", context=TALK)]
    try:
        for sample in samples:
            ids = loaded.template.render([*sample.context, Turn(Role.USER, sample.text)])
            p = loaded.backend.forward(
                [Extend(loaded.backend.fork(None), (*ids, *loaded.probe.tokens), watch=loaded.probe.groups)]
            )[0].p[0]
            assert p == pytest.approx(_by_hand(spec[1], ids), abs=1e-4)
    finally:
        loaded.close()
    changed = transformers.AutoModelForCausalLM.from_pretrained(spec[1] / "model", dtype=torch.float32).eval()
    assert (changed.lm_head.weight is changed.model.embed_tokens.weight) == is_tied
    if settings.kind == "lora":
        from peft import PeftModel

        unmerged = PeftModel.from_pretrained(plain.eval(), spec[1] / "lora")
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        torch.testing.assert_close(unmerged(ids).logits, changed(ids).logits, atol=1e-4, rtol=1e-3)


def _by_hand(folder: Path, ids: tuple[int, ...]) -> list[float]:
    rows = Adapter.load(folder).rows
    assert rows is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    fed = torch.cat([model.model.embed_tokens(torch.tensor([ids])), torch.from_numpy(rows.probes)[None]], 1)
    with torch.inference_mode():
        hidden = model.model(inputs_embeds=fed).last_hidden_state[0, -1]
    found: list[float] = (torch.from_numpy(rows.states) @ hidden).softmax(-1).tolist()
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: (data / "dev.jsonl").unlink(), "dev.jsonl"),
        (lambda data: (data / "dev.jsonl").write_text(""), "no samples"),
        (lambda data: write_data(data, state=IGNORE), "train.jsonl has no sample of process"),
        (lambda data: write_data(data, response=""), "response_weight=0"),
        (lambda data: (data / "train.jsonl").write_text('{"text": "a"}\n'), "line 1"),
    ],
)
def test_bad_data_is_explained(change: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    change(write_data(tmp_path))
    model, tokenizer = tied()
    with pytest.raises(UsageError, match=message):
        finetune(tmp_path, tmp_path / "out", FULL, model, tokenizer, name="tiny")  # type: ignore


def test_a_set_without_stop_makes_an_adapter_without_it(tmp_path: Path) -> None:
    """As the mix of the paper is."""
    write_data(tmp_path)
    for path in (tmp_path / "train.jsonl", tmp_path / "dev.jsonl"):
        write_samples(path, [sample for sample in list(read_samples(path)) if sample.state is not STOP])
    model, tokenizer = tied()
    spec = (tmp_path, tmp_path / "out", replace(FULL, steps=1))
    adapter = finetune(*spec, model, tokenizer, name="tiny", say=lambda line: None)  # type: ignore[arg-type]
    assert adapter.states == (PROCESS, INCOMPLETE, IGNORE)


def test_sequences_longer_than_the_model_takes_are_refused(tmp_path: Path) -> None:
    model, tokenizer = tied()
    spec = (write_data(tmp_path), tmp_path / "out", replace(FULL, max_length=2049))
    with pytest.raises(UsageError, match="2048"):
        finetune(*spec, model, tokenizer, name="tiny")  # type: ignore[arg-type]


def test_states_can_be_trained_alone(tmp_path: Path) -> None:
    model, tokenizer = tied()
    spec = (write_data(tmp_path, response=""), tmp_path / "out", replace(FULL, steps=2, response_weight=0.0))
    adapter = finetune(*spec, model, tokenizer, name="tiny", say=lambda line: None)  # type: ignore[arg-type]
    assert adapter.facts["responses"] == 0


@pytest.mark.parametrize("settings", [FULL, LORA], ids=["full", "lora"])
def test_bf16_computes_in_it_and_is_written_so(settings: FinetuneSettings, tmp_path: Path) -> None:
    model, tokenizer = tied()
    spec = (write_data(tmp_path), tmp_path / "out", replace(settings, steps=2, precision="bf16"))
    finetune(*spec, model, tokenizer, name="tiny", say=lambda line: None)  # type: ignore[arg-type]
    assert json.loads((spec[1] / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    logs = [json.loads(line) for line in (spec[1] / "log.jsonl").read_text().splitlines()]
    model, tokenizer = tied()
    precise = (tmp_path, tmp_path / "f32", replace(settings, steps=2))
    finetune(*precise, model, tokenizer, name="tiny", say=lambda line: None)  # type: ignore[arg-type]
    expected = [json.loads(line) for line in (precise[1] / "log.jsonl").read_text().splitlines()]
    assert logs[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.05)
    assert logs[0]["loss"] != expected[0]["loss"]


@pytest.mark.parametrize("recipe", ["full", "lora"])
def test_the_command_writes_a_model_and_its_adapter(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = tied()
    model.save_pretrained(tmp_path / "base")
    tokenizer.wrapped.save_pretrained(tmp_path / "base")  # type: ignore[attr-defined]
    out = tmp_path / "out"
    where = ["--model", str(tmp_path / "base"), "--data", str(write_data(tmp_path)), "--out", str(out)]
    assert main(["train", recipe, *where, "--steps", "2", "--max-length", "200", "--dtype", "f32"]) == 0
    assert Adapter.load(out).facts["settings"]["kind"] == recipe
    assert (out / "model" / "config.json").exists()
    assert f"--model {out / 'model'} --adapter {out}" in capsys.readouterr().out
    assert main(["train", recipe, *where, "--probes", "2"]) != 0
    assert f"recipe {recipe}" in capsys.readouterr().err


# The loss curve


def test_a_log_becomes_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n{"step": 2, "dev_loss": 2.1, "dev_accuracy": 1}\n'
    )
    plot(log, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    log.write_text('{"step": 1, "loss": "much"}\n')
    with pytest.raises(BadData, match="line 1"):
        plot(log, tmp_path / "curve.png")
    log.write_text('{"epoch": 1}\n')
    with pytest.raises(BadData, match="nothing to draw"):
        plot(log, tmp_path / "curve.png")
