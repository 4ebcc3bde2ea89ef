"""Time division that is trained: sequences are what a session feeds, and a model learns when to be silent."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch

from duologue.backends.scripted import ScriptedBackend
from duologue.baselines.sessions import factory
from duologue.baselines.tdm import Tdm
from duologue.baselines.tdm_model import TdmModel
from duologue.cli.main import main
from duologue.core.events import Decided
from duologue.data.duplex.timeline import DuplexDialogue
from duologue.engine.engine import Engine
from duologue.errors import AdapterMismatch, BadData, UsageError
from duologue.models.model import load
from duologue.text.template import Template
from duologue.training.finetune.examples import NO_LABEL
from duologue.training.finetune.tdm_examples import Situation, TdmBatch, Window, WindowLayout, idle_tokens
from duologue.training.finetune.tdm_run import evaluate, report_lines, train_tdm
from duologue.training.recipes import TDM_RECIPES, FinetuneSettings
from duologue.types import InputState, Token
from scripted import PROBE, ByteTokenizer
from tiny_chat import tiny_chat

WAIT, ANSWER, GO_ON, YIELD, REST = Situation
SETTINGS = FinetuneSettings(
    kind="full", lr=1e-2, batch=8, steps=90, max_length=200, precision="f32", eval_every=30, schedule="linear"
)
LORA = replace(SETTINGS, kind="lora", lr=2e-3, steps=150, lora_rank=16, lora_alpha=32)


def row(
    *output: tuple[str | None, str | None], cut: tuple[int, ...] = (), traced: bool = True, id: str = "a"
) -> DuplexDialogue:
    """A dialogue; every slice of the assistant is a part, of which those with the numbers `cut` were interrupted."""
    trace: list[tuple[int, int, int] | None] = []
    for number, (user, assistant) in enumerate(output):
        trace += [user and (2 * number, 0, len(user)), assistant and (2 * number + 1, 0, len(assistant))]
    parts = tuple({"cut": True} if n % 2 and n // 2 in cut else {} for n in range(2 * len(output)))
    if not traced:
        return DuplexDialogue(id, "basic", "en", output)
    return DuplexDialogue(id, "basic", "en", output, parts=parts, trace=tuple(trace))


TALK = row(
    ("what is", None),
    ("a cat", "A cat is a"),
    (None, "n animal."),
    (None, None),
    ("and a dog", "A dog has"),
    ("stop", None),
    (None, None),
    cut=(4,),
)


def byte_layout(room: int = 1000) -> WindowLayout:
    return WindowLayout(Template.from_tokenizer(ByteTokenizer()), room)


def said(window: Window) -> str:
    return ByteTokenizer().decode([window.ids[at] for at in window.said])


def test_every_slice_has_its_situation() -> None:
    [window] = byte_layout().windows(TALK)
    assert [situation for _, situation in window.decisions] == [WAIT, ANSWER, GO_ON, REST, ANSWER, YIELD, REST]


def test_what_is_learned_is_what_the_assistant_says_and_ends() -> None:
    [window] = byte_layout().windows(TALK)
    # the first answer ends in a slice of nine tokens; the second was cut in one
    slices = ["<idle>", "A cat is a", "n animal.<|im_end|>", "<idle>", "A dog has", "<idle>", "<idle>"]
    assert said(window) == "".join(slices)
    shorter = row(("what is", None), ("a cat", "A cat."), (None, None), ("a dog", "Dogs"))
    [window] = byte_layout().windows(shorter)
    assert said(window) == "<idle>A cat.<|im_end|><idle>Dogs<|im_end|>"
    firsts = [ByteTokenizer().decode([window.ids[window.said[number]]]) for number, _ in window.decisions]
    assert firsts == ["<", "A", "<", "D"]


def test_without_a_trace_silence_and_sentences_tell_what_is_complete() -> None:
    output = (("a", "Yes"), (None, None), ("b", "No."), ("c", None), ("d", "Or so"), ("e", None))
    [window] = byte_layout().windows(row(*output, traced=False))
    assert [situation for _, situation in window.decisions] == [ANSWER, REST, ANSWER, WAIT, ANSWER, YIELD]
    assert said(window) == "Yes<|im_end|><idle>No.<|im_end|><idle>Or so<idle>"


def test_windows_are_what_a_session_feeds() -> None:
    """The words are told to a session, whose model says what the row says; then both hold the same ids."""
    dialogue = row((None, None), *TALK.output[:4])
    template = Template.from_tokenizer(ByteTokenizer())
    [window] = byte_layout().windows(dialogue)
    idle = idle_tokens(template)
    expected = window.ids.tolist()

    def speak(ids: list[Token]) -> Token:
        assert ids == expected[: len(ids)], "fed as in the window"
        return expected[len(ids)]

    backend = ScriptedBackend(speak, lambda ids: (0.25,) * 4, vocab_size=258, num_added=7)
    session = factory("tdm", trained=TdmModel(idle))(template, PROBE)
    assert isinstance(session, Tdm)
    assert session.decider == "trained"
    engine = Engine(backend, clock=lambda: session.now)
    talk = engine.open(session)
    for words, _ in dialogue.output:
        if words is not None:
            talk.hear(words, utterance=words, final=True)
        session.respond()
        while engine.tick():
            pass
    assert [turn.text for turn in session.history][:2] == ["what is a cat", "A cat is an animal."]
    states = [event.decision.state for event in talk.new_events() if isinstance(event, Decided)]
    assert states == [InputState.INCOMPLETE, InputState.PROCESS]
    engine.close()


def test_windows_fit_and_lose_no_pair() -> None:
    many = row(*(pair for n in range(30) for pair in ((f"question {n}", None), ("more", f"Answer {n}"))))
    template = Template.from_tokenizer(ByteTokenizer())
    windows = list(byte_layout(room=150).windows(many))
    assert len(windows) > 5
    assert all(len(template.begin) < window.length <= len(template.begin) + 150 for window in windows)
    assert sum(len(window.decisions) for window in windows) == 60
    for window in windows:
        assert window.ids.tolist()[: len(template.begin)] == list(template.begin)
        text = ByteTokenizer().decode(window.ids.tolist())
        assert text.removeprefix(ByteTokenizer().decode(template.begin)).startswith("<|im_start|>user\n")


def test_a_pair_that_fits_nowhere_is_counted() -> None:
    layout = byte_layout(room=120)
    windows = list(layout.windows(row(("a", "B."), ("long " * 50, None), ("c", "D."))))
    assert layout.num_too_long == 1
    assert sum(len(window.decisions) for window in windows) == 2


def test_slices_of_another_tokenizer_are_cut_and_counted() -> None:
    layout = byte_layout()
    [window] = layout.windows(row(("a", "This is longer than ten bytes.")))
    assert said(window) == "This is lo"
    assert layout.num_cut == 1


def test_labels_are_the_next_tokens() -> None:
    windows = [*byte_layout().windows(TALK), *byte_layout().windows(row(("hi", "Yes")))]
    batch = TdmBatch.of(windows)
    for number, window in enumerate(windows):
        places = [at for at, label in enumerate(batch.labels[number].tolist()) if label != NO_LABEL]
        assert [at + 1 for at in places] == window.said.tolist()
        assert [int(batch.labels[number, at]) for at in places] == [window.ids[at] for at in window.said]
        assert int(batch.mask[number].sum()) == window.length


# ---------------------------------------------------------------------------------------------------------- training

THINGS = ("kettle", "lamp", "boat", "ladder", "piano", "carpet", "drum", "tent", "mirror", "shovel")


def write_data(folder: Path) -> Path:
    """Requests in two slices, of which the second ends with a mark; answers in one or two."""
    folder.mkdir(exist_ok=True)
    for split, things in (("train", THINGS[:8]), ("dev", THINGS[8:])):
        rows = []
        for thing in things:
            for size in (1, 2):
                answer = ["Yes."] if size == 1 else ["Yes,", " sure."]
                output = [
                    (None, None),
                    ("where is", None),
                    (f"the {thing}?", answer[0]),
                    *((None, text) for text in answer[1:]),
                ]
                rows.append(row(*output, (None, None), id=f"{thing}{size}"))
        lines = [json.dumps(one.to_json()) + "\n" for one in rows]
        (folder / f"{split}-00000.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("settings", [SETTINGS, LORA], ids=["full", "lora"])
def test_a_model_learns_to_be_silent_and_to_answer_in_slices(
    settings: FinetuneSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = tiny_chat()
    lines: list[str] = []
    trained = train_tdm(
        write_data(tmp_path / "data"), tmp_path / "out", settings, model, tokenizer, name="tiny", say=lines.append
    )
    held_out = trained.facts["held_out"]
    assert held_out["prompted"]["dev_accuracy"] <= 0.6, "a random model does not know"
    assert held_out["trained"]["dev_accuracy"] > 0.8
    assert held_out["trained"]["num"] == held_out["prompted"]["num"]
    assert "16 samples with" in lines[0]
    report = "\n".join(report_lines(trained))
    assert re.search(r"wait \(n 4\): 100\.0 \[\d+\.\d, 100\.0\] \(", report)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written - {"curve.png", "lora"} == {"log.jsonl", "model"}
    assert ("lora" in written) == (settings.kind == "lora")
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert {"step", "loss", "token_loss", "lr", "grad_norm", "seconds"} <= log[0].keys()

    # what was written behaves in a session as in training
    loaded = load(str(tmp_path / "out" / "model"), backend="torch", adapter="prompted", weights="f32")
    try:
        known = TdmModel.load(loaded.path)
        assert known == trained
        session = loaded.session(factory("tdm", trained=known))  # type: ignore[arg-type]
        engine = Engine(loaded.backend, clock=lambda: session.now)
        talk = engine.open(session)
        for words in ("where is", "the lamp?"):
            talk.hear(words, utterance=words, final=True)
            session.respond()
            while engine.tick():
                pass
        states = [event.decision.state for event in talk.new_events() if isinstance(event, Decided)]
        assert states == [InputState.INCOMPLETE, InputState.PROCESS]
        engine.close()
    finally:
        loaded.close()


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    settings = replace(LORA, steps=20, eval_every=5)
    data = write_data(tmp_path / "data")

    def run(out: Path, stop_at: int | None = None) -> TdmModel:
        def progress(what: str, done: int, total: int) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        model, tokenizer = tiny_chat()
        return train_tdm(data, out, settings, model, tokenizer, name="tiny", progress=progress, say=lambda line: None)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=12)
    again = run(tmp_path / "cut")
    assert again.facts["looks"] == whole.facts["looks"]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_decisions_are_counted_by_situation() -> None:
    """A model that always says the same token is right where that token is."""
    template = Template.from_tokenizer(ByteTokenizer())
    idle = idle_tokens(template)
    [window] = byte_layout().windows(TALK)

    class Silent(torch.nn.Module):
        def forward(self, batch: TdmBatch) -> tuple[torch.Tensor, torch.Tensor]:
            num = int((batch.labels != NO_LABEL).sum())
            return torch.tensor(2.0 * num), torch.full((num,), idle[0])

    found = evaluate(Silent(), [window, window], idle, batch=1)  # type: ignore[arg-type]
    assert found.num == {WAIT: 2, ANSWER: 4, GO_ON: 2, REST: 4, YIELD: 2}
    assert found.right == {WAIT: 2, ANSWER: 0, GO_ON: 0, REST: 4, YIELD: 2}
    assert found.dev_accuracy == 0.5
    assert found.dev_loss == pytest.approx(2.0)


def test_the_paper_s_small_budget() -> None:
    assert TDM_RECIPES["full"].lr == 8e-6
    assert {recipe.steps * recipe.batch for recipe in TDM_RECIPES.values() if recipe.steps} == {10_000}


def test_data_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    model, tokenizer = tiny_chat()

    def run(data: Path, settings: FinetuneSettings = SETTINGS) -> None:
        train_tdm(data, tmp_path / "out", settings, model, tokenizer, name="tiny", say=lambda line: None)

    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no train-\*\.jsonl; create it with `duologue data build-duplex`"):
        run(tmp_path / "empty")
    data = write_data(tmp_path / "data")
    with pytest.raises(UsageError, match="max_length 20: sequences have at least"):
        run(data, replace(SETTINGS, max_length=20))
    with pytest.raises(UsageError, match="at most the 2048"):
        run(data, replace(SETTINGS, max_length=4096))
    (data / "train-00000.jsonl").write_text('{"output": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(BadData, match=r"train-00000\.jsonl, line 1: output ends with a slice of the user"):
        run(data)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- files


def test_a_model_that_was_not_trained_for_it_is_refused(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(AdapterMismatch, match="was not trained for time division"):
            TdmModel.load(folder)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 1}', '{"format": 1, "idle": [], "slice_tokens": 10, "base": "", "training": {}}'],
)
def test_a_damaged_file_is_explained(content: str, tmp_path: Path) -> None:
    (tmp_path / "tdm.json").write_text(content)
    with pytest.raises(AdapterMismatch, match=r"tdm\.json is damaged"):
        TdmModel.load(tmp_path)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    TdmModel((1, 2)).save(tmp_path)
    text = (tmp_path / "tdm.json").read_text().replace('"format": 1', '"format": 2')
    (tmp_path / "tdm.json").write_text(text)
    with pytest.raises(AdapterMismatch, match="format 2"):
        TdmModel.load(tmp_path)


# ----------------------------------------------------------------------------------------------------------- command


def test_the_command_trains_and_says_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny_chat()
    model.save_pretrained(tmp_path / "base")
    tokenizer.wrapped.save_pretrained(tmp_path / "base")
    data = write_data(tmp_path / "data")
    command = ["train", "tdm", "--model", str(tmp_path / "base"), "--data", str(data), "--out", str(tmp_path / "out")]
    options = ["--steps", "3", "--max-length", "200", "--dtype", "f32", "--samples", "8", "--rank", "2"]
    assert main([*command, *options]) == 0
    printed = capsys.readouterr().out
    assert "8 samples with" in printed
    assert "held out: decisions right" in printed
    assert "--sessions tdm_trained" in printed
    facts = TdmModel.load(tmp_path / "out" / "model").facts
    assert facts["settings"]["kind"] == "lora"
    assert facts["settings"]["lora_rank"] == 2
    assert main([*command, "--teacher", "x"]) == 2
    assert "does not take --teacher" in capsys.readouterr().err
    assert main(["train", "rows", *command[2:], "--full"]) == 2
    assert "does not take --full" in capsys.readouterr().err
