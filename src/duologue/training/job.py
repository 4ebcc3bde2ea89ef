"""One training run from a folder of sources to an adapter folder: samples, prefixes, rows, thresholds, report."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from duologue.adapters import ANY_WEIGHTS, Adapter, Fingerprint
from duologue.backends.hf_tokenizer import HfTokenizer
from duologue.catalogue import Source
from duologue.data.build import Recipe, build
from duologue.data.samples import Sample
from duologue.data.unseen import unseen
from duologue.errors import BrokenModel, UsageError
from duologue.metrics.decisions import decide
from duologue.metrics.outcome import groups
from duologue.metrics.thresholds import calibrate
from duologue.template import Template
from duologue.training.layout import Layouts
from duologue.training.prefixes import Prefixes, Progress, kv_bytes_per_token, silent
from duologue.training.rows import Epoch, Probabilities, RowsModel, RowsSettings, score, train
from duologue.types import InputState, Token

START_WORDS = (" process", " decide", " state", " complete", " answer", " wait", " ignore", " stop", " listening")
"""The probe starts from the mean of the embeddings of these words' first tokens."""

_CHUNK = 512  # samples judged at a time, so that a long test needs little memory


@dataclass(frozen=True, slots=True)
class Job:
    """What to train on, how, and where to put it."""

    sources: Path
    out: Path
    recipe: Recipe
    settings: RowsSettings
    num_dev: int = 800  # samples for early stopping and thresholds
    num_unseen: int = 100  # a group of the test on whole unseen sources; 0 leaves the test out
    memory_gb: float = 8.0  # for the prefixes
    threads: int | None = None
    start: Adapter | None = None  # begin from the rows of this one


def load_base(source: Source, dtype: torch.dtype) -> tuple[PreTrainedModel, HfTokenizer]:
    """The model to train on and its tokenizer. Raises `BrokenModel` if the files cannot be read."""
    transformers_logging.disable_progress_bar()
    kwargs: dict[str, Any] = {}
    unpack: dict[str, Any] = {}
    if source.path is None:
        place = source.name
    elif source.is_gguf:
        place, kwargs["gguf_file"] = str(source.path.parent), source.path.name
        if hasattr(transformers, "GgufConfig"):  # newer versions may keep the weights packed otherwise
            unpack["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        place, kwargs["local_files_only"] = str(source.path), True
    quiet = redirect_stderr(StringIO()) if source.is_gguf else nullcontext()  # its bar has no switch; a download shows
    try:
        with quiet:
            model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **kwargs, **unpack)
            tokenizer = AutoTokenizer.from_pretrained(place, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BrokenModel(f"{source.name} cannot be loaded for training: {error}") from error
    return model, HfTokenizer(tokenizer)


def run_rows(
    job: Job,
    model: PreTrainedModel,
    tokenizer: HfTokenizer,
    *,
    name: str,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> Adapter:
    """Train the rows of `model`, write the adapter folder and return the adapter.

    A run that was killed is taken up again from `checkpoint.pt` in the same folder, which a finished run removes.

    Raises:
        BadData, UsageError: see `build`, `Prefixes` and `train`.
    """
    started = time.monotonic()
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.manual_seed(job.settings.seed)
    job.out.mkdir(parents=True, exist_ok=True)
    states = tuple(InputState)
    layouts = Layouts(Template.from_tokenizer(tokenizer))
    train_samples = list(build(job.sources, job.recipe, "train"))
    dev_samples = list(build(job.sources, _resized(job.recipe, job.num_dev), "dev"))
    say(f"{len(train_samples)} samples to train on, {len(dev_samples)} to judge by: {_counted(train_samples)}")

    rows_model = RowsModel(model, states, start_tokens(tokenizer), job.settings.num_probes)
    if job.start is not None:
        _start_from(rows_model, job.start, fingerprint_of(model, tokenizer))
    allowed = int(job.memory_gb * 2**30)
    train_set = Prefixes(model, [layouts.of(s) for s in train_samples], max_bytes=allowed, progress=progress)
    used = train_set.num_tokens * kv_bytes_per_token(model)
    dev_layouts = [layouts.of(s) for s in dev_samples]
    dev_set = Prefixes(model, dev_layouts, max_bytes=max(1, allowed - used), progress=progress)
    say(f"prefixes: {train_set.num_tokens + dev_set.num_tokens} tokens, {time.monotonic() - started:.0f} s")

    checkpoint = job.out / "checkpoint.pt"
    history = train(
        rows_model,
        states,
        (train_samples, train_set),
        (dev_samples, dev_set),
        job.settings,
        checkpoint=checkpoint,
        progress=progress,
        report=lambda epoch: say(_line(epoch)),
    )
    dev_p = score(rows_model, dev_set)
    thresholds = calibrate(dev_samples, dev_p, states)
    seconds = time.monotonic() - started
    del train_set, dev_set
    facts = _facts(job, name, history, seconds, train_samples)
    facts["dev"] = groups(dev_samples, decide(dev_p, dev_samples, states, thresholds))
    if job.num_unseen:
        test = list(unseen(job.sources, job.recipe, num_per_group=job.num_unseen))
        p = score_samples(rows_model, layouts, test, progress=progress)
        facts["unseen"] = groups(test, decide(p, test, states, thresholds))
    adapter = Adapter(
        kind="rows",
        states=states,
        rows=rows_model.rows(),
        thresholds={ANY_WEIGHTS: thresholds},
        fingerprint=fingerprint_of(model, tokenizer),
        name=name,
        facts=facts,
    )
    adapter.save(job.out)
    checkpoint.unlink(missing_ok=True)
    return adapter


def score_samples(
    rows_model: RowsModel, layouts: Layouts, samples: Sequence[Sample], *, progress: Progress = silent
) -> Probabilities:
    """Probabilities [N, S] of the states for every sample, a bounded number of prefixes in memory at a time."""
    found = []
    for start in range(0, len(samples), _CHUNK):
        chunk = samples[start : start + _CHUNK]
        found.append(score(rows_model, Prefixes(rows_model.base, [layouts.of(s) for s in chunk])))
        progress("test", start + len(chunk), len(samples))
    return np.concatenate(found)


def start_tokens(tokenizer: HfTokenizer) -> list[Token]:
    """Ids whose embeddings a probe starts from."""
    return [tokens[0] for word in START_WORDS if (tokens := tokenizer.encode(word))]


def fingerprint_of(model: PreTrainedModel, tokenizer: HfTokenizer) -> Fingerprint:
    """What an adapter of `model` finds again in it."""
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight
    return Fingerprint.of(
        tokenizer,
        vocab_size=int(embedding.shape[0]),
        hidden_size=int(embedding.shape[1]),
        num_layers=int(config.num_hidden_layers),
    )


def _start_from(rows_model: RowsModel, start: Adapter, fingerprint: Fingerprint) -> None:
    start.check(fingerprint)
    shapes = rows_model.rows()
    rows = start.rows
    if rows is None or (rows.probes.shape, rows.states.shape) != (shapes.probes.shape, shapes.states.shape):
        raise UsageError("--start needs an adapter of kind rows with as many probes as --probes says and four states")
    rows_model.set_rows(rows)


def report_lines(facts: dict[str, Any]) -> list[str]:
    """The report of a run for people."""
    lines = []
    for part in ("dev", "unseen"):
        if part not in facts:
            continue
        for where in ("idle", "over_an_answer"):
            result = facts[part][where]
            recall = ", ".join(f"{state} {100 * value:.1f}" for state, value in result["recall"].items())
            lines.append(
                f"{part}, {where.replace('_', ' ')} (n {result['n']}): recall % {recall}; "
                f"answer F1 {_percent(result['answer_f1'])}, false answers {_percent(result['false_answer_rate'])} %"
            )
            for label, row in result["confusion"].items():
                lines.append(f"    {label:>10} → " + "  ".join(f"{state} {n}" for state, n in row.items()))
    for case, result in facts.get("unseen", {}).get("cases", {}).items():
        right, answered = 100 * result["right"], 100 * result["process"]
        lines.append(f"  {case:<75} n {result['n']:>4}  right {right:5.1f} %  answered {answered:5.1f} %")
    return lines


def _resized(recipe: Recipe, num_samples: int) -> Recipe:
    return replace(recipe, num_samples=num_samples)


def _counted(samples: Sequence[Sample]) -> str:
    counts = Counter(sample.state.value for sample in samples)
    context = sum(bool(sample.context) for sample in samples)
    speaking = sum(sample.speaking for sample in samples)
    return ", ".join(f"{state} {n}" for state, n in sorted(counts.items())) + (
        f"; {context} in a dialogue, {speaking} of them over a running answer"
    )


def _line(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.number}: loss {epoch.train_loss:.4f}, held out {epoch.dev_loss:.4f}, "
        f"{100 * epoch.dev_accuracy:.1f} % right"
    )


def _facts(job: Job, name: str, history: Sequence[Epoch], seconds: float, samples: Sequence[Sample]) -> dict[str, Any]:
    recipe = asdict(job.recipe)
    recipe["shares"] = {state.value: share for state, share in job.recipe.shares.items()}
    recipe["unseen"] = sorted(job.recipe.unseen)
    facts = {
        "base": name,
        "samples": dict(Counter(sample.state.value for sample in samples)),
        "sources": dict(sorted(Counter(sample.source for sample in samples).items())),
        "recipe": recipe,
        "settings": asdict(job.settings),
        "started_from": None if job.start is None else job.start.facts.get("samples", {}),
        "epochs": [asdict(epoch) for epoch in history],
        "seconds": round(seconds),
        "torch": torch.__version__,
    }
    try:
        json.dumps(facts)
    except TypeError as error:  # our own mistake, better found before the adapter is half written
        raise UsageError(f"the recipe has a value that JSON cannot hold: {error}") from error
    return facts


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
