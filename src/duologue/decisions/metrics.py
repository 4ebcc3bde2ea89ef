"""Metrics of decisions: accuracy, recall and confusion over all states, and detection of what to answer."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from duologue.data.samples import Sample
from duologue.types import InputState

_Z = 1.96  # of a confidence of 95 %
_PROCESS, _INCOMPLETE, _IGNORE = InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE


def wilson(right: int, num: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson 1927)."""
    if not num:
        return 0.0, 1.0
    share, spread = right / num, _Z * _Z / num
    centre = share + spread / 2
    width = _Z * math.sqrt(share * (1 - share) / num + spread / (4 * num))
    return max(0.0, (centre - width) / (1 + spread)), min(1.0, (centre + width) / (1 + spread))


@dataclass(frozen=True, slots=True)
class Detection:
    """How well one class was told from another. A share of nothing is None."""

    precision: float | None
    recall: float | None
    f1: float | None

    @classmethod
    def of(cls, *, hits: int, false: int, missed: int) -> "Detection":
        """From the numbers of true positives, false positives and false negatives."""
        return cls(_share(hits, hits + false), _share(hits, hits + missed), _share(2 * hits, 2 * hits + false + missed))

    def to_json(self) -> dict[str, float | None]:
        """Rounded, for files."""
        return {"precision": rounded(self.precision), "recall": rounded(self.recall), "f1": rounded(self.f1)}


@dataclass(frozen=True, slots=True)
class DecisionMetrics:
    """How good a set of decisions is. A share of nothing is None.

    In `accuracy` and `recall` accepted states count as right; everything else goes by the label alone.
    """

    num: int
    accuracy: float | None
    answer: Detection  # process against the rest, on the samples labelled process or ignore
    respond: Detection  # everything but ignore against ignore, on the same samples (DUO, table 3)
    false_answers: float | None  # share of ignore decided as process
    false_waits: float | None  # share of ignore decided as incomplete
    recall: dict[str, float | None]  # of every state
    confusion: dict[str, dict[str, int]]  # label, then decision

    @classmethod
    def of(cls, samples: Sequence[Sample], decisions: Sequence[InputState]) -> "DecisionMetrics":
        """Judge one decision per sample."""
        confusion = {label.value: {state.value: 0 for state in InputState} for label in InputState}
        right = {label.value: 0 for label in InputState}
        for sample, decision in zip(samples, decisions, strict=True):
            confusion[sample.state.value][decision.value] += 1
            right[sample.state.value] += decision in sample.right
        num = {label: sum(row.values()) for label, row in confusion.items()}
        asked, ignored = confusion[_PROCESS.value], confusion[_IGNORE.value]
        num_asked, num_ignored = num[_PROCESS.value], num[_IGNORE.value]
        found, false = asked[_PROCESS.value], ignored[_PROCESS.value]
        dropped, kept = asked[_IGNORE.value], num_ignored - ignored[_IGNORE.value]
        return cls(
            num=len(samples),
            accuracy=_share(sum(right.values()), len(samples)),
            answer=Detection.of(hits=found, false=false, missed=num_asked - found),
            respond=Detection.of(hits=num_asked - dropped, false=kept, missed=dropped),
            false_answers=_share(false, num_ignored),
            false_waits=_share(ignored[_INCOMPLETE.value], num_ignored),
            recall={label: _share(right[label], num[label]) for label in num},
            confusion=confusion,
        )

    @property
    def labels(self) -> list[str]:
        """The states that some sample is labelled with."""
        return [label for label, value in self.recall.items() if value is not None]

    @property
    def mean_recall(self) -> float | None:
        """The recall of a state in the mean over the states that some sample is labelled with."""
        found = [value for value in self.recall.values() if value is not None]
        return sum(found) / len(found) if found else None

    def to_json(self) -> dict[str, Any]:
        """Rounded, for files."""
        return {
            "n": self.num,
            "accuracy": rounded(self.accuracy),
            "answer": self.answer.to_json(),
            "respond": self.respond.to_json(),
            "false_answer_rate": rounded(self.false_answers),
            "false_wait_rate": rounded(self.false_waits),
            "recall": {state: rounded(value) for state, value in self.recall.items()},
            "confusion": self.confusion,
        }


def metrics_by(
    key: Callable[[Sample], str], samples: Sequence[Sample], decisions: Sequence[InputState]
) -> dict[str, DecisionMetrics]:
    """Metrics of the samples of each `key`, ordered by key."""
    pairs: dict[str, list[tuple[Sample, InputState]]] = defaultdict(list)
    for sample, decision in zip(samples, decisions, strict=True):
        pairs[key(sample)].append((sample, decision))
    return {name: DecisionMetrics.of(*zip(*chosen, strict=True)) for name, chosen in sorted(pairs.items())}


def adapter_facts(samples: Sequence[Sample], decisions: Sequence[InputState]) -> dict[str, Any]:
    """What `adapter.json` says of held-out samples: all, idle, over an answer, and by state, source and kind."""

    def case(sample: Sample) -> str:
        where = "over an answer" if sample.speaking else "idle"
        return f"{sample.state.value} / {sample.source} / {sample.kind} / {where}"

    cases = {}
    for name, result in metrics_by(case, samples, decisions).items():
        answered = sum(row[_PROCESS.value] for row in result.confusion.values())
        cases[name] = {"n": result.num, "right": rounded(result.accuracy), "process": round(answered / result.num, 4)}
    facts: dict[str, Any] = {"all": _facts(DecisionMetrics.of(samples, decisions))}
    for name, speaking in (("idle", False), ("over_an_answer", True)):
        rows = [i for i, sample in enumerate(samples) if sample.speaking is speaking]
        facts[name] = _facts(DecisionMetrics.of([samples[i] for i in rows], [decisions[i] for i in rows]))
    return {**facts, "cases": cases}


def _facts(result: DecisionMetrics) -> dict[str, Any]:
    """Without the states that no sample is labelled with."""
    return {
        "n": result.num,
        "accuracy": rounded(result.accuracy),
        "recall": {label: rounded(result.recall[label]) for label in result.labels},
        "answer_f1": rounded(result.answer.f1),
        "false_answer_rate": rounded(result.false_answers),
        "confusion": {label: result.confusion[label] for label in result.labels},
    }


def rounded(value: float | None) -> float | None:
    """To four digits, for files."""
    return None if value is None else round(value, 4)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
