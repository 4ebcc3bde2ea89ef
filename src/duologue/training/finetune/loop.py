"""The loop of `full` and `lora`: steps, looks at held-out samples, checkpoints. Knows no files of data and no adapters.

`accelerate` chooses the device and the precision and joins the gradients of several processes; each holds the whole
model. This is tested on CPUs, in one process and in two; on CUDA it is not.

What a step does is a function of its number: which samples it takes, its rate and its random numbers. So a checkpoint
needs nothing but weights and optimiser to go on exactly, and a step of accumulated passes is one large batch: losses
are divided by the samples and response tokens of the whole step, on all processes.
"""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor

from duologue.errors import EngineError
from duologue.training import checkpoints
from duologue.training.finetune.duplex_model import Batch, DuplexModel, state_losses
from duologue.training.probe.prefixes import Progress, silent
from duologue.training.recipes import FinetuneSettings
from duologue.training.sequences import Example
from duologue.types import InputState

Probabilities = npt.NDArray[np.float32]
"""[N, S], rows summing to 1, columns in the order of the states."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the held-out samples said at a step."""

    step: int
    dev_loss: float  # of states and responses, weighted as in training
    dev_state_loss: float
    dev_response_loss: float  # of a token
    dev_accuracy: float  # accepted states count as right


class Finetuning:
    """One run over `train` and `dev`, in a folder that it may be taken up again from after a kill.

    Into `folder` go `log.jsonl`, a line for each step and look, and `checkpoint.pt`; with `patience` also `best.pt`.
    """

    def __init__(
        self,
        model: DuplexModel,
        states: Sequence[InputState],
        train: Sequence[Example],
        dev: Sequence[Example],
        settings: FinetuneSettings,
        folder: Path,
    ) -> None:
        """Put the model on its device, and go on from the checkpoint in `folder` if there is one.

        Raises:
            UsageError: the checkpoint is of a run with other settings or samples.
        """
        self.model = model
        self._states, self._train, self._dev, self._settings = tuple(states), train, dev, settings
        self._log, self._checkpoint, self._best = (folder / n for n in ("log.jsonl", "checkpoint.pt", "best.pt"))
        self._accelerator = _accelerator(settings)
        per_step = settings.batch * settings.accumulation * self._accelerator.num_processes
        self._per_step = per_step
        self.num_steps = settings.steps or max(1, round((settings.epochs or 0) * len(train) / per_step))
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        added = [model.probes, model.states]
        base = [p for p in self._trained.values() if not any(p is row for row in added)]
        self._peaks = (settings.lr, settings.rows_lr or settings.lr)
        optimizer = torch.optim.AdamW(
            [{"params": params, "lr": lr} for params, lr in zip((base, added), self._peaks, strict=True)],
            weight_decay=settings.weight_decay,
        )
        self._prepared, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._data = sha256(repr([(e.heard, e.reply, e.sample.state) for e in (*train, *dev)]).encode()).hexdigest()
        self.looks: list[Look] = []
        self.step = 0
        self._began, self._seconds_before = time.monotonic(), 0.0
        if self._checkpoint.exists():
            self._load()
        elif self.is_main:
            self._log.unlink(missing_ok=True)

    @property
    def seconds(self) -> float:
        """Since it began, in all processes that have worked on it one after the other."""
        return self._seconds_before + time.monotonic() - self._began

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return bool(self._accelerator.is_main_process)

    def run(self, *, progress: Progress = silent, report: Callable[[Look], None] = lambda look: None) -> list[Look]:
        """Train to the end: all steps and the last weights, or with `patience` the best ones.

        Raises:
            EngineError: the loss is no longer a number.
            UsageError: a checkpoint cannot be written.
        """
        patience = self._settings.patience
        while self.step < self.num_steps and (patience is None or self._stale < patience):
            loss = self._take_step()
            right = f", {100 * self.looks[-1].dev_accuracy:.1f} % right" if self.looks else ""
            progress(f"{self._settings.kind}: loss {loss:.3f}{right}", self.step, self.num_steps)
            if self.step % self._settings.eval_every == 0 or self.step == self.num_steps:
                self._look()
                report(self.looks[-1])
        if patience is not None and self._best.exists():
            self._put(torch.load(self._best, weights_only=True, map_location="cpu"))
        return self.looks

    def score(self, examples: Sequence[Example]) -> Probabilities:
        """Probabilities of the states for every example."""
        return self._judge(examples)[0]

    def clean(self) -> None:
        """Remove what only an unfinished run needs."""
        for path in (self._checkpoint, self._best):
            path.unlink(missing_ok=True)

    def _take_step(self) -> float:
        """One step; returns its loss."""
        settings, processes = self._settings, self._accelerator.num_processes
        began = time.monotonic()
        seeds = random.Random(f"{settings.seed} {self.step} {self._accelerator.process_index}")
        torch.manual_seed(seeds.getrandbits(62))  # dropout
        examples = sorted(self._samples(self.step), key=lambda example: example.length)
        num_tokens = max(1, sum(example.num_response for example in examples))
        share = settings.rate(self.step, self.num_steps)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        self._prepared.train()
        batches = [examples[i : i + settings.batch] for i in range(0, len(examples), settings.batch)]
        own = batches[self._accelerator.process_index :: processes]
        sums = torch.zeros(2, device=self._accelerator.device)
        for number, chosen in enumerate(own):
            is_last = number == len(own) - 1
            with nullcontext() if is_last else self._accelerator.no_sync(self._prepared):
                states, responses = self._losses(self._prepared, self._batch(chosen))
                losses = torch.stack([states.sum() / len(examples), responses / num_tokens])
                # gradients are averaged over processes; what is wanted is their sum
                self._accelerator.backward((losses[0] + settings.response_weight * losses[1]) * processes)
            sums += losses.detach()
        norm = float(self._accelerator.clip_grad_norm_(list(self._trained.values()), settings.max_grad_norm))
        if not math.isfinite(norm):
            raise EngineError(f"the gradient of step {self.step + 1} is no longer finite; try a smaller lr, or f32")
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        state_loss, response_loss = self._accelerator.reduce(sums, "sum").tolist()
        loss: float = state_loss + settings.response_weight * response_loss
        self._note(
            step=self.step,
            loss=loss,
            state_loss=state_loss,
            response_loss=response_loss,
            lr=settings.lr * share,
            grad_norm=norm,
            seconds=round(time.monotonic() - began, 3),
        )
        return loss

    def _samples(self, step: int) -> list[Example]:
        """Those of one step on all processes: passes over the samples, each in its own order, one behind the other."""
        num, per_step = len(self._train), self._per_step
        return [
            self._train[_order(num, f"{self._settings.seed} {place // num}")[place % num]]
            for place in range(step * per_step, (step + 1) * per_step)
        ]

    def _batch(self, examples: Sequence[Example]) -> Batch:
        kept = self._settings.accepted_weight
        return Batch.of(examples, self.model.vocab_size, self._states, kept).to(self._accelerator.device)

    def _losses(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, responses = model(batch)
        return state_losses(logits, batch.targets), responses

    @torch.no_grad()
    def _judge(self, examples: Sequence[Example]) -> tuple[Probabilities, float, float]:
        """Probabilities, mean loss of a state and of a response token; the same on every process."""
        self.model.eval()
        p = np.zeros((len(examples), len(self._states)), dtype=np.float32)
        order = sorted(range(len(examples)), key=lambda i: examples[i].length)
        state_loss = response_loss = 0.0
        for start in range(0, len(order), self._settings.batch):
            indices = order[start : start + self._settings.batch]
            batch = self._batch([examples[i] for i in indices])
            with self._accelerator.autocast():
                logits, responses = self.model(batch)
            p[indices] = logits.softmax(-1).cpu().numpy()
            state_loss += float(state_losses(logits, batch.targets).sum())
            response_loss += float(responses)
        num_tokens = max(1, sum(example.num_response for example in examples))
        return p, state_loss / len(examples), response_loss / num_tokens

    def _look(self) -> None:
        p, state_loss, response_loss = self._judge(self._dev)
        decided = [self._states[column] for column in p.argmax(1)]
        right = [state in example.sample.right for state, example in zip(decided, self._dev, strict=True)]
        loss = state_loss + self._settings.response_weight * response_loss
        look = Look(self.step, loss, state_loss, response_loss, sum(right) / len(right))
        self.looks.append(look)
        self._note(**asdict(look))
        if self.is_main:
            if self._settings.patience is not None and self._stale == 0:
                checkpoints.write(self._best, self._weights())
            self._save()
        self._accelerator.wait_for_everyone()

    @property
    def _stale(self) -> int:
        """Looks since the best one."""
        losses = [look.dev_loss for look in self.looks]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def _note(self, **values: float) -> None:
        if self.is_main:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._trained.items()}

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(weights[name])

    def _made_with(self) -> dict[str, Any]:
        """What a checkpoint must agree in."""
        return {**asdict(self._settings), "samples": self._data, "samples per step": self._per_step}

    def _save(self) -> None:
        state = {
            "made_with": self._made_with(),
            "step": self.step,
            "weights": self._weights(),
            "optimizer": self._optimizer.state_dict(),
            "looks": [asdict(look) for look in self.looks],
            "seconds": self.seconds,
        }
        checkpoints.write(self._checkpoint, state)

    def _load(self) -> None:
        state = checkpoints.read(self._checkpoint, self._made_with())
        self._put(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.looks = [Look(**look) for look in state["looks"]]
        self.step = state["step"]
        self._seconds_before = state["seconds"]
        if self.is_main:
            checkpoints.forget_log_behind(self._log, self.step)


def _accelerator(settings: FinetuneSettings) -> Accelerator:
    # Its state is the process's; an earlier run may have had another precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # without being told, it sees one process on a CPU
        mixed_precision="bf16" if settings.precision == "bf16" else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # a batch without responses
    )


@lru_cache(maxsize=2)
def _order(num: int, seed: str) -> list[int]:
    order = list(range(num))
    random.Random(seed).shuffle(order)
    return order
