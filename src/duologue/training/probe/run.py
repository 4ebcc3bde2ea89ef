"""A training run around a frozen base: from a folder of samples to an adapter folder.

A step feeds one probe for each of its samples, which are of similar length. If the prefixes of all samples fit into
memory, every epoch sees all samples. Otherwise samples are split into shards; each shard is presented `epochs` times
while it is in memory, so that no prefix is computed twice. N samples, B samples in a batch, S states.

The timing pair is trained if in both splits some samples say that the speaker goes on and some that the turn ends.
"""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample
from duologue.decisions.calibration import TEMPERATURES, apply_temperature, fit_temperature
from duologue.decisions.convergence import fault
from duologue.decisions.thresholds import Probabilities, accepted
from duologue.decisions.timing import balance, is_learnable, timing_facts
from duologue.errors import AdapterMismatch, BadData, UsageError
from duologue.models.adapters import Adapter, Fingerprint
from duologue.models.card import write_card
from duologue.text.template import Template
from duologue.training.layout import Layout, lay_out_within
from duologue.training.probe.comparison import compare
from duologue.training.probe.prefixes import Prefixes, even_shards, kv_bytes_per_token, shards
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.probe.rates import Gains, Rates
from duologue.training.recipes import ProbeRecipe, ProbeSettings
from duologue.training.runs import (
    RunFolder,
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
)
from duologue.training.tensors import state_losses, target_losses, target_rows
from duologue.types import InputState, Token

DIVISOR = "divisor of the learning rates"
"""Its name in checkpoints."""

_DIVISORS = (1.0, 4.0, 16.0)  # of the rates, tried in turn
_RECENT = 0.05  # weight of the latest loss in the running mean
_MAX_STEPS_AT_CHANCE = 200  # without a held-out loss below chance


@dataclass(frozen=True, slots=True)
class Epoch:
    """The result of one pass over the samples of a shard."""

    number: int
    step: int
    train_loss: float  # with that of the timing pair
    dev_loss: float  # of the states, at the temperature that suits the held-out samples best
    dev_accuracy: float
    seconds: float = field(compare=False)  # since the run began, prefixes included


@dataclass(frozen=True, slots=True)
class LabelledLayouts:
    """Samples as token ids, with their targets and weights."""

    layouts: Sequence[Layout]  # N of them
    targets: Tensor  # [N, S]
    weights: Tensor  # [N]
    ends: Tensor  # [N], 1 where the speaker's turn ends with the words, 0 elsewhere
    timing_weights: Tensor  # [N], of mean 1 over the samples that say whether it ends, and 0 for the others

    def part(self, indices: range) -> "LabelledLayouts":
        """The samples of a range; they need not have every state."""
        chosen = slice(indices.start, indices.stop)
        tensors = (self.targets, self.weights, self.ends, self.timing_weights)
        return LabelledLayouts(self.layouts[chosen], *(tensor[chosen] for tensor in tensors))

    @property
    def digest(self) -> str:
        """Equal for equal samples with equal targets."""
        texts = [(layout.context, layout.text) for layout in self.layouts]
        content = texts, self.targets.tolist(), self.ends.tolist(), self.timing_weights.tolist()
        return sha256(repr(content).encode()).hexdigest()


def label(
    samples: Sequence[Sample], layouts: Sequence[Layout], states: Sequence[InputState], settings: ProbeSettings
) -> LabelledLayouts:
    """Samples with targets [N, S] and weights [N] of mean 1.

    Raises:
        BadData: a state has no sample, or a sample has a state that is not among `states`.
    """
    for number, sample in enumerate(samples, 1):
        if sample.state not in states:
            raise BadData(f"sample {number} is {sample.state}; this adapter knows {[state.value for state in states]}")
    targets = target_rows(samples, states, settings.accepted_weight)
    labels = targets.argmax(1)
    counts = torch.bincount(labels, minlength=len(states))
    if missing := [state.value for state, count in zip(states, counts, strict=True) if not count]:
        raise BadData(f"no sample of {', '.join(missing)}; every state needs some")
    weights = (len(samples) / (len(states) * counts[labels])) ** settings.balance
    ends = torch.tensor([int(sample.ends is True) for sample in samples])
    timing_weights = torch.tensor(balance(samples), dtype=torch.float32)
    return LabelledLayouts(layouts, targets, weights / weights.mean(), ends, timing_weights)


class Diverged(Exception):
    """A run whose loss is far above chance, or no better than chance after many steps. `ProbeTraining` raises it."""


@final
class ProbeTraining:
    """One training run. `training.jsonl` in its folder has a line for each step and epoch."""

    def __init__(
        self,
        model: ProbeModel,
        data: LabelledLayouts,
        dev: LabelledLayouts,
        settings: ProbeSettings,
        folder: Path,
        *,
        max_tokens: int,
        divisor: float = 1.0,
        teacher: ProbeModel | None = None,
        origin: Mapping[str, Any] | None = None,
        compute: Callable[[Sequence[Layout]], Prefixes] | None = None,
        progress: StageProgress = silent,
    ) -> None:
        """Continue from the checkpoint in `folder`, if there is one.

        Args:
            max_tokens: tokens of training prefixes in memory; those of `dev` come on top.
            divisor: of the learning rates, which follow from the model (see `rates`).
            teacher: a model to learn from besides the labels. It may share the base if `model` has no LoRA.
            origin: what else determines the result (base, start, teacher); a checkpoint must agree in it.
            compute: computes prefixes, for runs that share them.

        Raises:
            UsageError: the checkpoint belongs to another run; a sample is too long for the memory.
        """
        self._model, self._data, self._dev, self._settings = model, data, dev, settings
        self._teacher, self._progress = teacher, progress
        self._compute = compute or (lambda layouts: Prefixes(model.prefix_model, layouts, progress=progress))
        self._shards = even_shards(data.layouts, max_tokens)
        self._num_steps = settings.epochs * sum(math.ceil(len(part) / settings.batch) for part in self._shards)
        self.rates = Rates.of(Gains.of(model, data.layouts), settings, divisor=divisor)
        self._mean_loss = self._guessing = math.log(data.targets.shape[1])  # the loss of guessing among the states
        self._chance = _chance(dev)
        groups = [
            {"params": [model.probes], "peak": self.rates.probes},
            {"params": model.output_rows, "peak": self.rates.outputs},
        ]
        if model.lora_parameters:
            groups.append({"params": model.lora_parameters, "peak": self.rates.lora})
        self._optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, betas=(0.9, 0.98))
        made_with = {
            **(origin or {}),
            **asdict(settings),
            DIVISOR: divisor,
            "set of samples": f"{data.digest} {dev.digest}",
            "memory for prefixes": [len(part) for part in self._shards],
            "size of what is trained": [list(value.shape) for value in model.trained_parameters],
        }
        self.files = RunFolder(
            folder / "training.jsonl",
            made_with,
            {str(number): parameter for number, parameter in enumerate(model.trained_parameters)},
            self._optimizer,
            Epoch,
        )

    def run(self, *, report: Callable[[Epoch], None] = lambda epoch: None) -> list[Epoch]:
        """Train to the end, and leave the weights with the lowest held-out loss in the model.

        Raises:
            Diverged: the rates are too high.
            UsageError: a checkpoint cannot be written.
        """
        files, epochs = self.files, self._settings.epochs
        dev_prefixes = self._compute(self._dev.layouts)
        prefixes, teacher_p, data = None, None, self._data
        for number in range(len(files.history), len(self._shards) * epochs):
            if files.num_stale >= self._settings.patience and len(self._shards) == 1:
                break
            if prefixes is None or number % epochs == 0:
                prefixes = None  # frees the memory before the next shard needs it
                data = self._data.part(self._shards[number // epochs])
                prefixes = self._compute(data.layouts)
                if self._teacher is not None:
                    teacher_p = torch.from_numpy(score_prefixes(self._teacher, prefixes))[:, : data.targets.shape[1]]
            loss = self._train_epoch(number, data, prefixes, teacher_p)
            figures = (loss, *_evaluate(self._model, self._dev, dev_prefixes), round(files.seconds, 1))
            files.record(Epoch(number + 1, files.step, *figures))
            report(files.history[-1])
            if files.step >= _MAX_STEPS_AT_CHANCE and min(past.dev_loss for past in files.history) >= self._chance:
                raise Diverged(f"after {files.step} steps, the held-out loss is no lower than by chance")
        files.restore_best()
        return files.history

    def _train_epoch(self, number: int, data: LabelledLayouts, prefixes: Prefixes, teacher_p: Tensor | None) -> float:
        """Train on every sample of a shard once; returns the mean loss. teacher_p: [N, S]."""
        torch.manual_seed(self._settings.seed + number)  # dropout is the same after a kill
        self._model.train()
        batches = prefixes.batches(self._settings.batch)
        random.Random(f"{self._settings.seed} {number}").shuffle(batches)
        files, settings = self.files, self._settings
        accuracy = f", {100 * files.history[-1].dev_accuracy:.1f} % right" if files.history else ""
        total = seen = 0.0
        for done, batch in enumerate(batches, 1):
            logits = self._model(prefixes.past(batch))
            taught = None if teacher_p is None else teacher_p[batch]
            loss = _loss(logits, data, batch, taught, settings)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self._model.trained_parameters, 1.0)
            for group in self._optimizer.param_groups:
                group["lr"] = group["peak"] * settings.rate(files.step, self._num_steps)
            self._optimizer.step()
            files.step += 1
            value, rate = float(loss.detach()), self._optimizer.param_groups[0]["lr"]
            files.log(step=files.step, loss=round(value, 5), lr=rate)
            self._check(value)
            total, seen = total + value * len(batch), seen + len(batch)
            self._progress(f"epoch {number + 1}: loss {total / seen:.3f}{accuracy}", done, len(batches))
        self._model.eval()
        return total / seen

    def _check(self, loss: float) -> None:
        """Raise `Diverged` if the losses of the latest steps are far above that of guessing."""
        self._mean_loss += _RECENT * (loss - self._mean_loss)
        if not self._mean_loss < 2 * self._guessing:  # or it is not a number
            raise Diverged(
                f"the training loss is {loss:.1f} at step {self.files.step}, and {self._guessing:.1f} by chance"
            )


def score(model: ProbeModel, layouts: Sequence[Layout], *, max_tokens: int) -> Probabilities:
    """What `score_prefixes` returns, for all samples, with at most `max_tokens` tokens of prefixes in memory."""
    parts = (layouts[part.start : part.stop] for part in shards(layouts, max_tokens))
    return np.concatenate([score_prefixes(model, Prefixes(model.prefix_model, part)) for part in parts])


def score_prefixes(model: ProbeModel, prefixes: Prefixes, batch: int = 64) -> Probabilities:
    """Probabilities [N, S] of the states for all samples of `prefixes`; [N, S + 2] with a timing pair."""
    found = np.zeros((len(prefixes), sum(map(len, model.output_rows))), dtype=np.float32)
    with torch.no_grad():
        for indices in prefixes.batches(batch):
            found[indices] = model.probabilities(prefixes.past(indices)).cpu().numpy()
    return found


def _loss(
    logits: Tensor, data: LabelledLayouts, rows: list[int], teacher_p: Tensor | None, settings: ProbeSettings
) -> Tensor:
    """The mean loss [] of a batch: cross-entropy with the targets, and with a teacher's probabilities if given.

    With a timing pair, its cross-entropy is added for the samples that say whether the turn ends.
    logits: [B, S] or [B, S + 2]; rows: indices of the samples in `data`; teacher_p: [B, S].
    """
    weights, targets = data.weights[rows].to(logits.device), data.targets[rows].to(logits.device)
    states, timing = logits.tensor_split([targets.shape[1]], 1)
    loss = (state_losses(states, targets) * weights).mean()
    if teacher_p is not None:
        distilled = -(functional.log_softmax(states, -1) * teacher_p.to(logits.device)).sum(-1)  # [B]
        loss = (1 - settings.teacher_weight) * loss + settings.teacher_weight * (distilled * weights).mean()
    if timing.shape[1]:
        losses = functional.cross_entropy(timing, data.ends[rows].to(logits.device), reduction="none")  # [B]
        loss = loss + settings.timing_weight * (losses * data.timing_weights[rows].to(logits.device)).mean()
    return loss


def _evaluate(model: ProbeModel, dev: LabelledLayouts, prefixes: Prefixes) -> tuple[float, float]:
    """Loss of the states at the best temperature, and accuracy, where accepted states count as right."""
    found = score_prefixes(model, prefixes)[:, : dev.targets.shape[1]]
    losses = [
        float(
            (target_losses(torch.from_numpy(apply_temperature(found, temperature)), dev.targets) * dev.weights).mean()
        )
        for temperature in TEMPERATURES
    ]
    right = dev.targets.gather(1, torch.from_numpy(found.argmax(1))[:, None])[:, 0] > 0
    return min(losses), float(right.float().mean())


def _chance(dev: LabelledLayouts) -> float:
    """The loss of the best probabilities that are the same for all samples."""
    shares = (dev.targets * dev.weights[:, None]).mean(0)  # [S]
    return float((target_losses((shares / shares.sum()).expand_as(dev.targets), dev.targets) * dev.weights).mean())


_DEV_SHARE = 0.15  # of the memory for prefixes, at most, goes to held-out samples


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

    A run that was killed continues from `checkpoint.pt` in the same folder; a finished run removes that file.

    Raises:
        BadData, UsageError: see `read_splits` and `ProbeTraining`; training has not converged.
        AdapterMismatch: `start` or `teacher` belongs to another model or kind.
        WorseAdapter: the adapter, which has been written, decides worse than the prompted model.
    """
    torch.manual_seed(run.recipe.settings.seed)
    run.out.mkdir(parents=True, exist_ok=True)
    samples, dev_samples, states = read_splits(run.data, run.num_samples)
    say(describe_splits(samples, dev_samples))
    settings = run.recipe.settings_for(len(samples))
    limit, template = max_positions(model), Template.from_tokenizer(tokenizer)
    room = None if limit is None else limit - run.recipe.num_probes
    (layouts, truncation), (dev_layouts, dev_truncation) = (
        lay_out_within(split, template, room) for split in (samples, dev_samples)
    )
    if truncation.any or dev_truncation.any:
        say(f"longer than the {limit} tokens of this model: in training {truncation}; held out {dev_truncation}")
    fingerprint = fingerprint_of(model, tokenizer)
    timing = is_learnable(samples) and is_learnable(dev_samples)
    probe_model, teacher = _models(run, states, model, start_tokens(tokenizer), fingerprint, timing=timing)
    tokens = run.memory_gb * 2**30 / kv_bytes_per_token(probe_model.prefix_model)
    max_tokens, max_dev_tokens = (max(1, int(tokens * share)) for share in (1 - _DEV_SHARE, _DEV_SHARE))
    in_memory = shards(dev_layouts, max_dev_tokens)[0]
    if len(in_memory) < len(dev_samples):
        say(f"only the first {len(in_memory)} held-out samples are used after each epoch: more do not fit into memory")

    make = partial(
        ProbeTraining,
        probe_model,
        label(samples, layouts, states, settings),
        label(dev_samples, dev_layouts, states, settings).part(in_memory),
        settings,
        run.out,
        max_tokens=max_tokens,
        teacher=teacher,
        origin=_origin(run, name, model),
        progress=progress,
    )
    judge = partial(score, probe_model, dev_layouts, max_tokens=max_tokens)
    training, p = _converged(run, probe_model, make, judge, accepted(dev_samples, states), say)
    if teacher is not None:
        teacher.unload()
    facts = _facts(run, settings, name, training, samples)
    adapter, p = _calibrated(run, probe_model, states, fingerprint, facts, dev_samples, p)
    compared = compare(adapter, probe_model.prefix_model, template, dev_samples, dev_layouts, p, progress=progress)
    adapter = replace(adapter, facts={**adapter.facts, "compared": compared})
    adapter.save(run.out)
    write_card(adapter, run.out)
    training.files.finish(run.out / "training.png", say)
    if not run.allow_worse:
        adapter.refuse_worse()
    return adapter


def _converged(
    run: ProbeRun,
    model: ProbeModel,
    make: Callable[..., ProbeTraining],
    judge: Callable[[], Probabilities],
    right: npt.NDArray[np.bool_],
    say: Say,
) -> tuple[ProbeTraining, Probabilities]:
    """Train `model` with lower and lower rates until it has learned something.

    Returns the run that `make` made and what `judge` returned for its result: p, [N, S] or [N, S + 2]; `right`: [N, S].

    Raises:
        UsageError: it has learned nothing, not even with the lowest rates.
    """
    start = [parameter.detach().clone() for parameter in model.trained_parameters]
    first = setting_of_checkpoint(run.out, DIVISOR) or _DIVISORS[0]
    for divisor in (one for one in _DIVISORS if one >= first):
        training = make(divisor=divisor)
        try:
            training.run(report=lambda epoch: say(_line(epoch)))
            p = judge()
            reason = None if run.allow_worse else fault(p[:, : right.shape[1]], right)
        except Diverged as error:
            reason = str(error)
        if reason is None:
            return training, p
        say(f"training did not converge with the recipe's rates divided by {divisor:g}: {reason}")
        training.files.discard()
        model.restore(start)
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
) -> tuple[ProbeModel, ProbeModel | None]:
    """The model to train and its teacher, if there is one, around the same base."""
    teacher = None
    if run.teacher is not None:
        run.teacher.check(fingerprint)
        if run.teacher.states != states:
            raise AdapterMismatch(f"the teacher knows {run.teacher.states}, but the samples have {states}")
        if run.recipe.lora is not None:
            raise UsageError("a teacher is for rows; alora learns more from the labels alone")
        teacher = ProbeModel.from_adapter(run.teacher, base)
    model = ProbeModel(base, states, start, num_probes=run.recipe.num_probes, lora=run.recipe.lora, timing=timing)
    if run.start is not None:
        run.start.check(fingerprint)
        rows, ours = run.start.rows, model.rows()
        if rows is None or (rows.probes.shape, rows.states.shape) != (ours.probes.shape, ours.states.shape):
            raise AdapterMismatch(
                f"--start has another number of probe tokens or states than this run ({ours.probes.shape[0]} and "
                f"{ours.states.shape[0]}); adapt --probes, or omit --start"
            )
        model.set_adapter(rows, run.start.lora)
    return model, teacher


def _calibrated(
    run: ProbeRun,
    model: ProbeModel,
    states: tuple[InputState, ...],
    fingerprint: Fingerprint,
    facts: Mapping[str, Any],
    samples: Sequence[Sample],
    p: Probabilities,
) -> tuple[Adapter, Probabilities]:
    """The adapter, calibrated on the held-out samples by temperatures and by thresholds, and its probabilities [N, S].

    p: [N, S] or [N, S + 2], before that.
    """
    p, timing = np.split(p, [len(states)], axis=1)
    temperature = fit_temperature(p, accepted(samples, states))
    temperatures, facts = [temperature], {**facts, "temperature": round(temperature, 3)}
    if timing.shape[1]:
        ends = np.array([sample.ends is True for sample in samples])
        temperatures.append(fit_temperature(timing, np.stack([~ends, ends], 1), balance(samples)))
        facts["timing"] = {"temperature": round(temperatures[1], 3), **timing_facts(samples, timing[:, 1])}
    model.apply_temperatures(*temperatures)
    adapter = Adapter(
        run.recipe.kind,
        states,
        model.rows(),
        model.lora(),
        fingerprint=fingerprint,
        name=facts["base"],
        facts=facts,
    )
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
        "teacher": None if run.teacher is None else run.teacher.kind,
        "rates": asdict(training.rates),
        "epochs": [asdict(epoch) for epoch in training.files.history],
        "seconds": round(training.files.seconds),
        "torch": torch.__version__,
    }
