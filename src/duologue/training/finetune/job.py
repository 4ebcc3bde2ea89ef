"""One run of `full` or `lora` from a folder of samples to a changed model and the adapter that fits it."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.samples import Sample
from duologue.decisions.metrics import adapter_facts
from duologue.decisions.thresholds import calibrate, decide
from duologue.errors import BadData, UsageError
from duologue.models.adapters import ANY_WEIGHTS, Adapter
from duologue.text.template import Template
from duologue.training.curves import draw
from duologue.training.finetune.duplex_model import DuplexModel
from duologue.training.finetune.loop import Finetuning, Look
from duologue.training.probe.job import fingerprint_of, read_splits, start_tokens
from duologue.training.probe.prefixes import Progress, silent
from duologue.training.recipes import FinetuneSettings
from duologue.training.sequences import Example, lay_out
from duologue.types import InputState


@dataclass(frozen=True, slots=True)
class FinetuneJob:
    """What to train on, how, and where to put it."""

    data: Path  # a folder with train.jsonl and dev.jsonl, lines as of `data.samples`
    out: Path
    settings: FinetuneSettings
    threads: int | None = None  # of the CPU


def run_finetune(
    job: FinetuneJob,
    model: PreTrainedModel,
    tokenizer: HfTokenizer,
    *,
    name: str,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> Adapter:
    """Train `model`, which is changed, write everything into the folder `out` and return the adapter.

    Besides the adapter (kind rows), `out` gets the changed model as a Hugging Face folder `model`, for `lora` also the
    PEFT folder `lora`, and the run's `log.jsonl` and `curve.png`. The adapter belongs to the model in `model`; it also
    fits the unchanged base by its sizes, but its decisions do not.

    A run that was killed is taken up again from `checkpoint.pt` in the same folder, which a finished run removes.
    Under `accelerate launch`, every process calls this; the first one writes and speaks.

    Raises:
        BadData: a file of samples cannot be read or has none; a state without a sample; no sample has a response.
        UsageError: sequences longer than the model takes; see `sequences.lay_out` and `finetune.Finetuning`.
    """
    started = time.monotonic()
    settings = job.settings
    if job.threads:
        torch.set_num_threads(job.threads)
    job.out.mkdir(parents=True, exist_ok=True)
    train_samples, dev_samples, states = read_splits(job.data)
    _check(train_samples, model, settings)
    template = Template.from_tokenizer(tokenizer)
    train, shortened = lay_out(train_samples, template, settings.max_length)
    dev, dev_shortened = lay_out(dev_samples, template, settings.max_length)

    torch.manual_seed(settings.seed)  # the LoRA's first values
    # updates of this size vanish in the rounding of bfloat16, so the weights themselves stay in float32
    duplex = DuplexModel(model.float(), len(states), start_tokens(tokenizer), settings)
    before = time.monotonic() - started
    run = Finetuning(duplex, states, train, dev, settings, job.out)
    speak = say if run.is_main else _say_nothing
    speak(_counted(train, dev))
    speak(f"longer than {settings.max_length} tokens: in training {shortened}; held out {dev_shortened}")
    if run.step:
        speak(f"going on behind step {run.step}")
    run.run(progress=progress, report=lambda look: speak(_line(look, run.num_steps)))

    p = run.score(dev)
    thresholds = calibrate(dev_samples, p, states)
    facts = {
        **_facts(settings, train, run),
        "base": name,
        "shortened": asdict(shortened),
        "seconds": round(before + run.seconds),
        "dev": adapter_facts(dev_samples, decide(p, dev_samples, states, thresholds)),
    }
    adapter = Adapter(
        kind="rows",
        states=states,
        rows=duplex.rows(),
        thresholds={ANY_WEIGHTS: thresholds},
        fingerprint=fingerprint_of(duplex.base, tokenizer),
        name=f"{name}, {settings.kind}",
        facts=facts,
    )
    if run.is_main:
        _write(job.out, duplex, tokenizer, settings)
        adapter.save(job.out)
        draw(job.out / "log.jsonl", job.out / "curve.png", speak)
        run.clean()
    return adapter


def _check(samples: Sequence[Sample], model: PreTrainedModel, settings: FinetuneSettings) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and settings.max_length > limit:
        raise UsageError(f"max_length {settings.max_length} is more than the {limit} tokens this model takes")
    answered = any(sample.response.strip() for sample in samples if sample.state is InputState.PROCESS)
    if settings.response_weight and not answered:
        raise BadData(
            f"no process sample has a response, so nothing holds what a {settings.kind} model says; "
            "build the data with responses, or train on the states alone with response_weight=0"
        )


def _write(out: Path, duplex: DuplexModel, tokenizer: HfTokenizer, settings: FinetuneSettings) -> None:
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


def _facts(settings: FinetuneSettings, train: Sequence[Example], run: Finetuning) -> dict[str, Any]:
    return {
        "samples": dict(Counter(example.sample.state.value for example in train)),
        "sources": dict(sorted(Counter(example.sample.source for example in train).items())),
        "responses": sum(bool(example.reply) for example in train),
        "settings": asdict(settings),
        "looks": [asdict(look) for look in run.looks],
        "steps": run.step,
        "torch": torch.__version__,
    }


def _counted(train: Sequence[Example], dev: Sequence[Example]) -> str:
    counts = Counter(example.sample.state.value for example in train)
    states = ", ".join(f"{state} {num}" for state, num in sorted(counts.items()))
    responses = sum(bool(example.reply) for example in train)
    return f"{len(train)} samples to train on, {len(dev)} to judge by: {states}; {responses} with a response"


def _line(look: Look, num_steps: int) -> str:
    return (
        f"step {look.step} of {num_steps}: held out {look.dev_loss:.4f} (states {look.dev_state_loss:.4f}, responses "
        f"{look.dev_response_loss:.4f} a token), {100 * look.dev_accuracy:.1f} % right"
    )


def _say_nothing(line: str) -> None:
    pass
