"""`duologue eval states`: rows reach the model as conversations do, and what is wrong with a file is said."""

import copy
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from duologue.backends.scripted import ScriptedBackend
from duologue.cli import main as cli
from duologue.cli.main import main
from duologue.core.backend import Extend, Step
from duologue.core.events import Decided
from duologue.core.prompt import Probe
from duologue.data.samples import Sample, write_samples
from duologue.data.workers import Here
from duologue.errors import BadData, EngineError, MissingDependency
from duologue.evaluation import baselines
from duologue.evaluation.labelled_rows import LabelledRows, lay_out, read, read_blocks
from duologue.evaluation.scoring import latencies, score
from duologue.evaluation.states import Judgement, compare, details, judge_blocks, judge_model, report
from duologue.evaluation.states_report import draw, tables
from duologue.models.adapters import Adapter, prompted
from duologue.models.model import Model
from duologue.text.template import Template
from duologue.types import InputState, Role, Turn
from scripted import PROBE, STRICT, ByteTokenizer, Talk

STATES = tuple(InputState)
PROCESS, INCOMPLETE, IGNORE, STOP = STATES
TALK = (Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "Hello, I was"))
LONGER = (*TALK, Turn(Role.USER, "go on"), Turn(Role.ASSISTANT, "Well."))

SAMPLES = (
    Sample("what is the", INCOMPLETE, "own", kind="cut"),
    Sample("what is a cat", PROCESS, "own"),
    Sample("and the", PROCESS, "own", context=TALK, speaking=True),
    Sample("radio talk", IGNORE, "radio", context=TALK, speaking=True, kind="talk"),
    Sample("mhm", IGNORE, "radio", context=TALK),
    Sample("where is my hat", IGNORE, "radio", context=LONGER, speaking=True, kind="talk"),
    Sample("be quiet", STOP, "own", context=LONGER, speaking=True),
    Sample("I mean to", IGNORE, "radio", accept=(INCOMPLETE,), system="Be brief."),
)
DECIDED = [INCOMPLETE, PROCESS, INCOMPLETE, IGNORE, IGNORE, PROCESS, STOP, INCOMPLETE]
"""What the script thinks of them."""

AGREED = [
    *("n", "accuracy", "answer", "respond", "false_answer_rate", "false_wait_rate"),
    *("recall", "confusion", "per_source", "ece", "latency_ms"),
]


class Counting(ScriptedBackend):
    """Remembers how many tokens each pass fed, and of how many sequences."""

    passes: list[list[int]]

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        self.passes.append([len(extend.tokens) for extend in batch])
        return super().forward(batch)


def scripted_model(
    judge: Callable[[list[int]], Sequence[float]] | None = None, *, template: Template | None = None, **limits: int
) -> Model:
    """A model without a model, by default the one that tests of sessions use."""
    talk = Talk()
    backend = Counting(talk._speak, judge or talk._judge, vocab_size=258, num_added=5, **limits)
    backend.passes = []
    length = limits.get("context_length", 4096)
    return Model("a script", backend, template or talk.template, prompted(), PROBE, length)


def rows_of(samples: Sequence[Sample]) -> LabelledRows:
    return LabelledRows(Path("rows.jsonl"), tuple(samples), tuple(range(1, len(samples) + 1)))


ROWS = rows_of(SAMPLES)


# ------------------------------------------------------------------------------------------------------------ scoring


@pytest.mark.parametrize("max_seqs", [3, 5, 256])
def test_rows_get_their_own_probabilities_and_nothing_stays_cached(max_seqs: int) -> None:
    model = scripted_model(max_seqs=max_seqs)
    judged, _ = judge_model(ROWS, model)
    assert list(judged.decisions) == DECIDED
    assert model.backend.usage().num_seqs == 0


def test_non_speech_text_is_ignored_unread_as_in_a_session() -> None:
    rows = rows_of([Sample("[NOISE]", IGNORE, "own", context=TALK, speaking=True), SAMPLES[0]])
    judged, _ = judge_model(rows, scripted_model(), num_latencies=0)
    assert list(judged.decisions) == [IGNORE, INCOMPLETE]
    assert judged.p is not None
    assert list(judged.p[0]) == [0, 0, 1, 0]


@pytest.mark.parametrize(("question", "state"), [("Who is it?", INCOMPLETE), ("I see.", PROCESS)])
def test_a_request_for_a_moment_is_incomplete_behind_a_question(question: str, state: InputState) -> None:
    context = (Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, question))
    rows = rows_of([Sample("give me a second", INCOMPLETE, "own", context=context)])
    assert list(judge_model(rows, scripted_model(), num_latencies=0)[0].decisions) == [state]


def test_a_decision_is_that_of_a_session() -> None:
    judged, _ = judge_model(ROWS, scripted_model())
    assert judged.p is not None
    for sample, p in zip(SAMPLES, judged.p, strict=True):
        if sample.speaking:
            continue
        talk = Talk(history=sample.context, system=sample.system)
        talk.hear(sample.text)
        talk.tick(2)
        decision = next(event.decision for event in talk.events if isinstance(event, Decided))
        assert [state for state, _ in decision.probabilities] == list(STATES)
        assert p.tolist() == pytest.approx([share for _, share in decision.probabilities])


def test_a_shared_context_is_fed_once() -> None:
    context = (Turn(Role.USER, "u" * 300), Turn(Role.ASSISTANT, "a" * 300))
    samples = [Sample(f"what is {i}", PROCESS, "own", context=context) for i in range(6)]
    samples += [Sample("what", PROCESS, "own")]
    model = scripted_model()
    judge_model(rows_of(samples), model, num_latencies=0)
    fed = sum(map(sum, model.backend.passes))
    assert 600 < fed < 1200
    assert len(model.backend.passes) == 2  # the dialogue, the words


def test_a_pass_is_bounded_by_tokens() -> None:
    samples = [Sample("w" * 400, PROCESS, "own") for _ in range(8)]
    model = scripted_model()
    judge_model(rows_of(samples), model, num_latencies=0)
    assert max(map(sum, model.backend.passes)) <= 1024


def test_sequences_are_freed_when_a_pass_fails() -> None:
    def fail(ids: list[int]) -> list[float]:
        raise RuntimeError("the machine is on fire")

    model = scripted_model(fail)
    with pytest.raises(RuntimeError, match="fire"):
        judge_model(ROWS, model)
    assert model.backend.usage().num_seqs == 0


def test_latency_is_that_of_the_words_alone() -> None:
    ticks = iter(range(1000))
    model = scripted_model()
    layouts = lay_out(ROWS, model)
    found = latencies(model, layouts, num=3, clock=lambda: float(next(ticks)))
    assert found == {0: 1000.0, 4: 1000.0, 7: 1000.0}
    assert model.backend.passes[-1] == [len(layouts[7].text) + 1]
    assert latencies(model, layouts, num=0) == {}
    assert len(latencies(model, layouts, num=100)) == len(layouts)


@pytest.fixture(scope="module")
def tiny() -> Model:
    pytest.importorskip("torch")
    from duologue.backends.torch.backend import TorchBackend
    from duologue.testing.tiny_models import tiny_model, tiny_rows

    adapter = Adapter("rows", STATES, rows=tiny_rows())
    backend = TorchBackend(tiny_model("llama"), rows=adapter.rows, capacity=512, max_seqs=6)
    template = Template.from_tokenizer(ByteTokenizer())
    return Model("tiny", backend, template, adapter, adapter.probe_for(backend.info.vocab_size, template), 128)


def test_many_rows_in_a_pass_score_as_each_alone(tiny: Model) -> None:
    from duologue.backends.reference import ReferenceBackend
    from duologue.testing.tiny_models import tiny_model

    rows = rows_of([sample for sample in SAMPLES if sample.context != LONGER])
    layouts = lay_out(rows, tiny)
    p = score(tiny, layouts)
    reference = ReferenceBackend(tiny_model("llama"), rows=tiny.adapter.rows)
    for layout, found in zip(layouts, p, strict=True):
        tokens = (*layout.context, *layout.text, *tiny.probe.tokens)
        step = reference.forward([Extend(reference.fork(None), tokens, watch=tiny.probe.groups)])[0]
        assert found.tolist() == pytest.approx(step.p[0], abs=1e-4)
    assert np.ptp(p, axis=0).max() > 0.01, "rows that all score alike prove nothing"


@pytest.mark.smollm2
@pytest.mark.llamacpp
@pytest.mark.filterwarnings("ignore")  # of the reader of GGUF files
def test_the_default_model_decides_alike_on_both_backends() -> None:
    pytest.importorskip("torch")
    from demo import demo_samples
    from duologue.errors import ModelNotFound
    from duologue.models.model import load

    rows = rows_of(demo_samples())
    judged = []
    for backend in ("torch", "llamacpp"):
        try:
            model = load(backend=backend, threads=1)
        except ModelNotFound as error:
            pytest.skip(str(error))
        judged.append(judge_model(rows, model, num_latencies=0)[0])
        model.close()
    result = compare(rows, *judged)
    assert len(result["different_lines"]) <= 0.02 * len(rows.samples), result
    assert result["largest_difference"] < 0.1


# ---------------------------------------------------------------------------------------------------- several workers


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("labelled_rows", "scoring"):
        monkeypatch.setattr(f"duologue.evaluation.{module}.BLOCK", 3)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_give_the_figures_of_the_whole(file: str) -> None:
    blocks = list(read_blocks(Path(file)))
    assert [block.lines for block in blocks] == [(1, 2, 3), (4, 5, 6), (7, 8)]
    whole, decider = judge_model(read(Path(file)), scripted_model(), num_latencies=0)
    parts, same = judge_blocks(iter(blocks), scripted_model, Here(), num_rows=8)
    assert (report(parts), details(parts), decider) == (report(whole), details(whole), same)
    assert whole.p is not None
    assert parts.p is not None
    assert parts.p.tolist() == whole.p.tolist()
    assert not any(sample.text or sample.context for sample in parts.samples), "words are not kept"


@pytest.mark.usefixtures("small_blocks")
def test_what_is_shared_is_fed_once_a_block() -> None:
    model = scripted_model()
    judge_model(rows_of([Sample("what", PROCESS, "own", context=TALK)] * 6), model, num_latencies=0)
    assert [len(tokens) for tokens in model.backend.passes] == [1, 3, 1, 3]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("small_blocks")
def test_an_error_in_a_block_names_its_lines(file: str) -> None:
    def fail(ids: list[int]) -> list[float]:
        raise RuntimeError("the machine is on fire")

    with pytest.raises(RuntimeError, match="fire") as found:
        judge_blocks(read_blocks(Path(file)), lambda: scripted_model(fail), Here(), num_rows=8)
    assert found.value.__notes__ == [f"in lines 1 to 3 of {file}"]
    with pytest.raises(BadData, match=r"line 6: .*--context"):
        judge_blocks(read_blocks(Path(file)), lambda: scripted_model(context_length=60), Here(), num_rows=8)


class Apart:
    """A worker of its own for every job."""

    def map(self, work: Any, jobs: Any) -> Any:
        return (copy.copy(work)(job) for job in jobs)


@pytest.mark.usefixtures("small_blocks")
def test_workers_that_loaded_something_else_are_found_out(file: str) -> None:
    def other(ids: list[int]) -> Sequence[float]:
        return (0.25, 0.25, 0.25, 0.25)

    models = [scripted_model(), replace(scripted_model(other), name="another script")]
    with pytest.raises(EngineError, match=r"decide differently: .*'a script'.*'another script'"):
        judge_blocks(read_blocks(Path(file)), lambda: models.pop(0), Apart(), num_rows=8)


@pytest.mark.parametrize(
    "workers",
    [
        ["--workers", "2"],
        pytest.param(
            ["--ray", "local", "--workers", "2"], marks=[pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
        ),
    ],
    ids=["processes", "ray"],
)
@pytest.mark.usefixtures("small_blocks")
def test_two_workers_find_what_one_finds(
    workers: list[str], folder: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for options in (["--latencies", "0", "--threads", "1"], workers):
        command = ["eval", "states", file, "--model", str(folder), "--weights", "f32", "--json", *options]
        assert main(command) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]
    assert results[0]["n"] == 8


@pytest.mark.parametrize("option", [["--audio"], ["--baselines"], ["--compare", "torch"], ["--latencies", "3"]])
def test_what_needs_one_process_is_refused(option: list[str], file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "states", file, "--ray", "local", *option]) == 2
    assert f"{option[0]} needs one process; leave out --ray" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected an object"),
        ('{"text": "a", "state": "process"}', "line 2: .*no field 'source'"),
        ('{"text": "a", "state": "maybe", "source": "x"}', "line 2: .*'maybe'.*process"),
        ('{"text": 1, "state": "process", "source": "x"}', "line 2: .*text must be a string, got int"),
        ('{"text": " ", "state": "process", "source": "x"}', "line 2: .*empty"),
        ('{"text": "a", "state": "process", "source": "x", "accept": ["no"]}', "line 2: .*'no'"),
        ('{"text": "a", "state": "process", "source": "x", "speaking": true}', "line 2: .*running answer"),
        (
            '{"text": "a", "state": "process", "source": "x", "context": [{"role": "system", "text": "b"}]}',
            'line 2: .*"system"',
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "state": "process", "source": "x"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(BadData, match=message):
        read(path)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n", encoding="utf-8")
    with pytest.raises(BadData, match="no rows"):
        read(path)
    with pytest.raises(BadData, match="there is no file"):
        read(tmp_path / "none.jsonl")


def test_lines_are_counted_with_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a", "state": "process", "source": "x"}\n', encoding="utf-8")
    assert read(path).lines == (2,)


def test_a_label_that_the_adapter_lacks_is_named() -> None:
    states = (PROCESS, INCOMPLETE, IGNORE)
    model = scripted_model(lambda ids: (0.2, 0.2, 0.6))
    three = Model("three", model.backend, model.template, prompted(), Probe((258,), (259, 260, 261), states), 4096)
    with pytest.raises(BadData, match=r"line 7: labelled stop.*process, incomplete, ignore"):
        judge_model(ROWS, three)
    judged, _ = judge_model(rows_of(SAMPLES[:6]), three)
    assert judged.decisions == [IGNORE] * 6


def test_a_row_longer_than_the_context_is_named() -> None:
    with pytest.raises(BadData, match=r"line 6: .*tokens with the probe.*--context"):
        judge_model(ROWS, scripted_model(context_length=60))


def test_turns_that_the_template_refuses_are_named() -> None:
    template = Template.from_tokenizer(ByteTokenizer(STRICT))
    context = (Turn(Role.USER, "one"), Turn(Role.SYSTEM, "two"))
    with pytest.raises(BadData, match="line 1: "):
        judge_model(rows_of([Sample("a", PROCESS, "own", context=context)]), scripted_model(template=template))


# ------------------------------------------------------------------------------------------------------------- report


def test_a_report_has_what_was_agreed_for_all_idle_and_speaking() -> None:
    judged, _ = judge_model(ROWS, scripted_model(), num_latencies=4)
    result = report(judged)
    for section in (result, result["idle"], result["speaking"]):
        assert set(AGREED) <= set(section)
        assert list(section["recall"]) == ["process", "incomplete", "ignore", "stop"]
    assert result["n"] == 8
    assert result["idle"]["n"] == result["speaking"]["n"] == 4
    # asked: rows 2 and 3, of which 2 was answered; ignored: 4, 5, 6, 8, of which 6 was answered and 8 kept waiting
    assert result["answer"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert result["respond"] == {"precision": 0.5, "recall": 1.0, "f1": 0.6667}
    assert result["false_answer_rate"] == 0.25
    assert result["false_wait_rate"] == 0.25
    assert result["recall"] == {"process": 0.5, "incomplete": 1.0, "ignore": 0.75, "stop": 1.0}
    assert result["accuracy"] == 0.75
    assert result["speaking"]["false_answer_rate"] == 0.5
    assert result["per_source"]["radio"] == {
        "n": 4,
        "accuracy": 0.75,
        "recall": {"ignore": 0.75},
        "false_answer_rate": 0.25,
        "confusion": {"ignore": {"process": 1, "incomplete": 1, "ignore": 2, "stop": 0}},
    }
    assert result["per_kind"]["cut"]["recall"] == {"incomplete": 1.0}
    # always 0.91 sure and right in 5 of the 7 with one right state, in bins of one row each
    assert result["ece"] == pytest.approx((5 * 0.09 + 2 * 0.91) / 7, abs=1e-4)
    assert result["latency_ms"]["p50"] <= result["latency_ms"]["p95"]
    assert result["idle"]["latency_ms"]["p50"] is not None


def test_a_part_keeps_what_belongs_to_its_rows() -> None:
    p = np.arange(32, dtype=np.float32).reshape(8, 4)
    part = Judgement(SAMPLES, DECIDED, STATES, p, {2: 5.0, 4: 7.0}).part([1, 4])
    assert part.decisions == [PROCESS, IGNORE]
    assert [sample.text for sample in part.samples] == ["what is a cat", "mhm"]
    assert part.p is not None
    assert part.p.tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]
    assert part.latency_ms == {1: 7.0}


def test_details_place_the_decisions_on_the_curve() -> None:
    judged, _ = judge_model(ROWS, scripted_model())
    found = details(judged)
    # of ignore and incomplete (five rows) one was answered; of process (two rows) one was not
    assert found["operating_point"]["all"] == {"false_actions": 0.2, "delay": 0.5}
    assert found["operating_point"]["idle"] == {"false_actions": 0.0, "delay": 0.0}
    assert found["curve"]["all"][0] == {"threshold": 0.0, "false_actions": 1.0, "delay": 0.0}
    assert sum(each["num"] for each in found["reliability"]) == 7, "those with one right state"


def test_comparison_counts_equal_decisions() -> None:
    samples = SAMPLES[:4]
    p = np.full((4, 4), 0.25, np.float32)
    other = p.copy()
    other[2] = (0.05, 0.45, 0.25, 0.25)
    one = Judgement(samples, [PROCESS] * 4, STATES, p)
    two = Judgement(samples, [PROCESS, PROCESS, INCOMPLETE, PROCESS], STATES, other)
    assert compare(rows_of(samples), one, two) == {
        "n": 4,
        "equal_decisions": 0.75,
        "largest_difference": 0.2,
        "mean_difference": 0.05,
        "different_lines": [3],
    }


# ---------------------------------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("what is the", (PROCESS, INCOMPLETE, INCOMPLETE)),
        ("What is THE?", (PROCESS, INCOMPLETE, PROCESS)),
        ("what is a cat", (PROCESS, PROCESS, INCOMPLETE)),
        ('She said "yes."', (PROCESS, PROCESS, PROCESS)),
        ("...", (PROCESS, PROCESS, PROCESS)),
    ],
)
def test_rules_know_the_text_alone(text: str, expected: tuple[InputState, ...]) -> None:
    sample = Sample(text, STOP, "own")
    assert [judged.decisions[0] for _, judged in baselines.by_rules([sample])] == list(expected)


def test_the_base_is_asked_by_prompting() -> None:
    seen = []

    def judge(ids: list[int]) -> list[float]:
        text = ByteTokenizer().decode(ids)
        seen.append(text)
        return [0.1, 0.1, 0.7, 0.1] if "radio talk" in text else [0.7, 0.1, 0.1, 0.1]

    found = dict(baselines.by_prompting(ROWS, scripted_model(judge)))
    assert list(found) == ["prompted", "prompted-5"]
    for judged in found.values():
        assert isinstance(judged, Judgement)
        assert [state is IGNORE for state in judged.decisions] == ["radio talk" in s.text for s in SAMPLES]
    assert sum("Example:" in text for text in seen) == len(SAMPLES)


def test_a_model_that_cannot_be_asked_says_why(tiny: Model) -> None:
    found = dict(baselines.by_prompting(rows_of(SAMPLES[:2]), tiny))
    assert all("the context holds 128" in str(reason) for reason in found.values())


def test_hidden_states_do_not_depend_on_who_else_is_in_the_batch(tiny: Model) -> None:
    import torch

    from duologue.testing.tiny_models import tiny_model
    from duologue.training.probe.linear_probe import hidden_states

    base = tiny_model("llama")
    layouts = lay_out(rows_of([sample for sample in SAMPLES if sample.context != LONGER]), tiny)
    together = hidden_states(base, layouts)
    alone = torch.cat([hidden_states(base, [layout]) for layout in layouts])
    assert together.shape == (len(layouts), 32)
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in Hugging Face form."""
    pytest.importorskip("transformers")
    from tiny_chat import tiny_chat_folder

    return tiny_chat_folder(tmp_path_factory.mktemp("model"))


def test_the_command_runs_every_baseline_on_a_model_in_a_folder(
    folder: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--model",
        str(folder),
        "--weights",
        "f32",
        "--baselines",
        "--train",
        file,
        "--compare",
        "reference:f32",
    ]
    assert main(["eval", "states", file, *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["adapter"] == "prompted (auto)"
    assert result["compare"]["equal_decisions"] == 1.0
    assert result["compare"]["largest_difference"] < 1e-3
    probe = result["baselines"]["linear probe"]
    assert probe["accuracy"] == 1.0, "so few rows are separable"
    assert probe["ece"] is not None
    assert result["baselines"]["always process"]["ece"] is None
    # the model under test asks in words too
    assert result["baselines"]["prompted"]["confusion"] == result["confusion"]
    assert "the linear probe is trained on sources of the test: own, radio" in captured.err


def test_a_linear_probe_learns_what_is_linear() -> None:
    torch = pytest.importorskip("torch")
    from duologue.training.probe.linear_probe import fit

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 8, generator=generator)
    labels = (features @ torch.randn(8, 4, generator=generator)).argmax(1)
    p = fit(features[:300], labels[:300], 4)(features[300:])
    assert p.shape == (100, 4)
    assert p.sum(1) == pytest.approx(np.ones(100), abs=1e-5)
    assert (p.argmax(1) == labels[300:].numpy()).mean() > 0.85


# ----------------------------------------------------------------------------------------------- pictures and command


@pytest.fixture
def file(tmp_path: Path) -> str:
    write_samples(tmp_path / "rows.jsonl", SAMPLES)
    return str(tmp_path / "rows.jsonl")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A scripted model takes the place of whatever is asked for; the options of each loading."""
    asked: list[Any] = []

    def judge(ids: list[int]) -> Sequence[float]:
        return Talk()._judge(ids) if ids[-1] == PROBE.tokens[-1] else (0.7, 0.1, 0.1, 0.1)  # else asked in words

    def load(args: Any) -> Model:
        asked.append(args)
        return scripted_model(judge)

    monkeypatch.setattr("duologue.cli.eval_states.load_model", load)
    return asked


def test_pictures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    judged, _ = judge_model(ROWS, scripted_model())
    paths = draw({**report(judged), **details(judged)}, tmp_path)
    assert [path.name for path in paths] == ["reliability.png", "curve.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_pictures_of_one_class_are_drawn_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    judged, _ = judge_model(rows_of(SAMPLES[:1]), scripted_model())
    assert len(draw({**report(judged), **details(judged)}, tmp_path)) == 2


def test_without_matplotlib_the_result_is_written_and_the_rest_explained(
    loaded: list[Any], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r"duologue\[train\]"):
        draw({}, tmp_path)
    assert main(["eval", "states", file, "--out", str(tmp_path / "out")]) == 0
    assert "no pictures" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]


def test_the_command_prints_tables(loaded: list[Any], file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "states", file, "--baselines"]) == 0
    out = capsys.readouterr().out
    assert "a script with prompted (auto) on scripted, none: 8 rows of rows.jsonl" in out
    assert "| **adapter**" in out
    for name in ("always process", "last word is a function word", "punctuation", "prompted-5"):
        assert name in out
    for line in out.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_command_prints_one_line_of_json(
    loaded: list[Any], file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--json", "--compare", "torch:f32", "--out", str(tmp_path / "out"), "--latencies", "0"]
    assert main(["eval", "states", file, *arguments]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result = json.loads(line)
    assert set(AGREED) <= set(result)
    assert result["latency_ms"] == {"p50": None, "p95": None}
    assert result["compare"]["equal_decisions"] == 1.0
    assert [(args.backend, args.weights) for args in loaded] == [("auto", None), ("torch", "f32")]
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8")) == result
    assert "| **adapter**" in captured.err


def test_fields_that_are_not_read_are_named(
    loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "state": "process", "source": "x", "accepts": ["ignore"], "id": 7}\n')
    assert main(["eval", "states", str(path)]) == 0
    assert f"{path}: unknown fields are ignored: accepts, id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "none.jsonl"),
        (["{file}", "--compare", "abacus"], "abacus"),
        (["{file}", "--train", "none.jsonl"], "none.jsonl"),
        (["{file}", "--out", "{file}/below"], "cannot be created"),
    ],
)
def test_bad_arguments_are_explained_before_a_model_is_loaded(
    arguments: list[str], message: str, loaded: list[Any], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "states", *(argument.format(file=file) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not loaded


@pytest.mark.parametrize("words", [["eval"], ["eval", "states"]])
def test_help_shows_commands_one_can_copy(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    shown = capsys.readouterr().out.partition("examples:")[2].splitlines()
    commands = [line.partition("duologue ")[2].split("  ")[0].split(" | ")[0] for line in shown if "duologue" in line]
    assert len(commands) >= 2
    for command in commands:
        if "--help" not in command:
            cli.parser().parse_args(shlex.split(command))


def test_tables_name_what_is_missing() -> None:
    judged, _ = judge_model(ROWS, scripted_model(), num_latencies=0)
    what = {"file": "f", "model": "m", "adapter": "a", "backend": "b", "weights": "w"}
    text = tables({**what, **report(judged), "baselines": {"prompted": {"unavailable": "too short a context"}}})
    assert "not measured" in text
    assert "prompted: not available. too short a context" in text
