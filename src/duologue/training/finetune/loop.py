"""The loop of a fine-tuning run, whatever is learned: steps, learning rates, checkpoints, several processes.

`accelerate` chooses the device and the precision and combines the gradients of several processes, each of which holds
the whole model. This is tested on CPUs with one process and with two, and untested on CUDA.

A step depends only on its number: its examples, its learning rate and its random seed follow from it. A checkpoint
therefore needs only weights and optimiser state to continue exactly. Accumulated passes equal one large batch: losses
are divided by what the whole step contains, over all processes. K kinds of losses.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, final

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from duologue.data.progress import StageProgress, silent
from duologue.errors import EngineError
from duologue.training.recipes import FinetuneSettings
from duologue.training.runs import RunFolder, V

E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)


class Objective(Protocol[E_contra, V]):
    """What a run learns from examples, and how it is judged."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the K losses."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Their weights in the sum that is minimised."""

    def length(self, example: E_contra) -> int:
        """Tokens of an example; similar ones share a pass."""

    def shares(
        self, model: Any, examples: Sequence[E_contra], step: Sequence[E_contra], device: torch.device
    ) -> Tensor:
        """What `examples` contribute to the losses [K] of a `step`; `model` is the prepared one."""

    def validate(self, step: int) -> V:
        """Evaluate on held-out examples after `step` steps."""

    def figures(self, validation: V) -> str:
        """A validation in a few words, for progress."""


@final
class TrainingLoop(Generic[E, V]):
    """Runs the steps. `log.jsonl` in its folder has a line for each step and validation.

    The folder also gets `checkpoint.pt`, and with `patience` the best weights in `best.pt`.
    """

    def __init__(
        self,
        objective: Objective[E, V],
        train: Sequence[E],
        settings: FinetuneSettings,
        folder: Path,
        *,
        validation: Callable[..., V],
        digest: str,
        added: Sequence[nn.Parameter] = (),
    ) -> None:
        """Move the model to its device, and continue from the checkpoint in `folder` if there is one.

        Args:
            validation: makes a validation from its fields.
            digest: of the examples, all of them: a checkpoint belongs to these.
            added: parameters that are trained at the rate of rows.

        Raises:
            UsageError: the checkpoint belongs to a run with other settings or examples.
        """
        self._objective, self._train, self._settings = objective, train, settings
        # accelerate keeps its state per process; an earlier run may have had another precision
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # otherwise it assumes a single process on a CPU
            mixed_precision="bf16" if settings.precision == "bf16" else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # a batch without responses
        )
        self.is_main = bool(self.accelerator.is_main_process)  # the process that writes files
        self._per_step = settings.batch * settings.accumulation * self.accelerator.num_processes
        self.num_steps = settings.steps or max(1, round((settings.epochs or 0) * len(train) / self._per_step))
        trained = {name: p for name, p in objective.model.named_parameters() if p.requires_grad}
        self._parameters = list(trained.values())
        base = [p for p in self._parameters if not any(p is row for row in added)]
        groups = [{"params": base, "peak": settings.lr}]
        if added:
            groups.append({"params": list(added), "peak": settings.rows_lr or settings.lr})
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        self._prepared, self._optimizer = self.accelerator.prepare(objective.model, optimizer)
        made_with = {**asdict(settings), "samples": digest, "samples per step": self._per_step}
        self.files = RunFolder(
            folder / "log.jsonl", made_with, trained, self._optimizer, validation,
            keeps_best=settings.patience is not None, is_writer=self.is_main,
        )  # fmt: skip

    def run(
        self, *, progress: StageProgress = silent, report: Callable[[V], None] = lambda validation: None
    ) -> list[V]:
        """Train to the end: all steps and the last weights, or with `patience` the best weights.

        Raises:
            EngineError: the loss is no longer finite.
            UsageError: a checkpoint cannot be written.
        """
        files, patience = self.files, self._settings.patience
        while files.step < self.num_steps and (patience is None or files.num_stale < patience):
            loss = self._take_step()
            known = f", {self._objective.figures(files.history[-1])}" if files.history else ""
            progress(f"{self._settings.kind}: loss {loss:.3f}{known}", files.step, self.num_steps)
            if files.step % self._settings.eval_every == 0 or files.step == self.num_steps:
                files.record(self._objective.validate(files.step))
                self.accelerator.wait_for_everyone()
                report(files.history[-1])
        files.restore_best()
        return files.history

    def facts(self) -> dict[str, Any]:
        """What an adapter records about the run so far."""
        return {
            "settings": asdict(self._settings),
            "looks": [asdict(validation) for validation in self.files.history],  # their name in adapter folders
            "steps": self.files.step,
            "torch": torch.__version__,
            "seconds": round(self.files.seconds),
        }

    def _take_step(self) -> float:
        """Take one step; returns its loss."""
        settings, accelerator, step, objective = self._settings, self.accelerator, self.files.step, self._objective
        began = time.monotonic()
        seeds = random.Random(f"{settings.seed} {step} {accelerator.process_index}")
        torch.manual_seed(seeds.getrandbits(62))  # dropout
        share = settings.rate(step, self.num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * share
        sums = self._backward(sorted(self._samples(step), key=objective.length))
        norm = float(accelerator.clip_grad_norm_(self._parameters, settings.max_grad_norm))
        if not math.isfinite(norm):
            raise EngineError(f"the gradient of step {step + 1} is no longer finite; try a smaller lr, or f32")
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.files.step += 1
        losses: list[float] = accelerator.reduce(sums, "sum").tolist()
        loss = sum(weight * value for weight, value in zip(objective.weights, losses, strict=True))
        self.files.log(
            step=self.files.step,
            loss=loss,
            **dict(zip(objective.losses, losses, strict=True)),
            lr=settings.lr * share,
            grad_norm=norm,
            seconds=round(time.monotonic() - began, 3),
        )
        return loss

    def _backward(self, examples: Sequence[E]) -> Tensor:
        """Accumulate the gradients of one step; returns this process's share of the losses [K]."""
        settings, accelerator, objective = self._settings, self.accelerator, self._objective
        self._prepared.train()
        batches = [examples[i : i + settings.batch] for i in range(0, len(examples), settings.batch)]
        own = batches[accelerator.process_index :: accelerator.num_processes]
        weights = torch.tensor(objective.weights, device=accelerator.device)
        sums = torch.zeros(len(weights), device=accelerator.device)
        for number, chosen in enumerate(own, 1):
            with nullcontext() if number == len(own) else accelerator.no_sync(self._prepared):
                losses = objective.shares(self._prepared, chosen, examples, accelerator.device)
                # gradients are averaged over processes; what is wanted is their sum
                accelerator.backward((losses * weights).sum() * accelerator.num_processes)
            sums += losses.detach()
        return sums

    def _samples(self, step: int) -> list[E]:
        """The examples of one step on all processes; each pass over the examples has its own order."""
        num, per_step = len(self._train), self._per_step
        return [
            self._train[_order(num, f"{self._settings.seed} {place // num}")[place % num]]
            for place in range(step * per_step, (step + 1) * per_step)
        ]


@lru_cache(maxsize=2)
def _order(num: int, seed: str) -> list[int]:
    order = list(range(num))
    random.Random(seed).shuffle(order)
    return order
