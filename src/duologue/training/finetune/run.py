"""A fine-tuning run: from a folder of samples to a changed model and the adapter that fits it.

`accelerate` chooses the device and the precision and combines the gradients of several processes, each of which holds
the whole model. This is tested on CPUs with one process and with two, and untested on CUDA.

A step depends only on its number: its samples, its learning rate and its random seed follow from it. A checkpoint
therefore needs only weights and optimiser state to continue exactly. Accumulated passes equal one large batch: losses
are divided by the number of samples and response tokens of the whole step, over all processes. N samples, S states.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample
from duologue.decisions.thresholds import Probabilities
from duologue.errors import BadData, EngineError, UsageError
from duologue.models.adapters import Adapter
from duologue.text.template import Template
from duologue.training.finetune.duplex_model import DuplexModel
from duologue.training.finetune.examples import Batch, Example, lay_out
from duologue.training.recipes import FinetuneSettings
from duologue.training.runs import (
    RunFolder,
    Say,
    adapter_rows,
    calibrated,
    count_sources,
    count_states,
    describe_splits,
    fingerprint_of,
    max_positions,
    read_splits,
    start_tokens,
)
from duologue.training.tensors import batches_by_length, state_losses
from duologue.types import InputState


@dataclass(frozen=True, slots=True)
class Validation:
    """The result on the held-out samples after a step."""

    step: int
    dev_loss: float  # of states and responses, weighted as in training
    dev_state_loss: float
    dev_response_loss: float  # per token
    dev_accuracy: float  # accepted states count as right


@final
class Finetuning:
    """One training run. `log.jsonl` in its folder has a line for each step and validation.

    The folder also gets `checkpoint.pt`, and with `patience` the best weights in `best.pt`.
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
        """Move the model to its device, and continue from the checkpoint in `folder` if there is one.

        Raises:
            UsageError: the checkpoint belongs to a run with other settings or samples.
        """
        self.model = model
        self._states, self._train, self._dev, self._settings = tuple(states), train, dev, settings
        # accelerate keeps its state per process; an earlier run may have had another precision
        AcceleratorState._reset_state(reset_partial_state=True)
        self._accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # otherwise it assumes a single process on a CPU
            mixed_precision="bf16" if settings.precision == "bf16" else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # a batch without responses
        )
        self.is_main = bool(self._accelerator.is_main_process)  # the process that writes files
        self._per_step = settings.batch * settings.accumulation * self._accelerator.num_processes
        self.num_steps = settings.steps or max(1, round((settings.epochs or 0) * len(train) / self._per_step))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(trained.values())
        added = [model.probes, model.states]
        base = [p for p in self._parameters if not any(p is row for row in added)]
        groups = [{"params": base, "peak": settings.lr}, {"params": added, "peak": settings.rows_lr or settings.lr}]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        self._prepared, self._optimizer = self._accelerator.prepare(model, optimizer)
        samples = repr([(e.heard, e.reply, e.sample.state) for e in (*train, *dev)])
        digests = {"samples": sha256(samples.encode()).hexdigest(), "samples per step": self._per_step}
        self.files = RunFolder(
            folder / "log.jsonl", {**asdict(settings), **digests}, trained, self._optimizer, Validation,
            keeps_best=settings.patience is not None, is_writer=self.is_main,
        )  # fmt: skip

    def run(
        self, *, progress: StageProgress = silent, report: Callable[[Validation], None] = lambda validation: None
    ) -> list[Validation]:
        """Train to the end: all steps and the last weights, or with `patience` the best weights.

        Raises:
            EngineError: the loss is no longer finite.
            UsageError: a checkpoint cannot be written.
        """
        files, patience = self.files, self._settings.patience
        while files.step < self.num_steps and (patience is None or files.num_stale < patience):
            loss = self._take_step()
            right = f", {100 * files.history[-1].dev_accuracy:.1f} % right" if files.history else ""
            progress(f"{self._settings.kind}: loss {loss:.3f}{right}", files.step, self.num_steps)
            if files.step % self._settings.eval_every == 0 or files.step == self.num_steps:
                files.record(self._validate())
                self._accelerator.wait_for_everyone()
                report(files.history[-1])
        files.restore_best()
        return files.history

    def score(self, examples: Sequence[Example]) -> Probabilities:
        """Probabilities [N, S] of the states for all examples."""
        return self._evaluate(examples)[0]

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
        settings, accelerator, step = self._settings, self._accelerator, self.files.step
        began = time.monotonic()
        seeds = random.Random(f"{settings.seed} {step} {accelerator.process_index}")
        torch.manual_seed(seeds.getrandbits(62))  # dropout
        share = settings.rate(step, self.num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * share
        sums = self._backward(sorted(self._samples(step), key=lambda example: example.length))
        norm = float(accelerator.clip_grad_norm_(self._parameters, settings.max_grad_norm))
        if not math.isfinite(norm):
            raise EngineError(f"the gradient of step {step + 1} is no longer finite; try a smaller lr, or f32")
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.files.step += 1
        state_loss, response_loss = accelerator.reduce(sums, "sum").tolist()
        loss: float = state_loss + settings.response_weight * response_loss
        self.files.log(
            step=self.files.step,
            loss=loss,
            state_loss=state_loss,
            response_loss=response_loss,
            lr=settings.lr * share,
            grad_norm=norm,
            seconds=round(time.monotonic() - began, 3),
        )
        return loss

    def _backward(self, examples: Sequence[Example]) -> Tensor:
        """Accumulate the gradients of one step; returns this process's share of the two losses [2]."""
        settings, accelerator = self._settings, self._accelerator
        num_tokens = max(1, sum(example.num_response for example in examples))
        self._prepared.train()
        batches = [examples[i : i + settings.batch] for i in range(0, len(examples), settings.batch)]
        own = batches[accelerator.process_index :: accelerator.num_processes]
        sums = torch.zeros(2, device=accelerator.device)
        for number, chosen in enumerate(own, 1):
            with nullcontext() if number == len(own) else accelerator.no_sync(self._prepared):
                batch = self._batch(chosen)
                logits, responses = self._prepared(batch)
                state_loss = state_losses(logits, batch.targets).sum()
                losses = torch.stack([state_loss / len(examples), responses / num_tokens])
                # gradients are averaged over processes; what is wanted is their sum
                accelerator.backward((losses[0] + settings.response_weight * losses[1]) * accelerator.num_processes)
            sums += losses.detach()
        return sums

    def _samples(self, step: int) -> list[Example]:
        """The samples of one step on all processes; each pass over the samples has its own order."""
        num, per_step = len(self._train), self._per_step
        return [
            self._train[_order(num, f"{self._settings.seed} {place // num}")[place % num]]
            for place in range(step * per_step, (step + 1) * per_step)
        ]

    def _batch(self, examples: Sequence[Example]) -> Batch:
        batch = Batch.of(examples, self.model.vocab_size, self._states, self._settings.accepted_weight)
        return batch.to(self._accelerator.device)

    @torch.no_grad()
    def _evaluate(self, examples: Sequence[Example]) -> tuple[Probabilities, float, float]:
        """Probabilities [N, S], mean loss per state and per response token; the same on every process."""
        self.model.eval()
        p = np.zeros((len(examples), len(self._states)), dtype=np.float32)
        state_loss = response_loss = 0.0
        for indices in batches_by_length([example.length for example in examples], self._settings.batch):
            batch = self._batch([examples[i] for i in indices])
            with self._accelerator.autocast():
                logits, responses = self.model(batch)
            p[indices] = logits.softmax(-1).cpu().numpy()
            state_loss += float(state_losses(logits, batch.targets).sum())
            response_loss += float(responses)
        num_tokens = max(1, sum(example.num_response for example in examples))
        return p, state_loss / len(examples), response_loss / num_tokens

    def _validate(self) -> Validation:
        """Evaluate on the held-out samples."""
        p, state_loss, response_loss = self._evaluate(self._dev)
        right = [self._states[i] in example.sample.right for i, example in zip(p.argmax(1), self._dev, strict=True)]
        loss = state_loss + self._settings.response_weight * response_loss
        return Validation(self.files.step, loss, state_loss, response_loss, sum(right) / len(right))


@lru_cache(maxsize=2)
def _order(num: int, seed: str) -> list[int]:
    order = list(range(num))
    random.Random(seed).shuffle(order)
    return order


def finetune(
    data: Path,
    out: Path,
    settings: FinetuneSettings,
    model: PreTrainedModel,
    tokenizer: HfTokenizer,
    *,
    name: str,
    progress: StageProgress = silent,
    say: Say = print,
) -> Adapter:
    """Train `model` on the folder `data`; it is changed. Write everything into `out`, and return the adapter.

    Besides the adapter (kind rows), the folder gets the changed model as a Hugging Face folder `model`, for `lora` also
    the PEFT folder `lora`, and `log.jsonl` and `curve.png`. The adapter belongs to the changed model. The unchanged
    base has the same sizes and accepts it too, but then its decisions are wrong.

    A run that was killed continues from `checkpoint.pt` in the same folder; a finished run removes that file. Under
    `accelerate launch`, every process calls this function; the first one writes and reports.

    Raises:
        BadData: see `read_splits`; no sample has a response.
        UsageError: sequences longer than the model accepts; see `lay_out` and `Finetuning`.
    """
    out.mkdir(parents=True, exist_ok=True)
    samples, dev_samples, states = read_splits(data)
    _check(samples, model, settings)
    template = Template.from_tokenizer(tokenizer)
    (train, truncation), (dev, dev_truncation) = (
        lay_out(split, template, settings.max_length) for split in (samples, dev_samples)
    )
    torch.manual_seed(settings.seed)  # initial values of the LoRA
    # bfloat16 would round such small updates away, so the weights themselves stay in float32
    duplex = DuplexModel(model.float(), len(states), start_tokens(tokenizer), settings)
    training = Finetuning(duplex, states, train, dev, settings, out)
    say = say if training.is_main else (lambda line: None)
    num_responses = sum(bool(example.reply) for example in train)
    say(f"{describe_splits(samples, dev_samples)}; {num_responses} with a response")
    say(f"longer than {settings.max_length} tokens: in training {truncation}; held out {dev_truncation}")
    if training.files.step:
        say(f"continuing after step {training.files.step}")
    training.run(progress=progress, report=lambda validation: say(_line(validation, training.num_steps)))

    facts = {
        "samples": count_states(samples),
        "sources": count_sources(samples),
        "responses": num_responses,
        **training.facts(),
        "base": name,
        "shortened": asdict(truncation),
    }
    fingerprint, label = fingerprint_of(duplex.base, tokenizer), f"{name}, {settings.kind}"
    rows = adapter_rows(duplex.probes, duplex.states)
    adapter = Adapter("rows", states, rows, fingerprint=fingerprint, name=label, facts=facts)
    adapter = calibrated(adapter, dev_samples, training.score(dev))
    if training.is_main:
        _write(out, duplex, tokenizer, settings)
        adapter.save(out)
        training.files.finish(out / "curve.png", say)
    return adapter


def _check(samples: Sequence[Sample], model: PreTrainedModel, settings: FinetuneSettings) -> None:
    limit = max_positions(model)
    if limit is not None and settings.max_length > limit:
        raise UsageError(f"max_length {settings.max_length} is more than the {limit} tokens that this model accepts")
    answered = any(sample.response.strip() for sample in samples if sample.state is InputState.PROCESS)
    if settings.response_weight and not answered:
        raise BadData(
            f"no process sample has a response, so nothing constrains what a {settings.kind} model says; "
            "build the data with responses, or train on the states alone with response_weight=0"
        )


def _write(out: Path, duplex: DuplexModel, tokenizer: HfTokenizer, settings: FinetuneSettings) -> None:
    """Save the changed model, and the LoRA on its own if there is one."""
    base = duplex.base
    if duplex.lora is not None:
        # without this argument PEFT asks the hub whether the vocabulary has grown
        duplex.lora.save_pretrained(out / "lora", save_embedding_layers=False)
        base = duplex.lora.merge_and_unload()
    transformers_logging.disable_progress_bar()
    if settings.precision == "bf16":
        base = base.to(torch.bfloat16)
    base.save_pretrained(out / "model")
    tokenizer.wrapped.save_pretrained(out / "model")


def _line(validation: Validation, num_steps: int) -> str:
    return (
        f"step {validation.step} of {num_steps}: held out {validation.dev_loss:.4f} "
        f"(states {validation.dev_state_loss:.4f}, responses {validation.dev_response_loss:.4f} per token), "
        f"{100 * validation.dev_accuracy:.1f} % right"
    )
