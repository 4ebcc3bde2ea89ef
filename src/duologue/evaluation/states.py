"""How well the states are distinguished: decisions on many rows, in total and by group, as plain values.

Knows probabilities and decisions, not where they come from: a model, a baseline and another backend are judged alike.
N rows, S states.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import numpy.typing as npt

from duologue.core.words import asks, asks_for_a_moment, words_in
from duologue.data.samples import Sample
from duologue.data.workers import Workers
from duologue.decisions.calibration import expected_calibration_error, reliability
from duologue.decisions.metrics import DecisionMetrics, metrics_by, rounded
from duologue.decisions.thresholds import Probabilities, ThresholdPair, decide
from duologue.decisions.tradeoff import operating_point, tradeoffs
from duologue.errors import BadData, EngineError
from duologue.evaluation.labelled_rows import LabelledRows, check_labels, lay_out
from duologue.evaluation.quantiles import p50_p95
from duologue.evaluation.scoring import latencies, score_and_count
from duologue.models.model import Model
from duologue.models.opening import Progress
from duologue.training.layout import Layout
from duologue.types import InputState, Role


@dataclass(frozen=True, eq=False)
class Judgement:
    """Rows, the decision on each, and the probabilities behind it, if there are any."""

    samples: Sequence[Sample]
    decisions: Sequence[InputState]
    states: tuple[InputState, ...] = ()
    p: Probabilities | None = None  # [N, S], columns in the order of `states`
    latency_ms: Mapping[int, float] = field(default_factory=dict)  # by row, of the measured rows
    is_apart: npt.NDArray[np.bool_] | None = None  # [N], rows that took a pass of their own

    def part(self, chosen: Sequence[int]) -> "Judgement":
        """Some of the rows."""
        return Judgement(
            [self.samples[i] for i in chosen],
            [self.decisions[i] for i in chosen],
            self.states,
            None if self.p is None else self.p[list(chosen)],
            {new: self.latency_ms[old] for new, old in enumerate(chosen) if old in self.latency_ms},
            None if self.is_apart is None else self.is_apart[list(chosen)],
        )

    def speaking(self, value: bool) -> "Judgement":
        """The rows over a running answer, or the others."""
        return self.part([i for i, sample in enumerate(self.samples) if sample.speaking is value])


@dataclass(frozen=True, slots=True)
class Decider:
    """What decided: a model with its adapter and its thresholds, on a backend."""

    model: str
    adapter: str  # its kind
    backend: str
    weights: str
    states: tuple[InputState, ...]
    thresholds: ThresholdPair  # those of a conversation

    @classmethod
    def of(cls, model: Model) -> "Decider":
        """The description of a model that decides itself."""
        info, policy = model.backend.info, model.policy()
        thresholds = (policy.idle, policy.speaking)
        return cls(model.name, model.adapter.kind, info.name, info.weights, model.probe.states, thresholds)


def judge_model(
    rows: LabelledRows, model: Model, *, num_latencies: int = 50, progress: Progress | None = None
) -> tuple[Judgement, Decider]:
    """The decisions of `model` on `rows`.

    Raises:
        BadData: a row has a label that the adapter lacks, or does not fit into the context.
    """
    decider = Decider.of(model)
    check_labels(rows, decider.states)
    layouts = lay_out(rows, model)
    p, is_apart = _probabilities(rows, model, layouts, progress)
    if progress is not None and num_latencies:
        progress("measuring decisions one at a time")
    measured = latencies(model, layouts, num=num_latencies)
    decisions = decide(p, rows.samples, decider.states, decider.thresholds)
    return Judgement(rows.samples, decisions, decider.states, p, measured, is_apart), decider


def judge_blocks(
    blocks: Iterable[LabelledRows],
    load: Callable[[], Model],
    workers: Workers,
    *,
    num_rows: int,
    progress: Progress | None = None,
) -> tuple[Judgement, Decider]:
    """What `judge_model` returns, from workers that each load the model once; without latencies.

    Nobody holds more than a few blocks: the samples of the judgement have lost their words.

    Args:
        blocks: rows of a file, in blocks of `labelled_rows.BLOCK`.

    Raises:
        BadData: see `judge_model`; it is found when the row's turn comes.
        EngineError: see `Workers`; or the workers did not load the same.
    """
    samples: list[Sample] = []
    known: dict[Sample, Sample] = {}  # without words, few samples are different
    found: list[_Scored] = []
    for scored in workers.map(_Scorer(load), blocks):
        samples += [known.setdefault(sample, sample) for sample in scored.samples]
        found.append(replace(scored, samples=()))
        if scored.decider != found[0].decider:
            raise EngineError(f"the workers decide differently: {found[0].decider} and {scored.decider}")
        if progress is not None:
            progress("scoring", len(samples) / num_rows)
    decider = found[0].decider
    p, is_apart = np.concatenate([one.p for one in found]), np.concatenate([one.is_apart for one in found])
    decisions = decide(p, samples, decider.states, decider.thresholds)
    return Judgement(samples, decisions, decider.states, p, {}, is_apart), decider


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """A block, without its words."""

    decider: Decider
    samples: tuple[Sample, ...]
    p: Probabilities  # [N, S]
    is_apart: npt.NDArray[np.bool_]  # [N]


@final
class _Scorer:
    """Scores blocks, in a worker."""

    def __init__(self, load: Callable[[], Model]) -> None:
        self._load = load
        self._model: Model | None = None

    def __call__(self, rows: LabelledRows) -> _Scored:
        model = self._model = self._model or self._load()
        try:
            check_labels(rows, model.probe.states)
            p, is_apart = _probabilities(rows, model, lay_out(rows, model))
        except BadData:  # which names the line
            raise
        except Exception as error:
            error.add_note(f"in lines {rows.lines[0]} to {rows.lines[-1]} of {rows.path}")
            raise
        samples = [replace(sample, text="", context=(), system=None, response="") for sample in rows.samples]
        return _Scored(Decider.of(model), tuple(samples), p, is_apart)


def _probabilities(
    rows: LabelledRows, model: Model, layouts: Sequence[Layout], progress: Progress | None = None
) -> tuple[Probabilities, npt.NDArray[np.bool_]]:
    """The probabilities [N, S] of the states as a session sees them, and which rows [N] took a pass of their own."""
    p, is_apart = score_and_count(model, layouts, progress=progress)
    for i, sample in enumerate(rows.samples):
        if (state := _by_form(sample)) is not None:
            p[i] = [float(one is state) for one in model.probe.states]
    return p, is_apart


def _by_form(sample: Sample) -> InputState | None:
    """The state that a session gives to words by their form (choices 1 and 14); None if it depends on the model."""
    if not words_in(sample.text):
        return InputState.IGNORE
    last = sample.context[-1] if sample.context and not sample.speaking else None
    is_reply_due = last is not None and last.role is Role.ASSISTANT and asks(last.text)
    return InputState.INCOMPLETE if last and is_reply_due and asks_for_a_moment(sample.text, last.text) else None


def report(judgement: Judgement) -> dict[str, Any]:
    """All figures of a judgement, for JSON: in total, by source, by kind, and by whether an answer is running."""
    parts = {"idle": judgement.speaking(False), "speaking": judgement.speaking(True)}
    return {**_section(judgement), **{name: _section(part) for name, part in parts.items()}}


def _section(judgement: Judgement) -> dict[str, Any]:
    latencies_ms = list(judgement.latency_ms.values())
    error = None
    if judgement.p is not None:
        error = expected_calibration_error(reliability(judgement.samples, judgement.p, judgement.states))
    return {
        **DecisionMetrics.of(judgement.samples, judgement.decisions).to_json(),
        "per_source": _groups(judgement, "source"),
        "per_kind": _groups(judgement, "kind"),
        "ece": rounded(error),
        "apart": _share(judgement.is_apart),
        "latency_ms": p50_p95(latencies_ms, 2) if latencies_ms else {"p50": None, "p95": None},
    }


def _share(flags: npt.NDArray[np.bool_] | None) -> float | None:
    return None if flags is None or not len(flags) else round(float(flags.mean()), 4)


def _groups(judgement: Judgement, name: str) -> dict[str, dict[str, Any]]:
    """Metrics by the value of a field of the samples, without the states that no sample is labelled with."""
    groups = {}
    for value, metrics in metrics_by(lambda s: str(getattr(s, name)), judgement.samples, judgement.decisions).items():
        whole = metrics.to_json()
        groups[value] = {
            "n": whole["n"],
            "accuracy": whole["accuracy"],
            "recall": {state: whole["recall"][state] for state in metrics.labels},
            "false_answer_rate": whole["false_answer_rate"],
            "confusion": {state: whole["confusion"][state] for state in metrics.labels},
        }
    return groups


def details(judgement: Judgement) -> dict[str, Any]:
    """The data of the pictures: bins of confidence, and curves of false actions with the operating point."""
    assert judgement.p is not None
    parts = {"all": judgement, "idle": judgement.speaking(False), "speaking": judgement.speaking(True)}
    return {
        "reliability": [each.to_json() for each in reliability(judgement.samples, judgement.p, judgement.states)],
        "curve": {name: _curve(part) for name, part in parts.items()},
        "operating_point": {name: operating_point(part.samples, part.decisions) for name, part in parts.items()},
    }


def _curve(judgement: Judgement) -> list[dict[str, float | None]]:
    assert judgement.p is not None
    return [point.to_json() for point in tradeoffs(judgement.samples, judgement.p, judgement.states)]


def compare(rows: LabelledRows, one: Judgement, other: Judgement) -> dict[str, Any]:
    """How far two judgements of the same rows, with the same states, agree, and the lines on which they differ."""
    assert one.p is not None
    assert other.p is not None
    different = [i for i, pair in enumerate(zip(one.decisions, other.decisions, strict=True)) if pair[0] != pair[1]]
    gaps = np.abs(one.p - other.p).max(1)  # [N]
    return {
        "n": len(rows.samples),
        "equal_decisions": round(1 - len(different) / len(rows.samples), 4),
        "largest_difference": round(float(gaps.max()), 4),
        "mean_difference": round(float(gaps.mean()), 4),
        "different_lines": [rows.lines[i] for i in different],
    }
