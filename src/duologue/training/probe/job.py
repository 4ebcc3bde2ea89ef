"""One training run around a frozen base: a folder of samples in, an adapter folder out."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.samples import Sample, read_samples
from duologue.decisions.calibration import apply_temperature, fit_temperature
from duologue.decisions.metrics import adapter_facts
from duologue.decisions.thresholds import Probabilities, calibrate, decide
from duologue.errors import AdapterMismatch, BadData, UsageError
from duologue.models.adapters import ANY_WEIGHTS, Adapter, Fingerprint
from duologue.text.template import Template
from duologue.training.curves import draw
from duologue.training.probe.loop import Epoch, Settings, label, score, train
from duologue.training.probe.prefixes import Progress, kv_bytes_per_token, shards, silent
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.recipes import ProbeRecipe
from duologue.training.sequences import lay_out_heard
from duologue.types import InputState, Token

START_WORDS = (" process", " decide", " state", " complete", " answer", " wait", " ignore", " stop", " listening")
"""The probe starts from the mean of the embeddings of these words' first tokens."""

_NEEDED = (InputState.PROCESS, InputState.IGNORE)
"""Without these two there is nothing to tell apart."""

_DEV_SHARE = 0.15  # of the memory, at most, for the prefixes of held-out samples


@dataclass(frozen=True, slots=True)
class Job:
    """What to train on, how, and where to put it."""

    data: Path  # train.jsonl, dev.jsonl, and perhaps test.jsonl
    out: Path
    recipe: ProbeRecipe
    num_samples: int | None = None  # the first so many of train.jsonl; None takes all
    memory_gb: float = 8.0  # for the prefixes
    threads: int | None = None
    start: Adapter | None = None  # begin from what this one learnt
    teacher: Adapter | None = None  # learn from the probabilities of this one, too


def run_probe_job(
    job: Job,
    model: PreTrainedModel,
    tokenizer: HfTokenizer,
    *,
    name: str,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> Adapter:
    """Train rows, and with some recipes a LoRA, around `model` where it is; write the adapter folder and return it.

    A run that was killed is taken up again from `checkpoint.pt` in the same folder, which a finished run removes.

    Raises:
        BadData, UsageError: see `read_samples` and `train`.
        AdapterMismatch: `start` or `teacher` is of another model or kind.
    """
    started = time.monotonic()
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.manual_seed(job.recipe.settings.seed)
    job.out.mkdir(parents=True, exist_ok=True)
    train_samples, dev_samples, states = read_splits(job.data, job.num_samples)
    say(f"{len(train_samples)} samples to train on, {len(dev_samples)} to judge by: {_counted(train_samples)}")

    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = None if limit is None else limit - job.recipe.num_probes
    template = Template.from_tokenizer(tokenizer)
    train_layouts, shortened = lay_out_heard(train_samples, template, room)
    dev_layouts, dev_shortened = lay_out_heard(dev_samples, template, room)
    for where, lost in (("to train on", shortened), ("held out", dev_shortened)):
        if lost.any:
            say(f"of the samples {where}, too long for the {limit} tokens of this model: {lost}")
    settings = job.recipe.settings_for(len(train_samples))
    data = label(train_samples, train_layouts, states, settings)
    dev = label(dev_samples, dev_layouts, states, settings)
    fingerprint = fingerprint_of(model, tokenizer)
    teacher = _teacher(job, states, fingerprint, model)
    probe_model = ProbeModel(
        model, states, start_tokens(tokenizer), num_probes=job.recipe.num_probes, lora=job.recipe.lora
    )
    if job.start is not None:
        _take_over(probe_model, job.start, fingerprint)
    max_tokens, max_judged = _max_tokens(job, probe_model)
    judged = len(shards(dev_layouts, max_judged)[0])
    if judged < len(dev_samples):
        say(f"after each epoch, the first {judged} held-out samples judge it: more do not fit into the memory")
    origin = {"model": name, "start": _digest(job.start), "teacher": _digest(job.teacher), "dtype": str(model.dtype)}
    before = time.monotonic() - started

    checkpoint, log = job.out / "checkpoint.pt", job.out / "training.jsonl"
    if not checkpoint.exists():
        log.unlink(missing_ok=True)
    history = train(
        probe_model,
        data,
        dev.first(judged),
        settings,
        max_tokens=max_tokens,
        checkpoint=checkpoint,
        log=log,
        progress=progress,
        report=lambda epoch: say(_line(epoch)),
        teacher=teacher,
        origin=origin,
    )
    if teacher is not None:
        teacher.give_back()
    seconds = before + history[-1].seconds
    facts = _facts(job, settings, name, history, seconds, train_samples)
    p = score(probe_model, dev_layouts, max_tokens=max_tokens)
    adapter = _calibrated(job, probe_model, dev_samples, p, states, fingerprint, facts)
    adapter.save(job.out)
    draw(log, job.out / "training.png", say)
    checkpoint.unlink(missing_ok=True)
    return adapter


def read_splits(
    folder: Path, num_samples: int | None = None
) -> tuple[list[Sample], list[Sample], tuple[InputState, ...]]:
    """The first `num_samples` to train on, those held out, and the states that there are.

    Raises:
        UsageError: a file is not there.
        BadData: a file cannot be read or is empty; nothing to process or nothing to ignore; the two have other states.
    """
    train, dev = _read(folder / "train.jsonl")[:num_samples], _read(folder / "dev.jsonl")
    present, held_out = ({sample.state for sample in samples} for samples in (train, dev))
    if missing := [state.value for state in _NEEDED if state not in present]:
        raise BadData(f"{folder / 'train.jsonl'} has no sample of {', '.join(missing)} among the first {len(train)}")
    if missing := [state.value for state in InputState if state in present - held_out]:
        raise BadData(f"{folder / 'dev.jsonl'} has no sample of {', '.join(missing)}, which train.jsonl has")
    if unknown := [state.value for state in InputState if state in held_out - present]:
        raise BadData(f"{folder / 'dev.jsonl'} has samples of {', '.join(unknown)}, which train.jsonl has not")
    return train, dev, tuple(state for state in InputState if state in present)


def _calibrated(
    job: Job,
    model: ProbeModel,
    samples: Sequence[Sample],
    p: Probabilities,
    states: tuple[InputState, ...],
    fingerprint: Fingerprint,
    facts: dict[str, Any],
) -> Adapter:
    """The adapter, as sure as it is right on the held-out `samples`, with the thresholds that suit them best."""
    temperature = fit_temperature(samples, p, states)
    model.cool(temperature)
    p = apply_temperature(p, temperature)
    thresholds = calibrate(samples, p, states)
    decided = adapter_facts(samples, decide(p, samples, states, thresholds))
    return Adapter(
        kind=job.recipe.kind,
        states=states,
        rows=model.rows(),
        lora=model.lora(),
        thresholds={ANY_WEIGHTS: thresholds},
        fingerprint=fingerprint,
        name=facts["base"],
        facts={**facts, "temperature": round(temperature, 3), "dev": decided},
    )


def _teacher(
    job: Job, states: tuple[InputState, ...], fingerprint: Fingerprint, model: PreTrainedModel
) -> ProbeModel | None:
    """The teacher around the base, if there is one."""
    if job.teacher is None:
        return None
    job.teacher.check(fingerprint)
    if job.teacher.states != states:
        raise AdapterMismatch(f"the teacher knows {job.teacher.states}, the samples have {states}")
    if job.recipe.lora is not None:
        raise UsageError("a teacher is for rows; alora learns more from the labels alone")
    return ProbeModel.of(job.teacher, model)


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


def _read(path: Path) -> list[Sample]:
    if not path.exists():
        raise UsageError(f"there is no {path}; make it with `duologue data build`")
    samples = list(read_samples(path))
    if not samples:
        raise BadData(f"{path} has no samples")
    return samples


def _max_tokens(job: Job, model: ProbeModel) -> tuple[int, int]:
    """Of prefixes in memory at a time: to train on, and held out."""
    with model.base_alone():
        tokens = job.memory_gb * 2**30 / kv_bytes_per_token(model.prefix_model)
    return max(1, int(tokens * (1 - _DEV_SHARE))), max(1, int(tokens * _DEV_SHARE))


def _digest(adapter: Adapter | None) -> str:
    """What tells one trained adapter from another."""
    if adapter is None or adapter.rows is None:
        return ""
    return sha256(adapter.rows.probes.tobytes() + adapter.rows.states.tobytes()).hexdigest()


def _take_over(model: ProbeModel, start: Adapter, fingerprint: Fingerprint) -> None:
    start.check(fingerprint)
    ours = model.rows()
    rows = start.rows
    if rows is None or (rows.probes.shape, rows.states.shape) != (ours.probes.shape, ours.states.shape):
        raise AdapterMismatch(
            f"--start has another number of probe tokens or states than this run ({ours.probes.shape[0]} and "
            f"{ours.states.shape[0]}); say so with --probes, or begin without it"
        )
    model.set_adapter(rows, start.lora)


def report_lines(facts: dict[str, Any]) -> list[str]:
    """The report of a run for people."""
    lines = []
    for where in ("idle", "over_an_answer"):
        result = facts["dev"][where]
        recall = ", ".join(f"{state} {100 * value:.1f}" for state, value in result["recall"].items())
        lines.append(
            f"held out, {where.replace('_', ' ')} (n {result['n']}): recall % {recall}; "
            f"answer F1 {_percent(result['answer_f1'])}, false answers {_percent(result['false_answer_rate'])} %"
        )
    return lines


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
        f"{100 * epoch.dev_accuracy:.1f} % right, {epoch.seconds:.0f} s"
    )


def _facts(
    job: Job, settings: Settings, name: str, history: Sequence[Epoch], seconds: float, samples: Sequence[Sample]
) -> dict[str, Any]:
    recipe = asdict(replace(job.recipe, settings=settings))
    manifest = job.data / "report.json"
    facts = {
        "base": name,
        "samples": dict(Counter(sample.state.value for sample in samples)),
        "sources": dict(sorted(Counter(sample.source for sample in samples).items())),
        "data": json.loads(manifest.read_text(encoding="utf-8")).get("recipe") if manifest.exists() else None,
        "recipe": recipe,
        "started_from": None if job.start is None else job.start.name,
        "teacher": None if job.teacher is None else job.teacher.kind,
        "epochs": [asdict(epoch) for epoch in history],
        "seconds": round(seconds),
        "torch": torch.__version__,
    }
    json.dumps(facts)  # our own mistake, better found before the adapter is half written
    return facts


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
