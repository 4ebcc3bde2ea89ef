"""A training run around a frozen base: from a folder of samples to an adapter folder. N samples, S states.

The timing pair is trained if in both splits some samples say that the speaker goes on and some that the turn ends.

The rows of a cascade are trained together with the LoRA that they may spare, or later, for an adapter that exists; it
is then their teacher.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample
from duologue.decisions.calibration import apply_temperature, fit_temperature
from duologue.decisions.convergence import fault
from duologue.decisions.thresholds import Probabilities, accepted
from duologue.decisions.timing import balance, is_learnable, needs_timing, timing_facts
from duologue.errors import AdapterMismatch, BadData, UsageError
from duologue.models.adapters import Adapter, Fingerprint
from duologue.models.card import write_card
from duologue.text.template import Template
from duologue.training.layout import Layout, lay_out_within
from duologue.training.probe.comparison import compare
from duologue.training.probe.prefixes import kv_bytes_per_token, shards
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.probe.training import DIVISOR, Diverged, Epoch, ProbeTraining, label, score_all
from duologue.training.recipes import ProbeRecipe, ProbeSettings
from duologue.training.runs import (
    Say,
    calibrated,
    count_sources,
    count_states,
    describe_splits,
    fingerprint_of,
    max_positions,
    read_splits,
    setting_of_checkpoint,
    start_tokens,
    with_cascade,
)
from duologue.types import InputState, Token

_DIVISORS = (1.0, 4.0, 16.0)  # of the rates, tried in turn
_DEV_SHARE = 0.15  # of the memory for prefixes, at most, goes to held-out samples


@dataclass(frozen=True, slots=True)
class _Split:
    """Training samples or held-out ones, with their layouts."""

    samples: Sequence[Sample]
    layouts: Sequence[Layout]


@dataclass(frozen=True, slots=True)
class _Models:
    """The models of a run, around one base."""

    states: tuple[InputState, ...]
    fingerprint: Fingerprint  # of the base
    trained: ProbeModel
    teacher: ProbeModel | None = None
    pupil: ProbeModel | None = None  # the rows of a cascade, if they are trained as well

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that is trained."""
        return [*self.trained.trained_parameters, *(self.pupil.trained_parameters if self.pupil else [])]

    def judges(self, run: "ProbeRun") -> list[ProbeModel]:
        """What is trained and, if the two make a cascade, the other part of it."""
        other = self.pupil or (self.teacher if run.into else None)
        return [self.trained, *([other] if other else [])]


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """What to train on, how, and where to write the adapter."""

    data: Path  # train.jsonl, dev.jsonl
    out: Path
    recipe: ProbeRecipe
    num_samples: int | None = None  # the first of train.jsonl; None takes all
    memory_gb: float = 8.0  # for the prefixes
    start: Adapter | None = None  # initial values of what is trained
    teacher: Adapter | None = None  # an adapter whose probabilities are learned besides the labels
    into: Path | None = None  # the folder of the teacher, which gets the rows as its cascade
    allow_worse: bool = False  # accept an adapter that has learned nothing, or decides worse than the prompted model


def train_probe(
    run: ProbeRun,
    model: PreTrainedModel,
    tokenizer: HfTokenizer,
    *,
    name: str,
    progress: StageProgress = silent,
    say: Say = print,
) -> Adapter:
    """Train rows, and with some recipes a LoRA, around `model` on its device; write and return the adapter.

    A run that was killed continues from `checkpoint.pt` in the same folder, and with the prefixes in `prefixes`; a
    finished run removes them.

    Raises:
        BadData, UsageError: see `read_splits` and `ProbeTraining`; training has not converged.
        AdapterMismatch: `start` or `teacher` belongs to another model or kind.
        WorseAdapter: the adapter, which has been written, decides worse than the prompted model.
    """
    torch.manual_seed(run.recipe.settings.seed)
    run.out.mkdir(parents=True, exist_ok=True)
    template = Template.from_tokenizer(tokenizer)
    train, dev, states = _splits(run, template, max_positions(model), say)
    settings = run.recipe.settings_for(len(train.samples))
    fingerprint = fingerprint_of(model, tokenizer)
    timing = _has_timing(run, is_learnable(train.samples) and is_learnable(dev.samples))
    models = _models(run, states, model, start_tokens(tokenizer), fingerprint, timing=timing)
    tokens = run.memory_gb * 2**30 / kv_bytes_per_token(models.trained.prefix_model)
    max_tokens, max_dev_tokens = (max(1, int(tokens * share)) for share in (1 - _DEV_SHARE, _DEV_SHARE))
    in_memory = shards(dev.layouts, max_dev_tokens)[0]
    if len(in_memory) < len(dev.samples):
        say(f"only the first {len(in_memory)} held-out samples are used after each epoch: more do not fit into memory")

    make = partial(
        ProbeTraining,
        models.trained,
        label(train.samples, train.layouts, states, settings),
        label(dev.samples, dev.layouts, states, settings).part(in_memory),
        settings,
        run.out,
        max_tokens=max_tokens,
        teacher=models.teacher,
        pupil=models.pupil,
        pupil_settings=run.recipe.cascade,
        continues=run.start is not None,
        origin=_origin(run, name, model),
        progress=progress,
    )
    judge = partial(score_all, models.judges(run), dev.layouts, max_tokens=max_tokens)
    training, found = _converged(run, models.parameters, make, judge, accepted(dev.samples, states), say)
    if models.teacher is not None:
        models.teacher.unload()
    facts = _facts(run, settings, name, training, train.samples)
    adapter = _assembled(run, models, template, dev, facts, found, progress)
    folder = run.into or run.out
    adapter.save(folder)
    write_card(adapter, folder)
    training.files.finish(run.out / "training.png", say)
    training.discard_prefixes()
    if not run.allow_worse:
        adapter.refuse_worse()
    return adapter


def _splits(
    run: ProbeRun, template: Template, limit: int | None, say: Say
) -> tuple[_Split, _Split, tuple[InputState, ...]]:
    """Both splits, laid out in at most `limit` tokens, those of the probe included, and the states that occur.

    Says what was cut.
    """
    samples, dev_samples, states = read_splits(run.data, run.num_samples)
    say(describe_splits(samples, dev_samples))
    room = None if limit is None else limit - run.recipe.num_probes
    (layouts, truncation), (dev_layouts, dev_truncation) = (
        lay_out_within(split, template, room) for split in (samples, dev_samples)
    )
    if truncation.any or dev_truncation.any:
        say(f"longer than the {limit} tokens of this model: in training {truncation}; held out {dev_truncation}")
    return _Split(samples, layouts), _Split(dev_samples, dev_layouts), states


def _has_timing(run: ProbeRun, is_learnable: bool) -> bool:
    """Whether what is trained has a timing pair. The rows of a cascade have one if the adapter itself does."""
    if run.into is None or run.teacher is None:
        return is_learnable
    if run.teacher.has_timing and not is_learnable:
        raise BadData(
            f"the adapter in {run.into} has a timing pair, so the rows of its cascade need one, too, but train.jsonl "
            "or dev.jsonl has no samples that say whether the turn ends; use samples like those it was trained on"
        )
    return run.teacher.has_timing


def _converged(
    run: ProbeRun,
    trained: Sequence[torch.nn.Parameter],
    make: Callable[..., ProbeTraining],
    judge: Callable[[], list[Probabilities]],
    right: npt.NDArray[np.bool_],
    say: Say,
) -> tuple[ProbeTraining, list[Probabilities]]:
    """Train with lower and lower rates until something was learned.

    Returns the run that `make` made and what `judge` returned for its result, first the probabilities of what was
    trained: [N, S] or [N, S + 2]; `right`: [N, S].

    Raises:
        UsageError: it has learned nothing, not even with the lowest rates.
    """
    start = [parameter.detach().clone() for parameter in trained]
    first = setting_of_checkpoint(run.out, DIVISOR) or _DIVISORS[0]
    for divisor in (one for one in _DIVISORS if one >= first):
        training = make(divisor=divisor)
        if training.files.history:
            say(f"continuing after epoch {training.files.history[-1].number}")
        try:
            training.run(report=lambda epoch: say(_line(epoch)))
            found = judge()
            reason = None if run.allow_worse else fault(found[0][:, : right.shape[1]], right)
        except Diverged as error:
            reason = str(error)
        if reason is None:
            return training, found
        say(f"training did not converge with the recipe's rates divided by {divisor:g}: {reason}")
        training.files.discard()
        with torch.no_grad():
            for parameter, value in zip(trained, start, strict=True):
                parameter.copy_(value)
    training.discard_prefixes()
    raise UsageError(
        f"training did not converge, not even with the recipe's rates divided by {_DIVISORS[-1]:g}: {reason}. Check "
        "that the labels of the samples are right, use more samples (--samples) or more epochs (--epochs), or choose "
        "the rates (--lr, --lora-lr)"
    )


def _models(
    run: ProbeRun,
    states: tuple[InputState, ...],
    base: PreTrainedModel,
    start: Sequence[Token],
    fingerprint: Fingerprint,
    *,
    timing: bool,
) -> _Models:
    teacher = None
    if run.teacher is not None:
        run.teacher.check(fingerprint)
        if run.teacher.states != states:
            raise AdapterMismatch(f"the teacher knows {run.teacher.states}, but the samples have {states}")
        if run.recipe.lora is not None:
            raise UsageError("a teacher is for rows; alora learns more from the labels alone")
        teacher = ProbeModel.from_adapter(run.teacher, base)
    new = partial(ProbeModel, base, states, start, num_probes=run.recipe.num_probes, timing=timing)
    model = new(lora=run.recipe.lora)
    pupil = None if run.recipe.cascade is None else new()
    if run.start is not None:
        run.start.check(fingerprint)
        rows, ours = run.start.rows, model.rows()
        if rows is None or (rows.probes.shape, rows.states.shape) != (ours.probes.shape, ours.states.shape):
            raise AdapterMismatch(
                f"--start has another number of probe tokens or states than this run ({ours.probes.shape[0]} and "
                f"{ours.states.shape[0]}); adapt --probes, or omit --start"
            )
        model.set_adapter(rows, run.start.lora)
    return _Models(states, fingerprint, model, teacher, pupil)


def _assembled(
    run: ProbeRun,
    models: _Models,
    template: Template,
    dev: _Split,
    facts: Mapping[str, Any],
    found: Sequence[Probabilities],
    progress: StageProgress,
) -> Adapter:
    """The adapter that the run leaves, calibrated on the held-out samples, and with its cascade if it has one.

    found: [N, S] or [N, S + 2], of each of `_Models.judges`.
    """
    adapter, p = _calibrated(run.recipe.kind, models, models.trained, facts, dev.samples, found[0])
    if run.into is not None and run.teacher is not None:
        return with_cascade(run.teacher, adapter, dev.samples, p, found[1][:, : len(models.states)])
    prompted = models.trained.prefix_model
    compared = compare(adapter, prompted, template, dev.samples, dev.layouts, p, progress=progress)
    adapter = replace(adapter, facts={**adapter.facts, "compared": compared})
    if models.pupil is None:
        return adapter
    origin = {"base": adapter.name, "teacher": adapter.kind}
    rows, first = _calibrated("rows", models, models.pupil, origin, dev.samples, found[1])
    return with_cascade(adapter, rows, dev.samples, first, p)


def _calibrated(
    kind: str,
    models: _Models,
    model: ProbeModel,
    facts: Mapping[str, Any],
    samples: Sequence[Sample],
    p: Probabilities,
) -> tuple[Adapter, Probabilities]:
    """The adapter of `model`, calibrated on the held-out `samples` by temperatures and by thresholds.

    Also returns the calibrated probabilities [N, S]. `p` holds the uncalibrated ones: [N, S], or [N, S + 2] with a
    timing pair.
    """
    states = models.states
    p, timing = np.split(p, [len(states)], axis=1)
    temperature = fit_temperature(p, accepted(samples, states))
    temperatures, facts = [temperature], {**facts, "temperature": round(temperature, 3)}
    if timing.shape[1]:
        ends = np.array([sample.ends is True for sample in samples])
        # cuts are easy to tell and would make it too sure of the rest
        weights = balance(samples) * needs_timing(samples)
        right = np.stack([~ends, ends], 1)
        temperatures.append(fit_temperature(timing, right, weights) if weights.any() else 1.0)
        facts["timing"] = {"temperature": round(temperatures[1], 3), **timing_facts(samples, timing[:, 1])}
    model.apply_temperatures(*temperatures)
    rows, lora = model.rows(), model.lora()
    adapter = Adapter(kind, states, rows, lora, fingerprint=models.fingerprint, name=facts["base"], facts=facts)
    p = apply_temperature(p, temperature)
    return calibrated(adapter, samples, p), p


def _origin(run: ProbeRun, name: str, model: PreTrainedModel) -> dict[str, str]:
    """What determines the result besides samples and settings."""
    digests = {
        role: sha256(adapter.rows.probes.tobytes() + adapter.rows.states.tobytes()).hexdigest()
        for role, adapter in (("start", run.start), ("teacher", run.teacher))
        if adapter is not None and adapter.rows is not None
    }
    return {"model": name, "start": "", "teacher": "", "dtype": str(model.dtype), **digests}


def _line(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.number}: loss {epoch.train_loss:.4f}, held out {epoch.dev_loss:.4f}, "
        f"{100 * epoch.dev_accuracy:.1f} % right, {epoch.seconds:.0f} s"
    )


def _facts(
    run: ProbeRun, settings: ProbeSettings, name: str, training: ProbeTraining, samples: Sequence[Sample]
) -> dict[str, Any]:
    """What the adapter records about its training."""
    recipe = asdict(replace(run.recipe, settings=settings))
    recipe["looks"] = recipe.pop("presentations")  # its name in adapter folders
    manifest = run.data / "report.json"
    return {
        "base": name,
        "samples": count_states(samples),
        "sources": count_sources(samples),
        "data": json.loads(manifest.read_text(encoding="utf-8")).get("recipe") if manifest.exists() else None,
        "recipe": recipe,
        "started_from": None if run.start is None else run.start.name,
        "share": training.share,
        "teacher": None if run.teacher is None else run.teacher.kind,
        "rates": asdict(training.rates),
        "epochs": [asdict(epoch) for epoch in training.files.history],
        "seconds": round(training.files.seconds),
        "torch": torch.__version__,
    }
