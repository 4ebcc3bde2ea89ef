"""What a set of decisions came to: the confusion over all states, answer-or-ignore, recall; whole and in groups."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from duologue.data.samples import Sample
from duologue.types import InputState

_PROCESS, _INCOMPLETE, _IGNORE = InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE


@dataclass(frozen=True, slots=True)
class Detection:
    """How well one class was told from another. Shares of nothing are None."""

    precision: float | None
    recall: float | None
    f1: float | None

    @classmethod
    def of(cls, *, hits: int, false: int, missed: int) -> "Detection":
        """From what was rightly found, wrongly found, and not found."""
        return cls(_share(hits, hits + false), _share(hits, hits + missed), _share(2 * hits, 2 * hits + false + missed))

    def to_json(self) -> dict[str, float | None]:
        """Rounded, for files."""
        return {"precision": _rounded(self.precision), "recall": _rounded(self.recall), "f1": _rounded(self.f1)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a set of decisions came to. Shares of nothing are None.

    In `accuracy` and `recall` accepted states count as right; everything else goes by the label alone.
    """

    num: int
    accuracy: float | None
    answer: Detection  # process against the rest, on the samples labelled process or ignore
    respond: Detection  # not-ignore against ignore, on the same samples (DUO, table 3)
    false_answers: float | None  # share of ignore that got process
    false_waits: float | None  # share of ignore that got incomplete
    recall: dict[str, float | None]  # of every state
    confusion: dict[str, dict[str, int]]  # label, then decision

    def to_json(self) -> dict[str, Any]:
        """Rounded, for files."""
        return {
            "n": self.num,
            "accuracy": _rounded(self.accuracy),
            "answer": self.answer.to_json(),
            "respond": self.respond.to_json(),
            "false_answer_rate": _rounded(self.false_answers),
            "false_wait_rate": _rounded(self.false_waits),
            "recall": {state: _rounded(value) for state, value in self.recall.items()},
            "confusion": self.confusion,
        }


def outcome(samples: Sequence[Sample], decisions: Sequence[InputState]) -> Outcome:
    """Judge `decisions`."""
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
    return Outcome(
        num=len(samples),
        accuracy=_share(sum(right.values()), len(samples)),
        answer=Detection.of(hits=found, false=false, missed=num_asked - found),
        respond=Detection.of(hits=num_asked - dropped, false=kept, missed=dropped),
        false_answers=_share(false, num_ignored),
        false_waits=_share(ignored[_INCOMPLETE.value], num_ignored),
        recall={label: _share(right[label], num[label]) for label in num},
        confusion=confusion,
    )


def outcomes_by(
    key: Callable[[Sample], str], samples: Sequence[Sample], decisions: Sequence[InputState]
) -> dict[str, Outcome]:
    """Samples of each `key` judged apart, in the order of the keys."""
    pairs: dict[str, list[tuple[Sample, InputState]]] = defaultdict(list)
    for sample, decision in zip(samples, decisions, strict=True):
        pairs[key(sample)].append((sample, decision))
    return {name: outcome([s for s, _ in chosen], [d for _, d in chosen]) for name, chosen in sorted(pairs.items())}


def groups(samples: Sequence[Sample], decisions: Sequence[InputState]) -> dict[str, Any]:
    """For the facts of an adapter: as a whole, idle and over an answer apart, and by state, source and kind."""

    def case(sample: Sample) -> str:
        where = "over an answer" if sample.speaking else "idle"
        return f"{sample.state.value} / {sample.source} / {sample.kind} / {where}"

    idle = [i for i, sample in enumerate(samples) if not sample.speaking]
    speaking = [i for i, sample in enumerate(samples) if sample.speaking]
    cases = {}
    for name, result in outcomes_by(case, samples, decisions).items():
        answered = sum(row[_PROCESS.value] for row in result.confusion.values())
        cases[name] = {"n": result.num, "right": _rounded(result.accuracy), "process": round(answered / result.num, 4)}
    return {
        "all": _facts(outcome(samples, decisions)),
        "idle": _facts(outcome([samples[i] for i in idle], [decisions[i] for i in idle])),
        "over_an_answer": _facts(outcome([samples[i] for i in speaking], [decisions[i] for i in speaking])),
        "cases": cases,
    }


def _facts(result: Outcome) -> dict[str, Any]:
    """What an adapter says of itself: states without samples are left out."""
    present = [label for label, value in result.recall.items() if value is not None]
    return {
        "n": result.num,
        "accuracy": _rounded(result.accuracy),
        "recall": {label: _rounded(result.recall[label]) for label in present},
        "answer_f1": _rounded(result.answer.f1),
        "false_answer_rate": _rounded(result.false_answers),
        "confusion": {label: result.confusion[label] for label in present},
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
