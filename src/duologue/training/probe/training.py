"""Steps around a frozen base, over prefixes that are computed once. `run` makes an adapter of what they train.

A step feeds one probe for each of its samples, which are of similar length. If the prefixes of all samples fit into
memory, every epoch sees all samples. Otherwise samples are split into shards; each shard is presented `epochs` times
while it is in memory, so that no prefix is computed twice. N samples, B samples in a batch, S states.

The rows of a cascade are trained beside a LoRA, as its pupil, in the same steps and on the same prefixes: its
probabilities in a step are what they learn.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample
from duologue.decisions.calibration import TEMPERATURES, apply_temperature
from duologue.decisions.thresholds import Probabilities
from duologue.decisions.timing import balance
from duologue.errors import BadData
from duologue.training.layout import Layout
from duologue.training.probe.kept import KeptPrefixes
from duologue.training.probe.prefixes import Prefixes, even_shards, shards
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.probe.rates import Gains, Rates
from duologue.training.recipes import ProbeSettings
from duologue.training.runs import RunFolder
from duologue.training.tensors import state_losses, target_losses, target_rows
from duologue.types import InputState

DIVISOR = "divisor of the learning rates"
"""Its name in checkpoints."""

_RECENT = 0.05  # weight of the latest loss in the running mean
_CHANCE_STEPS = 50
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
    timing_weights: Tensor  # [N], of the samples that say whether it ends, and 0 for the others

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


_SHARES = (0.3, 0.5, 0.7, 1.0)
"""Of what a run has found, between the weights that it started from and these."""


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
        pupil: ProbeModel | None = None,
        pupil_settings: ProbeSettings | None = None,
        continues: bool = False,
        origin: Mapping[str, Any] | None = None,
        compute: Callable[[Sequence[Layout]], Prefixes] | None = None,
        progress: StageProgress = silent,
    ) -> None:
        """Continue from the checkpoint in `folder`, if there is one.

        Args:
            max_tokens: tokens of training prefixes in memory; those of `dev` come on top.
            divisor: of the learning rates, which follow from the model (see `rates`).
            teacher: a model to learn from besides the labels. It may share the base if `model` has no LoRA.
            pupil: a model without a LoRA around the same base, which learns from `model` in the same steps, with the
                rates and weights of `pupil_settings`. It does not change what `model` learns.
            continues: `model` has been trained before, on other samples; see `_interpolate`.
            origin: what else determines the result (base, start, teacher); a checkpoint must agree in it.
            compute: computes prefixes, for runs that share them.

        Raises:
            UsageError: the checkpoint belongs to another run; a sample is too long for the memory.
        """
        self._model, self._data, self._dev, self._settings = model, data, dev, settings
        self._teacher, self._pupil, self._progress = teacher, pupil, progress
        self._pupil_settings = pupil_settings or settings
        self._start = model.copied() if continues else None
        self.share = 1.0  # of what this run has found in the weights that it leaves
        self._compute = compute or self._computed
        self._kept = KeptPrefixes(folder / "prefixes", repr(sorted((origin or {}).items())))
        self._shards = even_shards(data.layouts, max_tokens)
        self._num_steps = settings.epochs * sum(math.ceil(len(part) / settings.batch) for part in self._shards)
        progress("learning rates", 0, 1)
        self.rates = Rates.of(Gains.of(model, data.layouts), settings, divisor=divisor)
        self._mean_loss = self._guessing = math.log(data.targets.shape[1])  # the loss of guessing among the states
        self._chance = _chance(dev)
        groups, trained = _groups(model, self.rates), model.trained_parameters
        if pupil is not None:
            rates = Rates.of(Gains.of(pupil, data.layouts), self._pupil_settings, divisor=divisor)
            groups, trained = groups + _groups(pupil, rates), trained + pupil.trained_parameters
        progress("learning rates", 1, 1)
        self._optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, betas=(0.9, 0.98))
        made_with = {
            **(origin or {}),
            **asdict(settings),
            **({} if pupil is None else {"settings of the cascade": asdict(self._pupil_settings)}),
            DIVISOR: divisor,
            "set of samples": f"{data.digest} {dev.digest}",
            "memory for prefixes": [len(part) for part in self._shards],
            "size of what is trained": [list(value.shape) for value in trained],
        }
        self.files = RunFolder(
            folder / "training.jsonl",
            made_with,
            {str(number): parameter for number, parameter in enumerate(trained)},
            self._optimizer,
            Epoch,
        )

    def run(self, *, report: Callable[[Epoch], None] = lambda epoch: None) -> list[Epoch]:
        """Train to the end, and leave the weights with the lowest held-out loss in the model.

        Raises:
            Diverged: see there.
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
        if self._start is not None:
            self._interpolate(self._start, dev_prefixes)
        return files.history

    def _interpolate(self, start: Sequence[Tensor], dev_prefixes: Prefixes) -> None:
        """Leave the weights between `start` and those that were found which have the lowest held-out loss.

        What was learned on two sets of samples is more robust together, on other sources above all, than the later part
        alone (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).
        """
        model, found = self._model, self._model.copied()
        losses = {}
        for share in _SHARES:
            model.restore([torch.lerp(a, b, share) for a, b in zip(start, found, strict=True)])
            losses[share] = _evaluate(model, self._dev, dev_prefixes)[0]
        self.share = min(losses, key=losses.__getitem__)
        model.restore([torch.lerp(a, b, self.share) for a, b in zip(start, found, strict=True)])

    def discard_prefixes(self) -> None:
        """Remove the prefixes that a killed run would go on with."""
        self._kept.discard()

    def _computed(self, layouts: Sequence[Layout]) -> Prefixes:
        """The prefixes of the held-out samples or of a shard, which replaces the shard before it on the disk."""
        kept, name = self._kept.of(layouts), "prefixes of held-out samples"
        if layouts is not self._dev.layouts:
            name = "prefixes"
            self._kept.keep_only(kept, self._kept.of(self._dev.layouts))
        return Prefixes(self._model.prefix_model, layouts, kept=kept, name=name, progress=self._progress)

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
            past = prefixes.past(batch)
            logits = self._model(past)
            taught = None if teacher_p is None else teacher_p[batch]
            loss = _loss(logits, data, batch, taught, settings)
            self._optimizer.zero_grad()
            _backward(loss, self._model)
            if self._pupil is not None:
                taught = logits.detach()[:, : data.targets.shape[1]].softmax(-1)
                _backward(_loss(self._pupil(past), data, batch, taught, self._pupil_settings), self._pupil)
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


def _groups(model: ProbeModel, rates: Rates) -> list[dict[str, Any]]:
    """What is trained of `model`, for an optimizer, with the peaks of its learning rates."""
    groups: list[dict[str, Any]] = [
        {"params": [model.probes], "peak": rates.probes},
        {"params": model.output_rows, "peak": rates.outputs},
    ]
    return [*groups, {"params": model.lora_parameters, "peak": rates.lora}] if model.lora_parameters else groups


def _backward(loss: Tensor, model: ProbeModel) -> None:
    """Add the gradients of `loss`, limited in their norm, to those of `model`."""
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.trained_parameters, 1.0)


def score(model: ProbeModel, layouts: Sequence[Layout], *, max_tokens: int) -> Probabilities:
    """What `score_prefixes` returns, for all samples, with at most `max_tokens` tokens of prefixes in memory."""
    return score_all([model], layouts, max_tokens=max_tokens)[0]


def score_all(models: Sequence[ProbeModel], layouts: Sequence[Layout], *, max_tokens: int) -> list[Probabilities]:
    """The same for several models around one base, whose prefixes are computed once."""
    found: list[list[Probabilities]] = [[] for _ in models]
    for part in shards(layouts, max_tokens):
        prefixes = Prefixes(models[0].prefix_model, layouts[part.start : part.stop])
        for model, scores in zip(models, found, strict=True):
            scores.append(score_prefixes(model, prefixes))
    return [np.concatenate(scores) for scores in found]


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
    """The loss of the best probabilities that are the same for all samples, found by expectation maximisation."""
    p = torch.full_like(dev.targets[0], 1 / dev.targets.shape[1])  # [S]
    for _ in range(_CHANCE_STEPS):
        responsible = dev.targets * p
        p = (responsible / responsible.sum(1, keepdim=True) * dev.weights[:, None]).sum(0) / dev.weights.sum()
    return float((target_losses(p.expand_as(dev.targets), dev.targets) * dev.weights).mean())
