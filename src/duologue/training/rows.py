"""The `rows` kind: train the embedding of the probe and the output rows of the states; the base stays frozen.

B samples, P probe tokens, D hidden size, S states, T tokens of the prefix. An epoch feeds P tokens a sample; what comes
before is cached (`prefixes`). The weights are frozen, so gradients flow through them to the probe's rows alone.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from duologue.backends.rows import Rows
from duologue.data.samples import Sample
from duologue.errors import BadData, UsageError
from duologue.training.prefixes import Prefixes, Progress, decoder, silent
from duologue.types import InputState

Probabilities = npt.NDArray[np.float32]
"""[N, S], rows summing to 1, columns in the order of the states."""


@dataclass(frozen=True, slots=True)
class RowsSettings:
    """How rows are trained. The defaults train the default model's."""

    epochs: int = 12
    batch: int = 48
    lr: float = 4e-3  # of the probe's rows, in units of the embeddings' own size; the states' rows take it as it is
    warmup: float = 0.05  # share of the steps; then a cosine down to a twentieth
    weight_decay: float = 0.0
    accepted_weight: float = 0.4  # what the probability of a state that would be right too counts
    balance: float = 0.5  # 0: samples count alike; 1: states count alike
    patience: int = 4  # epochs without a better dev loss before it ends
    num_probes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.num_probes, self.patience) < 1 or self.lr <= 0:
            raise UsageError("epochs, batch, num_probes, patience and lr must be positive")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch came to."""

    number: int
    train_loss: float
    dev_loss: float
    dev_accuracy: float


class RowsModel(nn.Module):
    """A frozen base with trainable rows: cached prefixes in, logits of the states out."""

    def __init__(
        self, base: PreTrainedModel, states: Sequence[InputState], start: Sequence[int], num_probes: int
    ) -> None:
        """`start` are ids whose mean embedding the probe starts from; several probes start from one id each."""
        super().__init__()
        self.base = base.requires_grad_(False).eval()
        embedding = base.get_input_embeddings().weight.detach().float()
        chosen = embedding[list(start)]
        self.unit = float(embedding.std())  # the probe is kept in this unit, so that one learning rate fits all models
        rows = chosen.mean(0, keepdim=True) if num_probes == 1 else chosen[torch.arange(num_probes) % len(chosen)]
        self.probes = nn.Parameter(rows / self.unit)  # [P, D]
        self.states = nn.Parameter(torch.randn(len(states), embedding.shape[1]) * 0.01)  # [S, D]

    def forward(self, prefix: tuple[Any, Tensor, Tensor]) -> Tensor:
        """Logits [B, S] at the last probe token after each prefix (`Prefixes.cache`)."""
        cache, mask, lengths = prefix
        num_samples, num_probes = len(lengths), len(self.probes)
        fed = (self.probes * self.unit).to(self.base.dtype).expand(num_samples, -1, -1)  # [B, P, D]
        output = decoder(self.base)(
            inputs_embeds=fed,
            attention_mask=torch.cat([mask, mask.new_ones(num_samples, num_probes)], 1),
            position_ids=lengths[:, None] + torch.arange(num_probes)[None],
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1].float()
        return hidden @ self.states.T

    def rows(self) -> Rows:
        """The rows as the backends take them."""
        return Rows(
            probes=(self.probes * self.unit).detach().numpy().astype(np.float32),
            states=self.states.detach().numpy().astype(np.float32),
        )

    def set_rows(self, rows: Rows) -> None:
        """Take over trained rows."""
        with torch.no_grad():
            self.probes.copy_(torch.from_numpy(rows.probes) / self.unit)
            self.states.copy_(torch.from_numpy(rows.states))


def train(
    model: RowsModel,
    states: Sequence[InputState],
    train_set: tuple[Sequence[Sample], Prefixes],
    dev_set: tuple[Sequence[Sample], Prefixes],
    settings: RowsSettings,
    *,
    checkpoint: Path | None = None,
    progress: Progress = silent,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Train the rows of `model` in place; it ends with those of the best epoch on `dev_set`.

    With `checkpoint`, every epoch is written there, and a run that was killed goes on from the last one.

    Raises:
        BadData: a state without a single sample.
        UsageError: the checkpoint is of a run with other settings.
    """
    samples, prefixes = train_set
    targets, weights = label_tensors(samples, states, settings)
    if missing := [state.value for state, n in zip(states, (targets == 1).sum(0), strict=True) if not n]:
        raise BadData(f"no training sample of {', '.join(missing)}; every state needs some")
    run = _Run(model, settings, math.ceil(len(samples) / settings.batch), checkpoint)
    for number in range(run.next_epoch, settings.epochs):
        if run.stale >= settings.patience:
            break
        batches = list(prefixes.batches(range(len(samples)), settings.batch))
        random.Random(f"{settings.seed} {number}").shuffle(batches)
        total = 0.0
        for done, batch in enumerate(batches):
            logits = model(prefixes.cache(batch, model.base.dtype))
            loss = weighted_loss(logits, targets[batch], weights[batch])
            run.step(loss)
            total += float(loss.detach()) * len(batch)
            progress(f"epoch {number + 1}", done + 1, len(batches))
        epoch = _judge(model, states, dev_set, settings, number, total / len(samples))
        run.finish(epoch)
        report(epoch)
    model.set_rows(run.best_rows)
    return run.history


def label_tensors(
    samples: Sequence[Sample], states: Sequence[InputState], settings: RowsSettings
) -> tuple[Tensor, Tensor]:
    """Right states [N, S] (1 the label, `accepted_weight` those accepted) and each sample's weight [N], mean 1."""
    targets = torch.zeros(len(samples), len(states))
    for row, sample in enumerate(samples):
        for column, state in enumerate(states):
            if state is sample.state:
                targets[row, column] = 1.0
            elif state in sample.accept:
                targets[row, column] = settings.accepted_weight
    labels = targets.argmax(1)
    counts = torch.bincount(labels, minlength=len(states)).clamp_min(1)
    weights = (len(samples) / (len(states) * counts[labels])) ** settings.balance
    return targets, weights / weights.mean()


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean negative log of the probability that right states get together, accepted ones counting less."""
    p = functional.softmax(logits, -1)
    right = (p * targets).sum(-1).clamp_min(1e-6)
    return -(right.log() * weights).mean()


def score(model: RowsModel, prefixes: Prefixes, batch: int = 64) -> Probabilities:
    """Probabilities of the states for every sample."""
    found = np.zeros((len(prefixes), len(model.states)), dtype=np.float32)
    with torch.inference_mode():
        for indices in prefixes.batches(range(len(prefixes)), batch):
            logits = model(prefixes.cache(indices, model.base.dtype))
            found[indices] = functional.softmax(logits, -1).numpy()
    return found


def _judge(
    model: RowsModel,
    states: Sequence[InputState],
    dev_set: tuple[Sequence[Sample], Prefixes],
    settings: RowsSettings,
    number: int,
    train_loss: float,
) -> Epoch:
    samples, prefixes = dev_set
    targets, weights = label_tensors(samples, states, settings)
    p = torch.from_numpy(score(model, prefixes))
    right = targets.gather(1, p.argmax(1, keepdim=True))[:, 0] > 0
    loss = -((p * targets).sum(-1).clamp_min(1e-6).log() * weights).mean()
    return Epoch(number + 1, train_loss, float(loss), float(right.float().mean()))


class _Run:
    """Optimiser, schedule, the best rows so far, and the file they can be taken up again from."""

    def __init__(self, model: RowsModel, settings: RowsSettings, steps_per_epoch: int, checkpoint: Path | None) -> None:
        self._model, self._settings, self._checkpoint = model, settings, checkpoint
        self._optimizer = torch.optim.AdamW(
            [{"params": [model.probes], "lr": settings.lr * 2}, {"params": [model.states], "lr": settings.lr}],
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.98),
        )
        steps = steps_per_epoch * settings.epochs
        warmup = max(1, int(steps * settings.warmup))

        def scale(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, scale)
        self.history: list[Epoch] = []
        self.best_rows = model.rows()
        self.stale = 0
        self.next_epoch = 0
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)

    def step(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([self._model.probes, self._model.states], 1.0)
        self._optimizer.step()
        self._schedule.step()

    def finish(self, epoch: Epoch) -> None:
        if epoch.dev_loss < min((past.dev_loss for past in self.history), default=math.inf):
            self.best_rows, self.stale = self._model.rows(), 0
        else:
            self.stale += 1
        self.history.append(epoch)
        self.next_epoch = epoch.number
        if self._checkpoint is not None:
            self._save(self._checkpoint)

    def _save(self, path: Path) -> None:
        state = {
            "settings": asdict(self._settings),
            "rows": [self._model.probes.detach(), self._model.states.detach()],
            "best": [torch.from_numpy(self.best_rows.probes), torch.from_numpy(self.best_rows.states)],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "stale": self.stale,
        }
        partial = path.with_suffix(".partial")  # a kill while writing leaves the old one whole
        torch.save(state, partial)
        partial.replace(path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["settings"] != asdict(self._settings):
            raise UsageError(
                f"{path} is the checkpoint of a run with other settings ({state['settings']}); "
                "give the same settings to go on with it, or another --out to begin anew"
            )
        with torch.no_grad():
            self._model.probes.copy_(state["rows"][0])
            self._model.states.copy_(state["rows"][1])
        self.best_rows = Rows(*(tensor.numpy() for tensor in state["best"]))
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.stale = state["stale"]
        self.next_epoch = len(self.history)
