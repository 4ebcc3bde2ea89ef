"""Training around a frozen base, on tiny models: prefixes, shards, learning, and continuing after a kill."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import transformers

from duologue.backends.reference import ReferenceBackend
from duologue.backends.rows import AdapterRows
from duologue.core.backend import Extend
from duologue.data.samples import Sample
from duologue.decisions.timing import auc
from duologue.errors import BadData, UnsupportedModel, UsageError
from duologue.models.adapters import Adapter
from duologue.testing.tiny_models import tiny_model
from duologue.text.template import Template
from duologue.training.end_of_turn import EndOfTurnModel
from duologue.training.layout import Layout, Layouts
from duologue.training.probe import prefixes as prefixes_module
from duologue.training.probe.kept import KeptPrefixes
from duologue.training.probe.prefixes import (
    Past,
    Prefixes,
    PrefixModel,
    even_shards,
    kv_bytes_per_token,
    num_tokens,
    shards,
)
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.probe.training import (
    Epoch,
    LabelledLayouts,
    ProbeTraining,
    _evaluate,
    _loss,
    label,
    score,
    score_all,
)
from duologue.training.recipes import LoraShape, ProbeRecipe, ProbeSettings
from duologue.types import InputState, Role, Turn
from scripted import CHATML, ByteTokenizer
from tiny_tokenizers import bytelevel
from toy_samples import random_layouts, toy_set

STATES = tuple(InputState)
PROCESS, INCOMPLETE, IGNORE, STOP = STATES
TALK = (Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "Hello, I was"))


LORA = LoraShape(rank=2, alpha=8)
TARGETS = {"phi": ("q_proj", "v_proj", "dense", "fc1", "fc2")}
MANY = 10_000  # tokens; everything fits


def probe_model(
    architecture: str, num_probes: int = 1, lora: LoraShape | None = None, *, timing: bool = False, seed: int = 0
) -> ProbeModel:
    torch.manual_seed(seed)
    base = tiny_model(architecture)
    model = ProbeModel(base, STATES, range(10, 20), num_probes=num_probes, lora=lora, timing=timing)
    with torch.no_grad():
        for rows in model.output_rows:
            rows.normal_()
        for parameter in model.lora_parameters:
            parameter.normal_(std=0.3).copy_(parameter.half())  # as a file keeps it
    return model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gemma3", "mistral", "phi"])
@pytest.mark.parametrize(("num_probes", "has_lora"), [(1, False), (3, False), (1, True), (2, True)])
def test_what_training_scores_is_what_a_backend_reads(architecture: str, num_probes: int, has_lora: bool) -> None:
    lora = replace(LORA, targets=TARGETS.get(architecture, LORA.targets)) if has_lora else None
    model = probe_model(architecture, num_probes, lora, timing=True)
    layouts = random_layouts(24)
    p = score(model, layouts, max_tokens=60)
    assert p.shape == (24, 6)
    backend = ReferenceBackend(tiny_model(architecture), rows=model.rows(), lora=model.lora())
    vocab = backend.info.vocab_size
    first = vocab + num_probes
    probe, states, timing = (tuple(range(*ids)) for ids in ((vocab, first), (first, first + 4), (first + 4, first + 6)))
    for layout, row in zip(layouts, p, strict=True):
        seq = backend.fork(None)
        step = backend.forward([Extend(seq, (*layout.context, *layout.text, *probe), watch=(states, timing))])[0]
        assert row == pytest.approx([*step.p[0], *step.p[1]], abs=1e-4)
    if has_lora:
        for parameter in model.lora_parameters:
            parameter.data.zero_()
        assert np.abs(score_alone(model, layouts) - p).max() > 0.05, "the LoRA must matter here"


def score_alone(model: ProbeModel, layouts: list[Layout]) -> "np.ndarray":
    prefixes = Prefixes(model.prefix_model, layouts)
    with torch.no_grad():
        return model.probabilities(prefixes.past(range(len(layouts)))).numpy()


def test_a_context_is_computed_and_kept_once() -> None:
    layouts = [Layout((5, 6, 7, 8), (i,)) for i in range(10, 20)]
    assert Prefixes(PrefixModel(tiny_model("llama")), layouts).num_tokens == num_tokens(layouts) == 4 + 10


def test_shards_keep_to_the_memory_and_leave_nothing_out() -> None:
    layouts = random_layouts(40)
    found = shards(layouts, 30)
    assert len(found) > 3
    assert [i for part in found for i in part] == list(range(40))
    assert all(num_tokens([layouts[i] for i in part]) <= 30 for part in found)
    assert shards(layouts, MANY) == [range(40)]
    with pytest.raises(UsageError, match="--memory-gb"):
        shards(layouts, 3)


def test_what_is_trained_on_last_is_not_a_small_rest() -> None:
    layouts = random_layouts(400)
    room = num_tokens(layouts) // 2 - 25  # two shards take all but a little
    full, even = shards(layouts, room), even_shards(layouts, room)
    assert len(even) == len(full) == 3
    assert [i for part in even for i in part] == list(range(400))
    sizes = [num_tokens([layouts[i] for i in part]) for part in even]
    assert max(sizes) <= room
    assert min(sizes) > 0.8 * max(sizes)
    assert num_tokens([layouts[i] for i in full[-1]]) < 0.2 * room, "a rest, if nothing were done about it"
    assert even_shards(layouts, MANY) == [range(400)]
    with pytest.raises(UsageError, match="--memory-gb"):
        even_shards(layouts, 3)


def test_the_bytes_of_a_token_are_those_of_its_keys_and_values() -> None:
    model = tiny_model("llama")
    config = model.config
    numbers = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    assert kv_bytes_per_token(PrefixModel(model)) == 4 * numbers


def test_a_recurrent_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no keys and values"):
        Prefixes(PrefixModel(tiny_model("mamba")), random_layouts(2))


def test_a_lora_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(UsageError, match="--targets"):
        probe_model("llama", lora=replace(LORA, targets=("nowhere",)))


FOLDED = (  # the system text stands in the first user's turn
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + (m.content | trim) + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("chat_template", [CHATML, FOLDED])
def test_a_sample_is_laid_out_as_a_session_feeds_it(chat_template: str) -> None:
    template = Template.from_tokenizer(ByteTokenizer(chat_template), system="Be kind.")
    alone = Layouts(template).of(Sample("what", INCOMPLETE, "own"))
    assert alone.context == template.begin
    assert (*alone.context, *alone.text) == (*template.begin, *template.user("what", first=True))
    assert Layouts(template).of(Sample(" what\n", INCOMPLETE, "own")) == alone
    inside = Layouts(template).of(Sample("and", INCOMPLETE, "own", context=TALK, speaking=True))
    expected = (
        *template.begin,
        *template.user("hi", first=True),
        *template.header,
        *template.answer("Hello, I was"),
        *template.close,
    )
    assert inside == Layout(expected, template.user("and", first=False))
    brief = template.with_system("Be brief.")
    system = Layouts(template).of(Sample("what", INCOMPLETE, "own", system="Be brief."))
    assert (*system.context, *system.text) == (*brief.begin, *brief.user("what", first=True))
    assert (*system.context, *system.text) != (*alone.context, *alone.text)


SETTINGS = ProbeSettings(epochs=12, batch=16, lr=0.06, lora_lr=0.005, patience=4)


def toy_labelled(num: int, seed: int) -> LabelledLayouts:
    samples, layouts = toy_set(num, seed)
    return label(samples, layouts, STATES, SETTINGS)


def trained(
    settings: ProbeSettings,
    folder: Path,
    *,
    lora: LoraShape | None = None,
    max_tokens: int = MANY,
    break_after: int | None = None,
    computed: list[int] | None = None,
    data_seed: int = 0,
    timing: bool = False,
    origin: dict[str, str] | None = None,
    pupils: list[ProbeModel] | None = None,
) -> tuple[ProbeModel, list[Epoch]]:
    """With a list of `pupils`, one is trained as well and appended to it."""
    torch.manual_seed(0)
    model = ProbeModel(tiny_model("llama"), STATES, range(10, 20), lora=lora, timing=timing)
    pupil = None if pupils is None else ProbeModel(model.base, STATES, range(10, 20), timing=timing)
    if pupils is not None and pupil is not None:
        pupils.append(pupil)

    def progress(what: str, done: int, total: int) -> None:
        stages = r"learning rates|epoch (1: loss \d\.\d{3}|\d+: loss \d\.\d{3}, \d+\.\d % right)"
        assert re.fullmatch(stages, what)

    def stop_early(epoch: Epoch) -> None:
        if break_after is not None and epoch.number >= break_after:
            raise KeyboardInterrupt

    def compute(layouts: Sequence[Layout]) -> Prefixes:
        if computed is not None:
            computed.append(len(layouts))
        return Prefixes(model.prefix_model, layouts)

    folder.mkdir(exist_ok=True)
    training = ProbeTraining(
        model,
        toy_labelled(240, data_seed),
        toy_labelled(80, 1),
        settings,
        folder,
        max_tokens=max_tokens,
        progress=progress,
        compute=compute,
        origin={"teacher": "one"} if origin is None else origin,
        pupil=pupil,
        pupil_settings=replace(settings, lr=2 * settings.lr),
    )
    return model, training.run(report=stop_early)


@pytest.mark.parametrize("lora", [None, LORA])
def test_training_learns_changes_no_weight_and_is_the_same_again(lora: LoraShape | None, tmp_path: Path) -> None:
    model, history = trained(SETTINGS, tmp_path / "once", lora=lora)
    assert history[-1].dev_accuracy > 0.55, "a quarter is chance"
    fresh = tiny_model("llama").state_dict()
    weights = {name.replace(".base_layer", ""): value for name, value in model.base.state_dict().items()}
    assert all(torch.equal(value, weights[name]) for name, value in fresh.items())
    again, _ = trained(SETTINGS, tmp_path / "again", lora=lora)
    assert all(
        torch.equal(one, other) for one, other in zip(model.trained_parameters, again.trained_parameters, strict=True)
    )


@pytest.mark.parametrize("lora", [None, LORA])
def test_whether_the_speaker_goes_on_is_learned_beside_the_state(lora: LoraShape | None, tmp_path: Path) -> None:
    model, history = trained(SETTINGS, tmp_path, lora=lora, timing=True)
    assert history[-1].dev_accuracy > 0.55, "a quarter is chance"
    samples, layouts = toy_set(80, 1)
    p = score(model, layouts, max_tokens=MANY)
    ends = np.array([sample.state in (PROCESS, STOP) for sample in samples])
    found = auc(p[:, 5], ends)
    assert found is not None
    assert found > 0.8, "a half is chance"
    rows = model.rows()
    model.apply_temperatures(2.0, 4.0)
    np.testing.assert_allclose(model.rows().states, rows.states / 2)
    assert rows.timing is not None
    np.testing.assert_allclose(model.rows().outputs[4:], rows.timing / 4)


def test_only_samples_that_know_how_the_turn_goes_on_teach_the_timing_pair() -> None:
    data, logits, batch = toy_labelled(8, 0), torch.randn(8, 6), list(range(8))
    states = _loss(logits[:, :4], data, batch, None, SETTINGS)
    unknown = replace(data, timing_weights=torch.zeros(8))
    assert float(_loss(logits, unknown, batch, None, SETTINGS)) == pytest.approx(float(states))
    both = _loss(logits, data, batch, None, replace(SETTINGS, timing_weight=0.25))
    known = [i for i in batch if i % 3]
    losses = -torch.softmax(logits[:, 4:], 1)[known, [int(data.ends[i]) for i in known]].log()
    assert not data.timing_weights[::3].any()
    expected = float((losses * data.timing_weights[known]).sum()) / 8
    assert float(both - states) == pytest.approx(0.25 * expected, abs=1e-6)


def test_the_rows_of_a_cascade_learn_in_the_steps_of_the_lora_and_do_not_change_it(tmp_path: Path) -> None:
    lora, computed, pupils = replace(LORA, dropout=0.3), list[int](), list[ProbeModel]()
    settings = replace(SETTINGS, epochs=24, patience=24)
    alone, history = trained(settings, tmp_path / "alone", lora=lora, timing=True)
    model, again = trained(settings, tmp_path / "both", lora=lora, timing=True, pupils=pupils, computed=computed)
    assert again == history
    for one, other in zip(alone.trained_parameters, model.trained_parameters, strict=True):
        assert torch.equal(one, other)
    assert computed == [80, 240], "prefixes are computed once for both"
    samples, layouts = toy_set(80, 1)
    of_model, of_pupil = score_all([model, pupils[0]], layouts, max_tokens=MANY)
    assert np.array_equal(of_model, score(model, layouts, max_tokens=MANY))
    assert np.array_equal(of_pupil, score(pupils[0], layouts, max_tokens=MANY))
    labels = np.array([STATES.index(sample.state) for sample in samples])
    assert (of_pupil[:, :4].argmax(1) == labels).mean() > 0.55, "a quarter is chance"
    assert auc(of_pupil[:, 5], np.isin(labels, (0, 3))) > 0.65, "a half is chance"


@pytest.mark.parametrize("max_tokens", [MANY, 500])
def test_a_killed_run_goes_on_to_the_same_adapter(tmp_path: Path, max_tokens: int) -> None:
    settings, lora, pupils = replace(SETTINGS, epochs=3), replace(LORA, dropout=0.3), list[ProbeModel]()
    whole, history = trained(settings, tmp_path / "whole", lora=lora, max_tokens=max_tokens, pupils=pupils)
    killed = tmp_path / "killed"
    log = killed / "training.jsonl"
    with pytest.raises(KeyboardInterrupt):
        trained(settings, killed, lora=lora, max_tokens=max_tokens, break_after=2, pupils=[])
    with log.open("a") as file:
        file.write('{"step": 100000, "loss": 1.0}\n{"step": 10')  # behind the checkpoint, which will be taken again
    resumed, again = trained(settings, killed, lora=lora, max_tokens=max_tokens, pupils=pupils)
    assert len(again) == len(history)
    assert log.read_text() == (tmp_path / "whole" / "training.jsonl").read_text()
    assert all(
        torch.equal(one, other) for one, other in zip(whole.trained_parameters, resumed.trained_parameters, strict=True)
    )
    first, second = (pupil.trained_parameters for pupil in pupils)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert again[-1].seconds > again[1].seconds, "counted on from what the killed run had taken"


def test_a_run_that_is_killed_during_the_prefixes_goes_on_with_those_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes_module, "_TOKENS_PER_PASS", 100)
    extend, batches = prefixes_module._extend, list[int]()

    def counted(model: PrefixModel, past: Past | None, texts: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        batches.append(len(texts))
        return extend(model, past, texts)

    monkeypatch.setattr(prefixes_module, "_extend", counted)

    def run(folder: Path, kill_at: float = 2.0) -> ProbeModel:
        def progress(what: str, done: int, total: int) -> None:
            if what == "prefixes" and total == num_tokens(data.layouts) and done / total > kill_at:
                raise KeyboardInterrupt

        batches.clear()
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model, data = ProbeModel(tiny_model("llama"), STATES, range(10, 20)), toy_labelled(240, 0)
        settings, dev = replace(SETTINGS, epochs=2), toy_labelled(80, 1)
        training = ProbeTraining(model, data, dev, settings, folder, max_tokens=MANY, progress=progress)
        training.run()
        training.discard_prefixes()
        return model

    whole, num_batches = run(tmp_path / "whole"), len(batches)
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(killed, kill_at=0.6)
    kept = sorted((killed / "prefixes").glob("*/*.pt"))
    assert 4 < len(kept) < num_batches
    kept[0].write_bytes(b"damaged")
    resumed = run(killed)
    assert len(batches) == num_batches - len(kept) + 1, "what is kept is not computed again, unless it is damaged"
    assert all(torch.equal(*pair) for pair in zip(whole.trained_parameters, resumed.trained_parameters, strict=True))
    assert not (killed / "prefixes").exists()


def test_prefixes_of_other_samples_are_not_kept(tmp_path: Path) -> None:
    model, kept = PrefixModel(tiny_model("llama")), KeptPrefixes(tmp_path, "origin")
    first, second = random_layouts(4), random_layouts(5)
    for layouts in (first, second):
        Prefixes(model, layouts, kept=kept.of(layouts))
    assert {folder.name for folder in tmp_path.iterdir()} == {kept.of(first).folder.name, kept.of(second).folder.name}
    kept.keep_only(kept.of(second))
    assert [folder.name for folder in tmp_path.iterdir()] == [kept.of(second).folder.name]
    assert kept.of(first).folder != KeptPrefixes(tmp_path, "other").of(first).folder


def test_a_run_does_not_go_on_from_that_of_another(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=2)
    trained(settings, tmp_path)
    trained(settings, tmp_path)
    with pytest.raises(UsageError, match="another lr"):
        trained(replace(settings, lr=1e-3), tmp_path)
    with pytest.raises(UsageError, match="another memory for prefixes"):
        trained(settings, tmp_path, max_tokens=200)
    with pytest.raises(UsageError, match="another size of what is trained"):
        trained(settings, tmp_path, lora=LORA)
    with pytest.raises(UsageError, match="another set of samples"):
        trained(settings, tmp_path, data_seed=5)
    with pytest.raises(UsageError, match="another teacher"):
        trained(settings, tmp_path, origin={"teacher": "other"})


def _are_equal(one: ProbeModel, other: ProbeModel) -> bool:
    """Whether both have trained to the same bits."""
    return all(torch.equal(*pair) for pair in zip(one.trained_parameters, other.trained_parameters, strict=True))


def test_what_drops_out_of_a_lora_does_so_in_steps_alone(tmp_path: Path) -> None:
    plain, _ = trained(SETTINGS, tmp_path / "plain", lora=LORA)
    model, history = trained(SETTINGS, tmp_path / "dropout", lora=replace(LORA, dropout=0.3))
    assert history[-1].dev_accuracy > 0.55, "a quarter is chance"
    assert not _are_equal(plain, model)
    layouts = random_layouts(8)
    assert (score(model, layouts, max_tokens=MANY) == score(model, layouts, max_tokens=MANY)).all()
    with pytest.raises(UsageError, match="dropout"):
        replace(LORA, dropout=1.0)


def test_more_samples_than_fit_are_trained_on_in_shards(tmp_path: Path) -> None:
    computed: list[int] = []
    _, history = trained(replace(SETTINGS, epochs=2), tmp_path, max_tokens=500, computed=computed)
    assert computed[0] == 80, "the held-out samples"
    assert sum(computed[1:]) == 240, "every prefix is computed once"
    assert len(history) == 2 * len(computed[1:])
    steps = history[-1].step
    assert len(history) > 4
    assert steps >= 2 * 240 / 16, "every sample is seen twice"
    assert history[-1].dev_accuracy > 0.4


def test_what_a_teacher_thinks_and_the_labels_share_the_loss() -> None:
    data = toy_labelled(8, 0)
    logits, rows = torch.randn(8, 4), list(range(8))
    thinks = torch.softmax(torch.randn(8, 4), -1)
    by_labels = _loss(logits, data, rows, None, SETTINGS)
    by_teacher = _loss(logits, data, rows, thinks, replace(SETTINGS, teacher_weight=1.0))
    expected = -(torch.log_softmax(logits, -1) * thinks).sum(-1) * data.weights
    assert float(by_teacher) == pytest.approx(float(expected.mean()), abs=1e-6)
    both = _loss(logits, data, rows, thinks, replace(SETTINGS, teacher_weight=0.25))
    assert float(both) == pytest.approx(0.75 * float(by_labels) + 0.25 * float(by_teacher), abs=1e-6)


def test_a_teacher_may_stand_around_the_same_base(tmp_path: Path) -> None:
    """Its LoRA is switched off for the prefixes and for the student, and the student is what it is without it."""
    torch.manual_seed(0)
    base = tiny_model("llama")
    alone = ProbeModel(base, STATES, range(10, 20))
    layouts = toy_labelled(30, 2).layouts
    before = score(alone, layouts, max_tokens=MANY)
    adapter = Adapter("alora", STATES, rows=probe_model("llama").rows(), lora=probe_model("llama", lora=LORA).lora())
    teacher = ProbeModel.from_adapter(adapter, base)
    assert np.array_equal(score(alone, layouts, max_tokens=MANY), before)
    teacher._activate(True)
    assert not np.array_equal(score(alone, layouts, max_tokens=MANY), before), "switched on it would be seen"
    teacher._activate(False)
    data, dev, settings = toy_labelled(30, 2), toy_labelled(30, 3), replace(SETTINGS, epochs=1)
    ProbeTraining(alone, data, dev, settings, tmp_path, max_tokens=MANY, teacher=teacher).run()
    teacher.unload()
    fresh = tiny_model("llama").state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in base.state_dict().items())


def test_training_ends_when_it_no_longer_gets_better(tmp_path: Path) -> None:
    _, history = trained(replace(SETTINGS, epochs=40, patience=1), tmp_path)
    assert len(history) < 40


def test_what_is_kept_had_the_least_loss_on_held_out_samples(tmp_path: Path) -> None:
    dev = toy_labelled(80, 1)
    model, history = trained(replace(SETTINGS, epochs=10, patience=10, lr=0.03), tmp_path)
    losses = [epoch.dev_loss for epoch in history]
    assert losses[-1] > min(losses), "the last epoch was not the best here"
    kept, _ = _evaluate(model, dev, Prefixes(model.prefix_model, dev.layouts))
    assert kept == pytest.approx(min(losses), abs=1e-5)


def test_a_run_that_continues_keeps_what_it_started_from_as_far_as_that_is_better(tmp_path: Path) -> None:
    start, _ = trained(SETTINGS, tmp_path / "start")
    dev = toy_labelled(80, 1)
    training = ProbeTraining(
        start, toy_labelled(24, 5), dev, replace(SETTINGS, epochs=1, lr=0.1), tmp_path, max_tokens=MANY, continues=True
    )
    history = training.run()
    assert 0 < training.share < 1, "few samples at a high rate make it worse"
    kept, _ = _evaluate(start, dev, Prefixes(start.prefix_model, dev.layouts))
    assert kept < history[0].dev_loss


def test_few_held_out_samples_judge_though_they_have_not_every_state(tmp_path: Path) -> None:
    """As where no more of them fit into the memory."""
    few = toy_labelled(80, 1).part(range(3))
    assert [len(few.layouts), *few.targets.shape, *few.weights.shape] == [3, 3, 4, 3]
    model = probe_model("llama")
    settings = replace(SETTINGS, epochs=1)
    history = ProbeTraining(model, toy_labelled(64, 0), few, settings, tmp_path, max_tokens=MANY).run()
    assert 0 < history[0].dev_loss < 10


def test_a_state_without_samples_is_refused_and_so_is_one_that_is_unknown() -> None:
    samples = [Sample("a", PROCESS, "own"), Sample("b", IGNORE, "own")]
    with pytest.raises(BadData, match="incomplete, stop"):
        label(samples, random_layouts(2), STATES, SETTINGS)
    with pytest.raises(BadData, match="sample 2 is ignore"):
        label(samples, random_layouts(2), (PROCESS, INCOMPLETE), SETTINGS)


def test_accepted_states_count_less_than_the_label_and_rare_states_more() -> None:
    samples = [Sample("a", IGNORE, "own", accept=(PROCESS,)), *[Sample("b", PROCESS, "own")] * 3]
    found = label(samples, random_layouts(4), (PROCESS, IGNORE), ProbeSettings(accepted_weight=0.4, balance=1.0))
    assert found.targets[0].tolist() == pytest.approx([0.4, 1.0])
    assert float(found.weights[0] / found.weights[1]) == pytest.approx(3.0)
    assert float(found.weights.mean()) == pytest.approx(1.0)


def test_a_timing_pair_that_the_adapter_lacks_starts_anew() -> None:
    plain, timed = probe_model("llama"), probe_model("llama", timing=True, seed=1)
    before = timed.rows().timing
    timed.set_adapter(plain.rows(), None)
    np.testing.assert_allclose(timed.rows().states, plain.rows().states)
    np.testing.assert_array_equal(timed.rows().timing, before)
    plain.set_adapter(timed.rows(), None)
    assert plain.rows().timing is None


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("timing", [False, True])
def test_what_was_trained_becomes_an_adapter_and_can_be_gone_on_from(
    tmp_path: Path, lora: LoraShape | None, timing: bool
) -> None:
    model = probe_model("llama", 2, lora, timing=timing)
    kind = "rows" if lora is None else "alora"
    Adapter(kind, STATES, rows=model.rows(), lora=model.lora()).save(tmp_path)
    loaded = Adapter.load(tmp_path)
    assert isinstance(loaded.rows, AdapterRows)
    other = probe_model("llama", 2, lora, timing=timing, seed=1)
    other.set_adapter(loaded.rows, loaded.lora)
    for one, another in zip(model.trained_parameters, other.trained_parameters, strict=True):
        np.testing.assert_allclose(one.detach(), another.detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(UsageError, match="LoRA"):
        probe_model("llama", 2, replace(LORA, rank=3)).set_adapter(
            loaded.rows, loaded.lora or probe_model("llama", 2, LORA).lora()
        )


def test_where_requests_end_is_read_from_plain_passes_whatever_is_judged_together() -> None:
    tokenizer = bytelevel(["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")
    tokenizer.wrapped.chat_template = CHATML
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer.wrapped) + 4,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ends = EndOfTurnModel(model, tokenizer)
    texts = ["what is the time", "", "stop", "tell me a story about the sea"]
    together = ends(texts)
    assert [len(p) for p in together] == [4, 0, 1, 7]
    for text, p in zip(texts, together, strict=True):
        assert ends([text])[0] == pytest.approx(p, abs=1e-5)
    template = Template.from_tokenizer(tokenizer)
    tokens = [*template.begin, *template.user("stop", first=True)]
    marks = {tokenizer.encode(mark)[0] for mark in "?.!\n"} | {template.user_close[0]}
    with torch.no_grad():
        plain = torch.softmax(model(torch.tensor([tokens])).logits[0, -1], -1)
    assert together[2][0] == pytest.approx(float(plain[sorted(marks)].sum()), abs=1e-5)


@pytest.mark.parametrize(("num_samples", "epochs"), [(50, 3), (1000, 2), (2000, 1), (9000, 1)])
def test_many_samples_are_seen_less_often(num_samples: int, epochs: int) -> None:
    recipe = ProbeRecipe(settings=ProbeSettings(epochs=3), presentations=2000)
    assert recipe.settings_for(num_samples).epochs == epochs
    assert replace(recipe, presentations=None).settings_for(num_samples).epochs == 3


@pytest.mark.parametrize("lora", [None, LORA])
def test_all_of_a_step_is_where_the_model_is(lora: LoraShape | None) -> None:
    """The device "meta" has no content, and refuses to meet tensors of another device."""
    layout = random_layouts(1)[0]
    model = ProbeModel(tiny_model("gemma3"), STATES, range(10, 20), lora=lora, timing=True).to("meta")
    tokens = torch.zeros(3, layout.length, dtype=torch.long)
    _, cache = model.prefix_model.run(None, keep=True, input_ids=tokens)
    kv = torch.stack([torch.stack([keys, values]) for keys, values in cache.kept]).detach()
    logits = model(Past(kv, torch.full((3,), layout.length, device="meta")))
    data = LabelledLayouts(
        [layout] * 3, torch.zeros(3, 4), torch.ones(3), torch.ones(3, dtype=torch.long), torch.ones(3)
    )
    _loss(logits, data, [0, 1, 2], torch.zeros(3, 4), SETTINGS).backward()
    parts = model.trained_parameters
    assert all(part.grad is not None and part.grad.device.type == "meta" for part in parts)
    with pytest.raises(RuntimeError, match="device"):
        model(Past(torch.zeros(kv.shape), torch.full((3,), layout.length)))
