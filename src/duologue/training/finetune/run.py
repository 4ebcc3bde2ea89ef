"""A fine-tuning run: from a folder of samples to a changed model and the adapter that fits it."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample
from duologue.errors import BadData, UsageError
from duologue.models.adapters import Adapter
from duologue.text.template import Template
from duologue.training.finetune.duplex_model import DuplexModel
from duologue.training.finetune.examples import Example, lay_out
from duologue.training.finetune.loop import Finetuning, Validation
from duologue.training.recipes import FinetuneSettings
from duologue.training.runs import (
    Say,
    calibrated,
    count_sources,
    count_states,
    describe_splits,
    fingerprint_of,
    max_positions,
    read_splits,
    start_tokens,
)
from duologue.types import InputState


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
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    samples, dev_samples, states = read_splits(data)
    _check(samples, model, settings)
    template = Template.from_tokenizer(tokenizer)
    train, truncation = lay_out(samples, template, settings.max_length)
    dev, dev_truncation = lay_out(dev_samples, template, settings.max_length)

    torch.manual_seed(settings.seed)  # initial values of the LoRA
    # bfloat16 would round such small updates away, so the weights themselves stay in float32
    duplex = DuplexModel(model.float(), len(states), start_tokens(tokenizer), settings)
    before = time.monotonic() - started
    training = Finetuning(duplex, states, train, dev, settings, out)
    if not training.is_main:
        say = _say_nothing
    say(f"{describe_splits(samples, dev_samples)}; {_num_responses(train)} with a response")
    say(f"longer than {settings.max_length} tokens: in training {truncation}; held out {dev_truncation}")
    if training.files.step:
        say(f"continuing after step {training.files.step}")
    training.run(progress=progress, report=lambda validation: say(_line(validation, training.num_steps)))

    p = training.score(dev)
    facts = {
        **_facts(settings, samples, train, training),
        "base": name,
        "shortened": asdict(truncation),
        "seconds": round(before + training.files.seconds),
    }
    fingerprint, label = fingerprint_of(duplex.base, tokenizer), f"{name}, {settings.kind}"
    adapter = Adapter("rows", states, duplex.rows(), fingerprint=fingerprint, name=label, facts=facts)
    adapter = calibrated(adapter, dev_samples, p)
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


def _facts(
    settings: FinetuneSettings, samples: Sequence[Sample], train: Sequence[Example], training: Finetuning
) -> dict[str, Any]:
    """What the adapter records about its training."""
    return {
        "samples": count_states(samples),
        "sources": count_sources(samples),
        "responses": _num_responses(train),
        "settings": asdict(settings),
        "looks": [asdict(validation) for validation in training.files.history],  # their name in adapter folders
        "steps": training.files.step,
        "torch": torch.__version__,
    }


def _num_responses(examples: Sequence[Example]) -> int:
    return sum(bool(example.reply) for example in examples)


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


def _say_nothing(line: str) -> None:
    pass
