"""How well the states are told apart: one judgement of many rows, as a whole and in groups, ready to be written.

Knows probabilities and decisions, not how they came about: a model's, a baseline's and another backend's alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from duologue.data.samples import Sample
from duologue.decisions.calibration import expected_error, reliability
from duologue.decisions.choice import Probabilities, Thresholds2, decide
from duologue.decisions.curve import Tradeoff, tradeoffs
from duologue.decisions.outcome import outcome, outcomes_by
from duologue.evaluation.rows import Rows, check_labels, lay_out
from duologue.evaluation.scoring import latencies, score
from duologue.models.model import Model, Progress
from duologue.types import InputState


@dataclass(frozen=True, eq=False)
class Judged:
    """Rows, what was decided on each, and where there are any, the probabilities behind it."""

    samples: Sequence[Sample]
    decisions: Sequence[InputState]
    states: tuple[InputState, ...] = ()
    p: Probabilities | None = None  # [N, S], columns in the order of `states`
    latency_ms: Mapping[int, float] = field(default_factory=dict)  # of the rows it was measured on

    def part(self, chosen: Sequence[int]) -> "Judged":
        """Some of the rows."""
        return Judged(
            [self.samples[i] for i in chosen],
            [self.decisions[i] for i in chosen],
            self.states,
            None if self.p is None else self.p[list(chosen)],
            {new: self.latency_ms[old] for new, old in enumerate(chosen) if old in self.latency_ms},
        )

    def speaking(self, value: bool) -> "Judged":
        """The rows over a running answer, or the others."""
        return self.part([i for i, sample in enumerate(self.samples) if sample.speaking is value])


def judge_model(
    rows: Rows, model: Model, *, num_latencies: int = 50, progress: Progress | None = None
) -> tuple[Judged, Thresholds2]:
    """What `model` makes of `rows`, with the thresholds it would use in a conversation.

    Raises:
        BadData: a row has a label that the adapter lacks, or does not fit into the context.
    """
    states = model.probe.states
    check_labels(rows, states)
    layouts = lay_out(rows, model)
    p = score(model, layouts, progress=progress)
    policy = model.policy()
    thresholds = (policy.idle, policy.speaking)
    if progress is not None and num_latencies:
        progress("measuring decisions one at a time")
    measured = latencies(model, layouts, num=num_latencies)
    return Judged(rows.samples, decide(p, rows.samples, states, thresholds), states, p, measured), thresholds


def report(judged: Judged) -> dict[str, Any]:
    """Everything about `judged`, for JSON: as a whole, per source and kind, idle and over an answer apart."""
    return {**_section(judged), "idle": _section(judged.speaking(False)), "speaking": _section(judged.speaking(True))}


def _section(judged: Judged) -> dict[str, Any]:
    return {
        **outcome(judged.samples, judged.decisions).to_json(),
        "per_source": _groups(judged, "source"),
        "per_kind": _groups(judged, "kind"),
        "ece": _ece(judged),
        "latency_ms": {name: _percentile(judged, percent) for name, percent in (("p50", 50), ("p95", 95))},
    }


def _groups(judged: Judged, name: str) -> dict[str, dict[str, Any]]:
    """Per value of a field of the samples: as a whole, with the states that occur."""
    groups = {}
    for value, result in outcomes_by(lambda s: str(getattr(s, name)), judged.samples, judged.decisions).items():
        whole = result.to_json()
        present = [state for state, share in whole["recall"].items() if share is not None]
        groups[value] = {
            "n": whole["n"],
            "accuracy": whole["accuracy"],
            "recall": {state: whole["recall"][state] for state in present},
            "false_answer_rate": whole["false_answer_rate"],
            "confusion": {state: whole["confusion"][state] for state in present},
        }
    return groups


def _ece(judged: Judged) -> float | None:
    if judged.p is None:
        return None
    error = expected_error(reliability(judged.samples, judged.p, judged.states))
    return None if error is None else round(error, 4)


def _percentile(judged: Judged, percent: int) -> float | None:
    values = list(judged.latency_ms.values())
    return round(float(np.percentile(values, percent)), 2) if values else None


def details(judged: Judged) -> dict[str, Any]:
    """What pictures are drawn from: bins of confidence, and curves of false actions with the place of the decisions."""
    assert judged.p is not None
    parts = {"all": judged, "idle": judged.speaking(False), "speaking": judged.speaking(True)}
    return {
        "reliability": [each.to_json() for each in reliability(judged.samples, judged.p, judged.states)],
        "curve": {name: [point.to_json() for point in _curve(part)] for name, part in parts.items()},
        "operating_point": {name: _operating_point(part) for name, part in parts.items()},
    }


def _curve(judged: Judged) -> list[Tradeoff]:
    assert judged.p is not None
    return tradeoffs(judged.samples, judged.p, judged.states)


def _operating_point(judged: Judged) -> dict[str, float] | None:
    """Where the decisions themselves stand in the plane of the curve."""
    answered = [state is InputState.PROCESS for state in judged.decisions]
    asked = [a for a, s in zip(answered, judged.samples, strict=True) if s.state is InputState.PROCESS]
    others = [
        a
        for a, s in zip(answered, judged.samples, strict=True)
        if InputState.PROCESS not in s.right and s.state is not InputState.STOP
    ]
    if not asked or not others:
        return None
    return {
        "false_actions": round(sum(others) / len(others), 4),
        "delay": round(1 - sum(asked) / len(asked), 4),
    }


def compare(rows: Rows, one: Judged, other: Judged) -> dict[str, Any]:
    """How far two judgements of the same rows, with the same states, agree; lines on which they do not."""
    assert one.p is not None
    assert other.p is not None
    different = [i for i, pair in enumerate(zip(one.decisions, other.decisions, strict=True)) if pair[0] != pair[1]]
    gaps = np.abs(one.p - other.p).max(1)
    return {
        "n": len(rows.samples),
        "equal_decisions": round(1 - len(different) / len(rows.samples), 4),
        "largest_difference": round(float(gaps.max()), 4),
        "mean_difference": round(float(gaps.mean()), 4),
        "different_lines": [rows.lines[i] for i in different],
    }
