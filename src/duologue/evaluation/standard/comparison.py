"""The scores of a model on benchmarks, and what changes against the base: intervals of paired differences, identity."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from duologue.errors import UsageError
from duologue.evaluation.markdown import MISSING, percent, table
from duologue.evaluation.results import describe_model
from duologue.evaluation.standard.answering import Answerer, Memory
from duologue.evaluation.standard.benchmarks import BENCHMARKS
from duologue.evaluation.standard.feeding import Feeder, Listening
from duologue.evaluation.standard.harness import Say, Scores, Source, evaluate
from duologue.models.adapters import Adapter
from duologue.models.model import Model

_TEXT = "The quick question, at 10:45: isn't it 3,141 km away? Naïve café – 東京, def f(x): return x**2"
_Z95 = 1.96  # standard errors on either side of a mean that 95 % of means lie within


def measure(
    model: Model, base: Model | None, names: Sequence[str], source: Source, *, responses: Path | None, say: Say
) -> dict[str, Any]:
    """The result of `model` on the benchmarks `names`, and of `base` beside it.

    If both have the same weights, `model` decides about words spoken over its answers in every pass, and the base is
    fed as many ordinary tokens. With an adapter that leaves the base alone, all tokens and log-probabilities are then
    equal. `responses` is a file from which an interrupted run continues.

    Raises:
        UsageError, BadData: see `harness.require`; or `responses` are of other models, or the tokenizers differ.
        EngineError: a backend failed.
    """
    models = [model] if base is None else [model, base]
    same_weights = base is not None and base.name == model.name
    if base is not None:
        _check_tokenizers(model, base)
    described = [describe_model(each) for each in models]
    about = {
        "models": described,
        "adapter": _digest(model.adapter),
        "max_length": model.max_length,
        "listening": same_weights,
    }
    with ExitStack() as closed:
        feeders = _feeders(models, same_weights)
        for feeder in feeders:
            closed.callback(feeder.close)
        answerer = Answerer(models, feeders, Memory(responses, about))
        found = {name: evaluate(answerer, name, source, say) for name in names}
    result: dict[str, Any] = {
        "model": described[0],
        "limit": source.limit,
        "tasks": {name: _summary(name, scores[0]) for name, scores in found.items()},
    }
    if base is not None:
        result |= {
            "base_model": described[1],
            "base": {name: _summary(name, scores[1]) for name, scores in found.items()},
            "differences": {name: difference(*scores) for name, scores in found.items()},
        }
    if same_weights:
        result["identical_tokens"] = {**asdict(answerer.memory.identity), "decisions": feeders[0].num_decisions}
    return result


def _check_tokenizers(model: Model, base: Model) -> None:
    """Raise `UsageError` unless both models read the same ids, since both are fed the same passes."""
    first, second = (each.template.tokenizer.encode(_TEXT) for each in (model, base))
    sizes = [each.backend.info.vocab_size for each in (model, base)]
    if first != second or sizes[0] != sizes[1]:
        raise UsageError(
            f"{base.name} has another tokenizer than {model.name}, so they cannot be asked side by side; measure each "
            "in a run of its own"
        )


def _digest(adapter: Adapter) -> str | None:
    """What tells adapters of the same name apart: a hash of their tensors."""
    if adapter.rows is None:
        return None
    tensors: dict[str, Any] = {} if adapter.lora is None else {**adapter.lora.tensors()}
    tensors |= {"probes": adapter.rows.probes, "outputs": adapter.rows.outputs}
    digest = hashlib.blake2b(digest_size=12)
    for _, tensor in sorted(tensors.items()):
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def _feeders(models: Sequence[Model], same_weights: bool) -> list[Feeder]:
    if not same_weights or models[0].adapter.kind == "prompted":
        return [Feeder(model.backend) for model in models]
    listening = Listening.of(models[0])
    return [Feeder(models[0].backend, listening), Feeder(models[1].backend, listening.without_probe())]


def _summary(name: str, scores: Scores) -> dict[str, Any]:
    """The main metric first, its standard error, the number of rows and that of the whole benchmark."""
    values = np.array(scores.values[scores.metric])
    others = {metric: round(float(np.mean(each)), 4) for metric, each in scores.values.items()}
    return {
        scores.metric: others.pop(scores.metric),
        "stderr": round(standard_error(values), 4),
        "n": len(values),
        "of": BENCHMARKS[name].size,
        **others,
    }


def standard_error(values: "np.ndarray[Any, Any]") -> float:
    """Of the mean of N values [N]; 0 for a single one."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def difference(ours: Scores, base: Scores) -> dict[str, Any]:
    """The mean of the paired differences on the main metric, its 95 % interval, and how many rows changed."""
    gaps = np.array(ours.values[ours.metric]) - np.array(base.values[base.metric])
    mean, error = float(gaps.mean()), standard_error(gaps)
    return {
        "mean": round(mean, 4),
        "low": round(mean - _Z95 * error, 4),
        "high": round(mean + _Z95 * error, 4),
        "gained": int((gaps > 0).sum()),
        "lost": int((gaps < 0).sum()),
    }


def tables(result: Mapping[str, Any]) -> str:
    """The result as Markdown: a row for each benchmark, and a sentence about identical tokens."""
    rows = []
    for name, ours in result["tasks"].items():
        metric = next(iter(ours))
        base, gap = result.get("base", {}).get(name), result.get("differences", {}).get(name)
        rows.append(
            (
                name,
                metric,
                f"{ours['n']} of {ours['of']}",
                f"{percent(ours[metric])} ± {percent(ours['stderr'])}",
                MISSING if base is None else percent(base[metric]),
                MISSING
                if gap is None
                else f"{100 * gap['mean']:+.2f} ({100 * gap['low']:+.2f} … {100 * gap['high']:+.2f})",
            )
        )
    text = table(("task", "metric", "n", "score ± stderr", "base", "difference (95 %)"), rows)
    if "identical_tokens" not in result:
        return text
    same = result["identical_tokens"]
    return (
        f"{text}\n\nOf {same['tokens']} tokens, {same['different']} differ from those of the base, and "
        f"{same['inexact']} have another log-probability or margin; {same['ties']} are ties. {same['decisions']} "
        "decisions were made meanwhile."
    )
