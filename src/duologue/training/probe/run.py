"""A training run around a frozen base: from a folder of samples to an adapter folder."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample
from duologue.decisions.calibration import apply_temperature, fit_temperature
from duologue.decisions.thresholds import Probabilities
from duologue.errors import AdapterMismatch, UsageError
from duologue.models.adapters import Adapter, Fingerprint
from duologue.text.template import Template
from duologue.training.layout import lay_out_within
from duologue.training.probe.loop import Epoch, ProbeTraining, label, score
from duologue.training.probe.prefixes import kv_bytes_per_token, shards
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.recipes import ProbeRecipe, ProbeSettings
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
from duologue.types import InputState, Token

_DEV_SHARE = 0.15  # of the memory for prefixes, at most, goes to held-out samples


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """What to train on, how, and where to write the adapter."""

    data: Path  # train.jsonl, dev.jsonl
    out: Path
    recipe: ProbeRecipe
    num_samples: int | None = None  # the first of train.jsonl; None takes all
    memory_gb: float = 8.0  # for the prefixes
    start: Adapter | None = None  # initial values of what is trained
    teacher: Adapter | None = None  # an adapter whose probabilities are learned besides the labels


def train_probe(
    run: ProbeRun,
    model: PreTrainedModel,
    tokenizer: HfTokenizer,
    *,
    name: str,
    progress: StageProgress = silent,
    say: Say = print,
) -> Adapter:
    """Train rows, and with some recipes a LoRA, around `model` on its device; write and return the adapter.

    A run that was killed continues from `checkpoint.pt` in the same folder; a finished run removes that file.

    Raises:
        BadData, UsageError: see `read_splits` and `ProbeTraining`.
        AdapterMismatch: `start` or `teacher` belongs to another model or kind.
    """
    started = time.monotonic()
    torch.manual_seed(run.recipe.settings.seed)
    run.out.mkdir(parents=True, exist_ok=True)
    samples, dev_samples, states = read_splits(run.data, run.num_samples)
    say(describe_splits(samples, dev_samples) + _places(samples))
    settings = run.recipe.settings_for(len(samples))
    limit, template = max_positions(model), Template.from_tokenizer(tokenizer)
    room = None if limit is None else limit - run.recipe.num_probes
    layouts, truncation = lay_out_within(samples, template, room)
    dev_layouts, dev_truncation = lay_out_within(dev_samples, template, room)
    if truncation.any or dev_truncation.any:
        say(f"longer than the {limit} tokens of this model: in training {truncation}; held out {dev_truncation}")
    fingerprint = fingerprint_of(model, tokenizer)
    probe_model, teacher = _models(run, states, model, start_tokens(tokenizer), fingerprint)
    max_tokens, max_dev_tokens = _max_tokens(run, probe_model)
    in_memory = shards(dev_layouts, max_dev_tokens)[0]
    if len(in_memory) < len(dev_samples):
        say(f"only the first {len(in_memory)} held-out samples are used after each epoch: more do not fit into memory")
    before = time.monotonic() - started

    training = ProbeTraining(
        probe_model,
        label(samples, layouts, states, settings),
        label(dev_samples, dev_layouts, states, settings).part(in_memory),
        settings,
        run.out,
        max_tokens=max_tokens,
        teacher=teacher,
        origin=_origin(run, name, model),
        progress=progress,
    )
    history = training.run(report=lambda epoch: say(_line(epoch)))
    if teacher is not None:
        teacher.unload()
    facts = _facts(run, settings, name, history, round(before + training.files.seconds), samples)
    p = score(probe_model, dev_layouts, max_tokens=max_tokens)
    adapter = _calibrated(run, probe_model, states, fingerprint, facts, dev_samples, p)
    adapter.save(run.out)
    training.files.finish(run.out / "training.png", say)
    return adapter


def _models(
    run: ProbeRun,
    states: tuple[InputState, ...],
    base: PreTrainedModel,
    start: Sequence[Token],
    fingerprint: Fingerprint,
) -> tuple[ProbeModel, ProbeModel | None]:
    """The model to train and its teacher, if there is one, around the same base."""
    teacher = None
    if run.teacher is not None:
        run.teacher.check(fingerprint)
        if run.teacher.states != states:
            raise AdapterMismatch(f"the teacher knows {run.teacher.states}, but the samples have {states}")
        if run.recipe.lora is not None:
            raise UsageError("a teacher is for rows; alora learns more from the labels alone")
        teacher = ProbeModel.from_adapter(run.teacher, base)
    model = ProbeModel(base, states, start, num_probes=run.recipe.num_probes, lora=run.recipe.lora)
    if run.start is not None:
        run.start.check(fingerprint)
        rows, ours = run.start.rows, model.rows()
        if rows is None or (rows.probes.shape, rows.states.shape) != (ours.probes.shape, ours.states.shape):
            raise AdapterMismatch(
                f"--start has another number of probe tokens or states than this run ({ours.probes.shape[0]} and "
                f"{ours.states.shape[0]}); adapt --probes, or omit --start"
            )
        model.set_adapter(rows, run.start.lora)
    return model, teacher


def _max_tokens(run: ProbeRun, model: ProbeModel) -> tuple[int, int]:
    """How many tokens of prefixes fit into memory at a time: for training, and for held-out samples."""
    with model.lora_disabled():
        tokens = run.memory_gb * 2**30 / kv_bytes_per_token(model.prefix_model)
    return max(1, int(tokens * (1 - _DEV_SHARE))), max(1, int(tokens * _DEV_SHARE))


def _calibrated(
    run: ProbeRun,
    model: ProbeModel,
    states: tuple[InputState, ...],
    fingerprint: Fingerprint,
    facts: Mapping[str, Any],
    samples: Sequence[Sample],
    p: Probabilities,
) -> Adapter:
    """The adapter, calibrated on the held-out samples by a temperature and by thresholds; p: [N, S]."""
    temperature = fit_temperature(samples, p, states)
    model.apply_temperature(temperature)
    facts = {**facts, "temperature": round(temperature, 3)}
    adapter = Adapter(run.recipe.kind, states, model.rows(), model.lora(), {}, fingerprint, facts["base"], facts=facts)
    return calibrated(adapter, samples, apply_temperature(p, temperature))


def _origin(run: ProbeRun, name: str, model: PreTrainedModel) -> dict[str, str]:
    """What determines the result besides samples and settings."""

    def digest(adapter: Adapter | None) -> str:
        if adapter is None or adapter.rows is None:
            return ""
        return sha256(adapter.rows.probes.tobytes() + adapter.rows.states.tobytes()).hexdigest()

    return {"model": name, "start": digest(run.start), "teacher": digest(run.teacher), "dtype": str(model.dtype)}


def _places(samples: Sequence[Sample]) -> str:
    context = sum(bool(sample.context) for sample in samples)
    speaking = sum(sample.speaking for sample in samples)
    return f"; {context} in a dialogue, {speaking} of them over a running answer"


def _line(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.number}: loss {epoch.train_loss:.4f}, held out {epoch.dev_loss:.4f}, "
        f"{100 * epoch.dev_accuracy:.1f} % right, {epoch.seconds:.0f} s"
    )


def _facts(
    run: ProbeRun, settings: ProbeSettings, name: str, history: Sequence[Epoch], seconds: int, samples: Sequence[Sample]
) -> dict[str, Any]:
    """What the adapter records about its training."""
    recipe = asdict(replace(run.recipe, settings=settings))
    recipe["looks"] = recipe.pop("presentations")  # its name in adapter folders
    manifest = run.data / "report.json"
    facts = {
        "base": name,
        "samples": count_states(samples),
        "sources": count_sources(samples),
        "data": json.loads(manifest.read_text(encoding="utf-8")).get("recipe") if manifest.exists() else None,
        "recipe": recipe,
        "started_from": None if run.start is None else run.start.name,
        "teacher": None if run.teacher is None else run.teacher.kind,
        "epochs": [asdict(epoch) for epoch in history],
        "seconds": seconds,
        "torch": torch.__version__,
    }
    json.dumps(facts)  # a bug should show before the adapter is half written
    return facts
