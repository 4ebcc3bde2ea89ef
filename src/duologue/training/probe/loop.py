"""The training loop around a frozen base: one probe per sample and step, in batches of samples of similar length.

If the prefixes of all samples fit into memory, every epoch sees all samples. Otherwise samples are split into shards;
each shard is presented `epochs` times while it is in memory, so that no prefix is computed twice. N samples, B samples
in a batch, S states.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from duologue.errors import BadData
from duologue.training.layout import Layout
from duologue.training.probe.prefixes import Prefixes, even_shards, shards
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.recipes import ProbeSettings
from duologue.training.run_folder import RunFolder
from duologue.training.tensors import state_losses, target_losses, target_rows
from duologue.types import InputState

ComputePrefixes = Callable[[Sequence[Layout]], Prefixes]
"""From layouts to their prefixes, with the base alone."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The result of one pass over the samples of a shard."""

    number: int
    step: int
    train_loss: float
    dev_loss: float  # at the temperature that suits the held-out samples best; confidence is calibrated afterwards
    dev_accuracy: float
    seconds: float = field(compare=False)  # since the run began, prefixes included


@dataclass(frozen=True, slots=True)
class LabelledLayouts:
    """Samples as token ids, with their targets and weights."""

    layouts: Sequence[Layout]  # N of them
    targets: Tensor  # [N, S]
    weights: Tensor  # [N]

    def part(self, indices: range) -> "LabelledLayouts":
        """The samples of a range; they need not have every state."""
        chosen = slice(indices.start, indices.stop)
        return LabelledLayouts(self.layouts[chosen], self.targets[chosen], self.weights[chosen])

    @property
    def digest(self) -> str:
        """Equal for equal samples with equal targets."""
        tokens = repr([(layout.context, layout.text) for layout in self.layouts])
        return sha256(f"{tokens} {self.targets.tolist()}".encode()).hexdigest()


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
    return LabelledLayouts(layouts, targets, weights / weights.mean())


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
        teacher: ProbeModel | None = None,
        origin: Mapping[str, Any] | None = None,
        compute: ComputePrefixes | None = None,
        progress: StageProgress = silent,
    ) -> None:
        """Continue from the checkpoint in `folder`, if there is one.

        Args:
            max_tokens: tokens of training prefixes in memory; those of `dev` come on top.
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
        groups = [{"params": [model.probes], "peak": settings.lr}, {"params": [model.states], "peak": settings.lr / 2}]
        if model.lora_parameters:
            groups.append({"params": model.lora_parameters, "peak": settings.lora_lr})
        self._optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, betas=(0.9, 0.98))
        made_with = {
            **(origin or {}),
            **asdict(settings),
            "set of samples": f"{data.digest} {dev.digest}",
            "memory for prefixes": [len(part) for part in self._shards],
            "size of what is trained": [list(value.shape) for value in model.trained_parameters],
        }
        trained = {str(number): parameter for number, parameter in enumerate(model.trained_parameters)}
        self.files = RunFolder(folder / "training.jsonl", made_with, trained, self._optimizer, Epoch)

    def run(self, *, report: Callable[[Epoch], None] = lambda epoch: None) -> list[Epoch]:
        """Train to the end, and leave the weights with the lowest held-out loss in the model.

        Raises:
            UsageError: a checkpoint cannot be written.
        """
        files, epochs = self.files, self._settings.epochs
        with self._lora_disabled():
            dev_prefixes = self._compute(self._dev.layouts)
        prefixes, teacher_p, data = None, None, self._data
        for number in range(len(files.history), len(self._shards) * epochs):
            if files.num_stale >= self._settings.patience and len(self._shards) == 1:
                break
            if prefixes is None or number % epochs == 0:
                prefixes = None  # frees the memory before the next shard needs it
                data = self._data.part(self._shards[number // epochs])
                with self._lora_disabled():
                    prefixes = self._compute(data.layouts)
                if self._teacher is not None:
                    teacher_p = torch.from_numpy(score_prefixes(self._teacher, prefixes))
            with nullcontext() if self._teacher is None else self._teacher.lora_disabled():
                loss = self._train_epoch(number, data, prefixes, teacher_p)
                figures = (loss, *_evaluate(self._model, self._dev, dev_prefixes), round(files.seconds, 1))
                files.record(Epoch(number + 1, files.step, *figures))
            report(files.history[-1])
        files.restore_best()
        return files.history

    def _train_epoch(self, number: int, data: LabelledLayouts, prefixes: Prefixes, teacher_p: Tensor | None) -> float:
        """Train on every sample of a shard once; returns the mean loss. teacher_p: [N, S]."""
        torch.manual_seed(self._settings.seed + number)  # dropout is the same after a kill
        self._model.train()
        batches = prefixes.batches(self._settings.batch)
        random.Random(f"{self._settings.seed} {number}").shuffle(batches)
        history = self.files.history
        accuracy = f", {100 * history[-1].dev_accuracy:.1f} % right" if history else ""
        total = seen = 0.0
        for done, batch in enumerate(batches, 1):
            logits = self._model(prefixes.past(batch))
            taught = None if teacher_p is None else teacher_p[batch]
            value = self._step(_loss(logits, data, batch, taught, self._settings))
            total, seen = total + value * len(batch), seen + len(batch)
            self._progress(f"epoch {number + 1}: loss {total / seen:.3f}{accuracy}", done, len(batches))
        self._model.eval()
        return total / seen

    def _step(self, loss: Tensor) -> float:
        """One optimiser step on the loss []; returns its value."""
        files, settings = self.files, self._settings
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.trained_parameters, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * settings.rate(files.step, self._num_steps)
        self._optimizer.step()
        files.step += 1
        value = float(loss.detach())
        files.log(step=files.step, loss=round(value, 5), lr=settings.lr * settings.rate(files.step, self._num_steps))
        return value

    @contextmanager
    def _lora_disabled(self) -> Iterator[None]:
        """Run the base as it is, for prefixes."""
        with self._model.lora_disabled(), nullcontext() if self._teacher is None else self._teacher.lora_disabled():
            yield


def score(model: ProbeModel, layouts: Sequence[Layout], *, max_tokens: int) -> Probabilities:
    """Probabilities [N, S] of the states for all samples, with at most `max_tokens` tokens of prefixes in memory."""
    found = np.zeros((len(layouts), len(model.states)), dtype=np.float32)
    for part in shards(layouts, max_tokens):
        with model.lora_disabled():
            prefixes = Prefixes(model.prefix_model, layouts[part.start : part.stop])
        found[part.start : part.stop] = score_prefixes(model, prefixes)
    return found


def score_prefixes(model: ProbeModel, prefixes: Prefixes, batch: int = 64) -> Probabilities:
    """Probabilities [N, S] of the states for all samples of `prefixes`."""
    found = np.zeros((len(prefixes), len(model.states)), dtype=np.float32)
    with torch.no_grad():
        for indices in prefixes.batches(batch):
            found[indices] = functional.softmax(model(prefixes.past(indices)), -1).cpu().numpy()
    return found


def _loss(
    logits: Tensor, data: LabelledLayouts, rows: list[int], teacher_p: Tensor | None, settings: ProbeSettings
) -> Tensor:
    """The mean loss [] of a batch: cross-entropy with the targets, and with a teacher's probabilities if given.

    logits: [B, S]; rows: indices of the samples in `data`; teacher_p: [B, S].
    """
    weights, targets = data.weights[rows].to(logits.device), data.targets[rows].to(logits.device)
    loss = (state_losses(logits, targets) * weights).mean()
    if teacher_p is None:
        return loss
    distilled = -(functional.log_softmax(logits, -1) * teacher_p.to(logits.device)).sum(-1)  # [B]
    return (1 - settings.teacher_weight) * loss + settings.teacher_weight * (distilled * weights).mean()


def _evaluate(model: ProbeModel, dev: LabelledLayouts, prefixes: Prefixes) -> tuple[float, float]:
    """Loss at the best temperature, and accuracy, where accepted states count as right."""
    found = score_prefixes(model, prefixes)
    losses = [
        float(
            (target_losses(torch.from_numpy(apply_temperature(found, temperature)), dev.targets) * dev.weights).mean()
        )
        for temperature in TEMPERATURES
    ]
    right = dev.targets.gather(1, torch.from_numpy(found.argmax(1))[:, None])[:, 0] > 0
    return min(losses), float(right.float().mean())
