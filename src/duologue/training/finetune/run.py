"""A fine-tuning run: from a folder of samples to a changed model and the adapter that fits it (DUO, section 3.1).

N samples, S states.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample
from duologue.decisions.thresholds import Probabilities
from duologue.errors import BadData, UsageError
from duologue.models.adapters import Adapter
from duologue.text.template import Template
from duologue.training.finetune.causal_model import write_model
from duologue.training.finetune.duplex_model import DuplexModel
from duologue.training.finetune.examples import Batch, Example, lay_out
from duologue.training.finetune.loop import TrainingLoop
from duologue.training.recipes import FinetuneSettings
from duologue.training.runs import (
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
    """A run that learns states and responses; see `TrainingLoop`."""

    losses = ("state_loss", "response_loss")

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
        self.weights = (1.0, settings.response_weight)
        self._states, self._dev, self._settings = tuple(states), dev, settings
        samples = repr([(e.heard, e.reply, e.sample.state) for e in (*train, *dev)])
        self._loop: TrainingLoop[Example, Validation] = TrainingLoop(
            self,
            train,
            settings,
            folder,
            validation=Validation,
            digest=sha256(samples.encode()).hexdigest(),
            added=(model.probes, model.states),
        )
        self.run, self.facts, self.files = self._loop.run, self._loop.facts, self._loop.files
        self.is_main, self.num_steps = self._loop.is_main, self._loop.num_steps

    def length(self, example: Example) -> int:
        """See `Objective.length`."""
        return example.length

    def shares(self, model: Any, examples: Sequence[Example], step: Sequence[Example], device: torch.device) -> Tensor:
        """See `Objective.shares`: the mean over states and the mean over response tokens."""
        batch = self._batch(examples, device)
        logits, responses = model(batch)
        num_tokens = max(1, sum(example.num_response for example in step))
        return torch.stack([state_losses(logits, batch.targets).sum() / len(step), responses / num_tokens])

    def figures(self, validation: Validation) -> str:
        """See `Objective.figures`."""
        return f"{100 * validation.dev_accuracy:.1f} % right"

    def score(self, examples: Sequence[Example]) -> Probabilities:
        """Probabilities [N, S] of the states for all examples."""
        return self._evaluate(examples)[0]

    def validate(self, step: int) -> Validation:
        """See `Objective.validate`."""
        p, state_loss, response_loss = self._evaluate(self._dev)
        right = [self._states[i] in example.sample.right for i, example in zip(p.argmax(1), self._dev, strict=True)]
        loss = state_loss + self._settings.response_weight * response_loss
        return Validation(step, loss, state_loss, response_loss, sum(right) / len(right))

    def _batch(self, examples: Sequence[Example], device: torch.device) -> Batch:
        return Batch.of(examples, self.model.vocab_size, self._states, self._settings.accepted_weight).to(device)

    @torch.no_grad()
    def _evaluate(self, examples: Sequence[Example]) -> tuple[Probabilities, float, float]:
        """Probabilities [N, S], mean loss per state and per response token; the same on every process."""
        self.model.eval()
        accelerator = self._loop.accelerator
        p = np.zeros((len(examples), len(self._states)), dtype=np.float32)
        state_loss = response_loss = 0.0
        for indices in batches_by_length([example.length for example in examples], self._settings.batch):
            batch = self._batch([examples[i] for i in indices], accelerator.device)
            with accelerator.autocast():
                logits, responses = self.model(batch)
            p[indices] = logits.softmax(-1).cpu().numpy()
            state_loss += float(state_losses(logits, batch.targets).sum())
            response_loss += float(responses)
        num_tokens = max(1, sum(example.num_response for example in examples))
        return p, state_loss / len(examples), response_loss / num_tokens


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
        write_model(out, duplex.base, duplex.lora, tokenizer, precision=settings.precision)
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


def _line(validation: Validation, num_steps: int) -> str:
    return (
        f"step {validation.step} of {num_steps}: held out {validation.dev_loss:.4f} "
        f"(states {validation.dev_state_loss:.4f}, responses {validation.dev_response_loss:.4f} per token), "
        f"{100 * validation.dev_accuracy:.1f} % right"
    )
