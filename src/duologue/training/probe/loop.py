"""The loop: shards of samples whose prefixes fit into memory, batches by length, one probe per sample and step.

N samples, B of a batch, S states.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from duologue.data.samples import Sample
from duologue.decisions.calibration import TEMPERATURES, apply_temperature
from duologue.decisions.thresholds import Probabilities
from duologue.errors import BadData, UsageError
from duologue.training import checkpoints
from duologue.training.layout import Layout
from duologue.training.probe.prefixes import Prefixes, Progress, even_shards, shards, silent
from duologue.training.probe.probe_model import ProbeModel
from duologue.types import InputState

Compute = Callable[[Sequence[Layout]], Prefixes]
"""From samples in tokens to their prefixes, by the base alone."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How rows, and a LoRA with them, are trained."""

    epochs: int = 8  # times that every sample is seen, at most
    batch: int = 64
    lr: float = 4e-3  # of the probe's rows, in units of the embeddings' own size; the states' rows take half of it
    lora_lr: float = 1e-3
    warmup: float = 0.05  # share of the steps; then a cosine down to a twentieth
    weight_decay: float = 0.0
    accepted_weight: float = 0.4  # what the probability of a state that would be right too counts
    balance: float = 0.5  # 0: samples count alike; 1: states count alike
    teacher_weight: float = 0.7  # of a teacher's probabilities, where there is one; the labels have the rest
    patience: int = 3  # epochs without a lower loss on held-out samples before it ends
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.patience) < 1 or min(self.lr, self.lora_lr) <= 0:
            raise UsageError("epochs, batch, patience and learning rates must be positive")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What the samples of one shard, seen once, came to."""

    number: int
    step: int
    train_loss: float
    dev_loss: float  # at the temperature that suits the held-out samples best: how sure it is, is put right afterwards
    dev_accuracy: float
    seconds: float = field(compare=False)  # since the run began, prefixes and all


@dataclass(frozen=True, slots=True)
class Labelled:
    """Samples in tokens, with what should come out. targets: [N, S], weights: [N]."""

    layouts: Sequence[Layout]
    targets: Tensor
    weights: Tensor

    def first(self, number: int) -> "Labelled":
        """So many of them; they need not have every state."""
        return Labelled(self.layouts[:number], self.targets[:number], self.weights[:number])

    @property
    def digest(self) -> str:
        """The same for the same samples with the same labels."""
        tokens = repr([(layout.context, layout.text) for layout in self.layouts])
        return sha256(f"{tokens} {self.targets.tolist()}".encode()).hexdigest()


def train(
    model: ProbeModel,
    data: Labelled,
    dev: Labelled,
    settings: Settings,
    *,
    max_tokens: int,
    checkpoint: Path | None = None,
    log: Path | None = None,
    progress: Progress = silent,
    report: Callable[[Epoch], None] = lambda epoch: None,
    compute: Compute | None = None,
    teacher: ProbeModel | None = None,
    origin: Mapping[str, str] | None = None,
) -> list[Epoch]:
    """Train `model` in place; it ends with what was best on `dev`.

    At most `max_tokens` tokens of prefixes are in memory beside those of `dev`. If all fit, every epoch sees all
    samples; otherwise each shard is seen `epochs` times while it is there, so that no prefix is computed twice.
    With `checkpoint`, every epoch is written there, and a run that was killed goes on from the last one, exactly, if it
    is of the same `origin` (what else decides how it comes out: the model, where it began, who teaches it). `log`
    gets a line of JSON for every step and epoch. `compute` gives the prefixes, for runs that share them. `model` learns
    from the probabilities of a `teacher`, too; both may stand around the same base, if `model` has no LoRA.

    Raises:
        UsageError: the checkpoint is of another run, or cannot be written; a sample is too long for the memory.
    """
    began = time.monotonic()
    compute = compute or (lambda layouts: Prefixes(model.prefix_model, layouts, progress=progress))
    parts = even_shards(data.layouts, max_tokens)
    with _base_alone(model, teacher):
        dev_prefixes = compute(dev.layouts)
    made_with = {
        **(origin or {}),
        **asdict(settings),
        "set of samples": f"{data.digest} {dev.digest}",
        "memory for prefixes": [len(part) for part in parts],
        "size of what is trained": [list(value.shape) for value in model.trained()],
    }
    run = _Run(model, settings, [len(part) for part in parts], made_with, began, checkpoint, log)
    first = run.next_epoch
    prefixes: Prefixes | None = None
    taught: Tensor | None = None
    for number in range(first, len(parts) * settings.epochs):
        part, is_new = parts[number // settings.epochs], number % settings.epochs == 0
        if run.stale >= settings.patience and len(parts) == 1:
            break
        if is_new or number == first:
            prefixes = None  # the old ones make room before there are new ones
            with _base_alone(model, teacher):
                prefixes = compute([data.layouts[i] for i in part])
            taught = None if teacher is None else torch.from_numpy(score_prefixes(teacher, prefixes))
        assert prefixes is not None
        run.begin()
        torch.manual_seed(settings.seed + number)  # what drops out is the same after a kill
        model.train()
        batches = list(prefixes.batches(range(len(part)), settings.batch))
        random.Random(f"{settings.seed} {number}").shuffle(batches)
        with nullcontext() if teacher is None else teacher.base_alone():
            for done, batch in enumerate(batches):
                logits = model(prefixes.past(batch))
                rows = [part[i] for i in batch]
                loss = _loss(logits, data, rows, None if taught is None else taught[batch], settings)
                run.step(loss, len(batch))
                progress(f"epoch {number + 1}: {run.figures}", done + 1, len(batches))
            model.eval()
            report(run.finish(number, _judge(model, dev, dev_prefixes)))
    model.restore(run.best)
    return run.history


def label(samples: Sequence[Sample], layouts: Sequence[Layout], states: Sequence[InputState], s: Settings) -> Labelled:
    """Right states (1 the label, `accepted_weight` those accepted) and each sample's weight, mean 1.

    Raises:
        BadData: a state without a single sample, or a sample with a state that is not among `states`.
    """
    targets = torch.zeros(len(samples), len(states))
    column = {state: number for number, state in enumerate(states)}
    for row, sample in enumerate(samples):
        if sample.state not in column:
            raise BadData(f"sample {row + 1} is {sample.state}; this adapter knows {[state.value for state in states]}")
        for state in sample.accept:
            if state in column:
                targets[row, column[state]] = s.accepted_weight
        targets[row, column[sample.state]] = 1.0
    labels = targets.argmax(1)
    counts = torch.bincount(labels, minlength=len(states))
    if missing := [state.value for state, count in zip(states, counts, strict=True) if not count]:
        raise BadData(f"no sample of {', '.join(missing)}; every state needs some")
    weights = (len(samples) / (len(states) * counts[labels])) ** s.balance
    return Labelled(layouts, targets, weights / weights.mean())


def score(
    model: ProbeModel, layouts: Sequence[Layout], *, max_tokens: int, progress: Progress = silent
) -> Probabilities:
    """Probabilities of the states for every sample; at most `max_tokens` tokens of prefixes at a time."""
    found = np.zeros((len(layouts), len(model.states)), dtype=np.float32)
    for part in shards(layouts, max_tokens):
        with model.base_alone():
            prefixes = Prefixes(model.prefix_model, [layouts[i] for i in part])
        found[part.start : part.stop] = score_prefixes(model, prefixes)
        progress("judging", part.stop, len(layouts))
    return found


def score_prefixes(model: ProbeModel, prefixes: Prefixes, batch: int = 64) -> Probabilities:
    """Probabilities of the states for every sample of `prefixes`."""
    found = np.zeros((len(prefixes), len(model.states)), dtype=np.float32)
    with torch.no_grad():
        for indices in prefixes.batches(range(len(prefixes)), batch):
            found[indices] = functional.softmax(model(prefixes.past(indices)), -1).cpu().numpy()
    return found


def _loss(logits: Tensor, data: Labelled, rows: list[int], taught: Tensor | None, settings: Settings) -> Tensor:
    """Mean negative log of the probability that right states get together, accepted ones counting less.

    logits: [B, S]; rows: which samples they are of; taught: [B, S], a teacher's probabilities.
    """
    weights, targets = data.weights[rows].to(logits.device), data.targets[rows].to(logits.device)
    right = (functional.softmax(logits, -1) * targets).sum(-1).clamp_min(1e-6)
    loss = -(right.log() * weights).mean()
    if taught is None:
        return loss
    learnt = -(functional.log_softmax(logits, -1) * taught.to(logits.device)).sum(-1)
    return (1 - settings.teacher_weight) * loss + settings.teacher_weight * (learnt * weights).mean()


def _judge(model: ProbeModel, dev: Labelled, prefixes: Prefixes) -> tuple[float, float]:
    found = score_prefixes(model, prefixes)
    losses = []
    for temperature in TEMPERATURES:
        p = torch.from_numpy(apply_temperature(found, temperature))
        losses.append(float(-((p * dev.targets).sum(-1).clamp_min(1e-6).log() * dev.weights).mean()))
    right = dev.targets.gather(1, torch.from_numpy(found.argmax(1))[:, None])[:, 0] > 0
    return min(losses), float(right.float().mean())


@contextmanager
def _base_alone(model: ProbeModel, teacher: ProbeModel | None) -> Iterator[None]:
    """The base as it is, for prefixes."""
    with model.base_alone(), nullcontext() if teacher is None else teacher.base_alone():
        yield


class _Run:
    """Optimiser, schedule, the best so far, and the file they can be taken up again from."""

    def __init__(
        self,
        model: ProbeModel,
        settings: Settings,
        parts: Sequence[int],
        made_with: Mapping[str, Any],
        began: float,
        checkpoint: Path | None,
        log: Path | None,
    ) -> None:
        """`parts` has the number of samples of each shard, `made_with` what a checkpoint must agree in."""
        self._made_with, self._began = dict(made_with), began
        steps = settings.epochs * sum(math.ceil(num / settings.batch) for num in parts)
        self._model, self._checkpoint, self._log = model, checkpoint, log
        self._parameters = [model.probes, model.states, *model.lora_parameters]
        groups = [{"params": [model.probes], "lr": settings.lr}, {"params": [model.states], "lr": settings.lr / 2}]
        if model.lora_parameters:
            groups.append({"params": model.lora_parameters, "lr": settings.lora_lr})
        self._optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, betas=(0.9, 0.98))
        warmup = max(1, int(steps * settings.warmup))

        def scale(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, scale)
        self._steps = 0
        self._total, self._seen = 0.0, 0
        self.history: list[Epoch] = []
        self.best = model.trained()
        self.stale = 0
        self.next_epoch = 0
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)

    @property
    def figures(self) -> str:
        """Of the epoch that runs, and of the held-out samples after the last one."""
        loss = f"loss {self._total / self._seen:.3f}"
        return f"{loss}, {100 * self.history[-1].dev_accuracy:.1f} % right" if self.history else loss

    def begin(self) -> None:
        """An epoch begins."""
        self._total, self._seen = 0.0, 0

    def step(self, loss: Tensor, count: int) -> None:
        """One step down `loss`, the mean over `count` samples."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._steps += 1
        value = float(loss.detach())
        self._total, self._seen = self._total + value * count, self._seen + count
        self._write({"step": self._steps, "loss": round(value, 5), "lr": self._schedule.get_last_lr()[0]})

    def finish(self, number: int, judged: tuple[float, float]) -> Epoch:
        """An epoch ends."""
        seconds = round(time.monotonic() - self._began, 1)
        epoch = Epoch(number + 1, self._steps, self._total / self._seen, *judged, seconds)
        if epoch.dev_loss < min((past.dev_loss for past in self.history), default=math.inf):
            self.best, self.stale = self._model.trained(), 0
        else:
            self.stale += 1
        self.history.append(epoch)
        self.next_epoch = epoch.number
        row = asdict(epoch)
        del row["seconds"]  # the same run writes the same log
        self._write(row)
        if self._checkpoint is not None:
            self._save(self._checkpoint)
        return epoch

    def _write(self, row: dict[str, Any]) -> None:
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _save(self, path: Path) -> None:
        state = {
            "made_with": self._made_with,
            "trained": self._model.trained(),
            "best": self.best,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "stale": self.stale,
            "steps": self._steps,
        }
        checkpoints.write(path, state)

    def _load(self, path: Path) -> None:
        state = checkpoints.read(path, self._made_with)
        self._model.restore(state["trained"])
        self.best = state["best"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.stale, self._steps = state["stale"], state["steps"]
        self.next_epoch = len(self.history)
        self._began -= self.history[-1].seconds
        if self._log is not None:
            checkpoints.forget_log_behind(self._log, self._steps)
