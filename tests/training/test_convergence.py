"""Rates that follow from the model, runs that diverge, and adapters that are worse than a prompt; on tiny models."""

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from duologue.backends.reference import ReferenceBackend
from duologue.core.backend import Extend
from duologue.data.samples import Sample
from duologue.decisions.convergence import fault
from duologue.decisions.thresholds import Probabilities
from duologue.errors import UsageError, WorseAdapter
from duologue.models.adapters import Adapter, prompted, requested_adapter
from duologue.testing.tiny_models import tiny_model, tiny_rows
from duologue.text.template import Template
from duologue.training.layout import Layouts
from duologue.training.probe.comparison import compare
from duologue.training.probe.prefixes import PrefixModel
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.probe.rates import DEFAULT_GAINS, Gains, Rates
from duologue.training.probe.run import ProbeRun, _converged
from duologue.training.probe.training import (
    DIVISOR,
    Diverged,
    Epoch,
    LabelledLayouts,
    ProbeTraining,
    _chance,
    label,
    score,
)
from duologue.training.recipes import PROBE_RECIPES, LoraShape, ProbeSettings
from duologue.training.runs import setting_of_checkpoint
from duologue.training.tensors import target_losses
from scripted import ByteTokenizer
from toy_samples import STATES, random_layouts, toy_set

PROCESS, INCOMPLETE, IGNORE, STOP = STATES


def fresh(architecture: str, lora: LoraShape | None = None) -> ProbeModel:
    torch.manual_seed(0)
    return ProbeModel(tiny_model(architecture), STATES, range(10, 20), lora=lora)


def toy_run(
    model: ProbeModel, settings: ProbeSettings, folder: Path, num: int, *, divisor: float = 1.0
) -> ProbeTraining:
    data, dev = (label(*toy_set(size, seed), STATES, settings) for size, seed in ((num, 0), (200, 1)))
    return ProbeTraining(model, data, dev, settings, folder, max_tokens=1_000_000, divisor=divisor)


def test_a_gain_is_what_a_unit_step_can_change() -> None:
    model, layouts = fresh("llama", LoraShape(rank=2, alpha=4)), random_layouts(12)
    plain = Gains.of(model, layouts)
    with torch.no_grad():
        model.base.base_model.norm.weight.mul_(5)
    louder = Gains.of(model, layouts)
    assert louder.outputs == pytest.approx(5 * plain.outputs, rel=1e-3)
    assert (louder.probes, louder.lora) == pytest.approx((plain.probes, plain.lora), rel=1e-3)
    wider = Gains.of(fresh("llama", LoraShape(rank=2, alpha=8)), layouts)
    assert wider.lora == pytest.approx(2 * plain.lora, rel=0.1), "the same factors count twice"
    alone = Gains.of(fresh("llama"), layouts)
    assert Rates.of(alone, ProbeSettings()).lora == 0, "there is no LoRA"


def rates(gains: Gains, settings: ProbeSettings, **options: float) -> tuple[float, ...]:
    return astuple(Rates.of(gains, settings, **options))


def test_the_default_model_has_the_rates_of_the_recipe_and_others_scaled_ones() -> None:
    settings = ProbeSettings(lr=4e-3, lora_lr=3e-3)
    assert rates(DEFAULT_GAINS, settings) == pytest.approx((4e-3, 2e-3, 3e-3))
    assert rates(DEFAULT_GAINS, settings, divisor=4) == pytest.approx((1e-3, 5e-4, 7.5e-4))
    loud = Gains(DEFAULT_GAINS.probes, 5 * DEFAULT_GAINS.outputs, 10 * DEFAULT_GAINS.lora)
    assert rates(loud, settings) == pytest.approx((4e-3, 4e-4, 3e-4))
    quiet = Gains(1e-9, 1e-9, 1e-9)
    assert rates(quiet, settings) == pytest.approx((1.6e-2, 8e-3, 1.2e-2)), "raised fourfold at most"


def test_probes_are_in_units_of_embeddings_as_they_are_fed() -> None:
    model = tiny_model("gemma3")  # scales its embeddings by the root of its width
    embedding = model.get_input_embeddings().weight
    unit = ProbeModel(model, STATES, range(10, 20)).unit
    assert unit == pytest.approx(float(embedding.std()) * embedding.shape[1] ** 0.5, rel=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "gemma2"])
def test_the_recipe_converges_on_any_architecture(architecture: str, tmp_path: Path) -> None:
    recipe = PROBE_RECIPES["alora"]
    model = fresh(architecture, recipe.lora)
    history = toy_run(model, recipe.settings_for(600), tmp_path, 600).run()
    assert history[-1].dev_accuracy > 0.6, "a quarter is chance"
    samples, layouts = toy_set(200, 1)
    right = np.array([[state is sample.state for state in STATES] for sample in samples])
    assert fault(score(model, layouts, max_tokens=1_000_000), right) is None


def test_a_run_that_diverges_ends_early(tmp_path: Path) -> None:
    settings = ProbeSettings(epochs=50, batch=16, lr=100.0)
    training = toy_run(fresh("llama"), settings, tmp_path, 240)
    with pytest.raises(Diverged, match="training loss"):
        training.run()
    assert training.files.step < 100


def test_a_run_that_stays_at_chance_ends(tmp_path: Path) -> None:
    model = fresh("llama")
    with torch.no_grad():
        model.states.zero_()
    settings = ProbeSettings(epochs=2, batch=1, lr=1e-12)
    with pytest.raises(Diverged, match="after 200 steps"):
        toy_run(model, settings, tmp_path, 200).run()


def test_chance_is_what_the_best_constant_reaches() -> None:
    targets = torch.tensor([[1.0, 0.0, 0.5]] * 3 + [[0.0, 1.0, 0.5]] * 2 + [[0.0, 0.0, 1.0]])
    data = LabelledLayouts([], targets, torch.ones(6), torch.zeros(6), torch.zeros(6))
    losses = [
        float(target_losses(torch.tensor([a, b, 100 - a - b]).expand(6, 3) / 100, targets).mean())
        for a in range(0, 101, 2)
        for b in range(0, 101 - a, 2)
    ]
    assert _chance(data) == pytest.approx(min(losses), abs=1e-3)


class Attempt:
    """A run that may diverge, and changes the model."""

    def __init__(self, model: ProbeModel, outcomes: dict[float, Probabilities | None], divisor: float) -> None:
        self.divisor, self._model, self._outcomes = divisor, model, outcomes
        self.history: list[Epoch] = []
        self.files, self.found = self, outcomes[divisor]

    def run(self, report: Callable[..., None]) -> None:
        with torch.no_grad():
            self._model.states.fill_(self.divisor)
        if self.found is None:
            raise Diverged("the loss is 11")

    def discard(self) -> None:
        pass

    def discard_prefixes(self) -> None:
        pass


RIGHT = np.eye(4, dtype=bool)[[0, 1, 2, 3, 0, 1]]
GOOD = np.where(RIGHT, 0.7, 0.1).astype(np.float32)
ONE = np.tile(np.array([0.7, 0.1, 0.1, 0.1], dtype=np.float32), (6, 1))


def attempts(
    outcomes: dict[float, Probabilities | None], folder: Path, *, allow_worse: bool = False
) -> tuple[Attempt, Probabilities, list[str]]:
    model, said, made = fresh("llama"), [], []
    before = model.states.detach().clone()

    def make(divisor: float) -> Attempt:
        assert torch.equal(model.states.detach(), before), "begins anew"
        made.append(Attempt(model, outcomes, divisor))
        return made[-1]

    run = ProbeRun(folder, folder, PROBE_RECIPES["rows"], allow_worse=allow_worse)
    trained = model.trained_parameters
    training, (p,) = _converged(run, trained, make, lambda: [made[-1].found], RIGHT, said.append)
    return training, p, said


def test_a_run_that_diverges_is_tried_again_with_lower_rates(tmp_path: Path) -> None:
    training, p, said = attempts({1.0: None, 4.0: ONE, 16.0: GOOD}, tmp_path)
    assert training.divisor == 16
    assert p is GOOD
    assert ["11" in said[0], "same state" in said[1]] == [True, True]
    assert attempts({1.0: ONE}, tmp_path, allow_worse=True)[0].divisor == 1
    with pytest.raises(UsageError, match=r"divided by 16: all held-out samples get the same state.*--lora-lr"):
        attempts({1.0: None, 4.0: None, 16.0: ONE}, tmp_path)


def test_a_killed_run_goes_on_with_its_lowered_rates(tmp_path: Path) -> None:
    assert setting_of_checkpoint(tmp_path, DIVISOR) is None
    training = toy_run(fresh("llama"), ProbeSettings(epochs=1, batch=64), tmp_path, 64, divisor=4.0)
    training.run()
    assert setting_of_checkpoint(tmp_path, DIVISOR) == 4
    assert attempts({4.0: GOOD}, tmp_path)[0].divisor == 4
    training.files.discard()
    assert setting_of_checkpoint(tmp_path, DIVISOR) is None


def test_signs_that_nothing_was_learned() -> None:
    assert fault(GOOD, RIGHT) is None
    assert "same state" in (fault(ONE, RIGHT) or "")
    assert "not finite" in (fault(GOOD * np.float32("nan"), RIGHT) or "")
    wrong = np.roll(GOOD, 1, axis=1)
    assert "by chance" in (fault(wrong, RIGHT) or "")
    sure = np.where(np.eye(4, dtype=bool)[[0, 1, 2, 3, 1, 1]], 1 - 3e-6, 1e-6).astype(np.float32)
    assert "too large to be calibrated" in (fault(sure, RIGHT) or "")


def test_the_prompted_model_is_asked_as_a_session_asks_it() -> None:
    tokenizer = ByteTokenizer()
    template = Template.from_tokenizer(tokenizer)
    model = tiny_model("llama")
    model.config.max_position_embeddings = 4096
    texts = ["what is it", "and then", "no", "stop now", "go", "one more"]
    samples = [Sample(text, STATES[i % 4], "own", speaking=i % 2 == 0) for i, text in enumerate(texts)]
    layouts = [Layouts(template).of(sample) for sample in samples]
    adapter = Adapter("rows", STATES, rows=tiny_rows())
    found = compare(
        adapter, PrefixModel(model), template, samples, layouts, np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
    )
    assert found is not None
    assert (found["n"], found["adapter"]["mean_recall"]) == (6, 1.0)
    backend = ReferenceBackend(model)
    probe = prompted(template).probe_for(backend.info.vocab_size, template)
    right = {state: [] for state in STATES}
    for sample, layout in zip(samples, layouts, strict=True):
        extend = Extend(backend.fork(None), (*layout.tokens, *probe.tokens), watch=(probe.watch,))
        p = backend.forward([extend])[0].p[0]
        right[sample.state].append(STATES[int(np.argmax(p))] is sample.state)
    expected = np.mean([np.mean(hits) for hits in right.values()])
    assert found["prompted"]["mean_recall"] == pytest.approx(expected, abs=1e-4)
    model.config.max_position_embeddings = 64
    assert compare(adapter, PrefixModel(model), template, samples, layouts, GOOD) is None, "no room for the prompt"


def test_an_adapter_that_is_worse_than_the_prompted_model_is_refused(tmp_path: Path) -> None:
    worse = {"n": 200, "adapter": {"mean_recall": 0.31}, "prompted": {"mean_recall": 0.42}}
    adapter = Adapter("rows", STATES, rows=tiny_rows(), name="mine", facts={"compared": worse})
    adapter.save(tmp_path)
    for given in (tmp_path, adapter):
        with pytest.raises(WorseAdapter, match=r"31\.0 % against 42\.0 %.*--allow-worse"):
            requested_adapter(given)
        assert isinstance(requested_adapter(given, allow_worse=True), Adapter)
    for better in (None, {**worse, "adapter": {"mean_recall": 0.42}}):
        replace(adapter, facts={"compared": better}).refuse_worse()
    replace(adapter, facts={}).refuse_worse()
    damaged = json.loads((tmp_path / "adapter.json").read_text())
    damaged["training"]["compared"] = {"n": 200}
    (tmp_path / "adapter.json").write_text(json.dumps(damaged))
    with pytest.raises(UsageError, match="damaged"):
        requested_adapter(tmp_path)
