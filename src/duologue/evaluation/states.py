"""How well the states are distinguished: decisions on many rows, in total and by group, as plain values.

Knows probabilities and decisions, not where they come from: a model, a baseline and another backend are judged alike.
N rows, S states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from duologue.core.words import asks, asks_for_a_moment, words_in
from duologue.data.samples import Sample
from duologue.decisions.calibration import expected_calibration_error, reliability
from duologue.decisions.metrics import DecisionMetrics, metrics_by, rounded
from duologue.decisions.thresholds import Probabilities, ThresholdPair, decide
from duologue.decisions.tradeoff import operating_point, tradeoffs
from duologue.evaluation.labelled_rows import LabelledRows, check_labels, lay_out
from duologue.evaluation.quantiles import p50_p95
from duologue.evaluation.scoring import latencies, score_and_count
from duologue.models.model import Model
from duologue.models.opening import Progress
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


def judge_model(
    rows: LabelledRows, model: Model, *, num_latencies: int = 50, progress: Progress | None = None
) -> tuple[Judgement, ThresholdPair]:
    """The decisions of `model` on `rows`, and its thresholds, which are those of a conversation.

    Raises:
        BadData: a row has a label that the adapter lacks, or does not fit into the context.
    """
    states = model.probe.states
    check_labels(rows, states)
    layouts = lay_out(rows, model)
    p, is_apart = score_and_count(model, layouts, progress=progress)
    for i, sample in enumerate(rows.samples):
        if (state := _by_form(sample)) is not None:
            p[i] = [float(one is state) for one in states]
    policy = model.policy()
    thresholds = (policy.idle, policy.speaking)
    if progress is not None and num_latencies:
        progress("measuring decisions one at a time")
    measured = latencies(model, layouts, num=num_latencies)
    decisions = decide(p, rows.samples, states, thresholds)
    return Judgement(rows.samples, decisions, states, p, measured, is_apart), thresholds


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
