"""How well answers are timed: the floor taken in pauses within a turn, and the delay behind its end, as plain values.

A row is the words up to a joint of a turn, where the speaker goes on after a pause, or up to its end. The wait is the
one that the policy computes for these words. The time of the decision's forward pass comes on top and is not counted.
N rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from duologue.backends.sampling import FloatArray
from duologue.core.events import Decision
from duologue.core.policy import Policy
from duologue.data import forms
from duologue.data.samples import Sample
from duologue.decisions.metrics import rounded
from duologue.decisions.timing import Flags, auc
from duologue.errors import BadData
from duologue.evaluation.labelled_rows import LabelledRows, lay_out, read
from duologue.evaluation.quantiles import p50_p95
from duologue.evaluation.scoring import score_timing
from duologue.models.model import Model
from duologue.models.opening import Progress
from duologue.types import InputState

PAUSES_S = (0.6, 1.2, 2.0)
"""Lengths of a pause at a joint."""
EARLY = (0.05, 0.10)
"""Shares of pauses in which the floor may be taken, for the operating points."""
_DIAL = np.linspace(-1, 1, 81)  # values of eagerness that are tried for the operating points

Seconds: TypeAlias = npt.NDArray[np.float64]


def read_timing(path: Path) -> LabelledRows:
    """The rows of a file. Raises `BadData` that names the line, or if all of them end or none does."""
    rows = read(path, _sample)
    if len({sample.ends for sample in rows.samples}) == 1:
        missing = "goes on" if rows.samples[0].ends else "ends"
        raise BadData(f"{path} has no row in which the speaker {missing}; it needs rows of both kinds")
    return rows


def _sample(row: Mapping[str, Any]) -> Sample:
    for field, kind in (("text", "the words up to a joint or to the end of a turn"), ("ends", "true or false")):
        if row.get(field) is None:
            raise BadData(f'a row has no "{field}" ({kind}); it needs text and ends')
    return Sample.from_json({"state": InputState.PROCESS.value, "source": "", **row})


def probabilities(rows: LabelledRows, model: Model, *, progress: Progress | None = None) -> FloatArray:
    """The probability [N] that the turn ends, by `model`.

    Raises:
        BadData: a row does not fit into the context.
        AdapterMismatch: the adapter has no timing pair.
    """
    return score_timing(model, lay_out(rows, model), progress=progress)


def report(samples: Sequence[Sample], p_ends: FloatArray, policy: Policy) -> dict[str, Any]:
    """All figures at the policy's eagerness, the operating points of the dial, and the best constant waits.

    p_ends: [N]. Points and constants are mean delays, in ms, at which the floor is taken in at most so many pauses,
    each length of a pause counting the same; None where the dial does not reach it.
    """
    ends = np.array([sample.ends is True for sample in samples], dtype=bool)
    questions = np.array([forms.is_question(forms.last_sentence(sample.text)) for sample in samples], dtype=bool)
    parts = {"questions": questions, "statements": ~questions}
    sections = {name: _section(ends[part], p_ends[part], policy) for name, part in parts.items()}
    curve = [_point(ends, p_ends, replace(policy, eagerness=float(eagerness))) for eagerness in _DIAL]
    return {
        **_section(ends, p_ends, policy),
        "auc_statements": sections["statements"]["auc"],
        "eagerness": policy.eagerness,
        "points": {f"{share:.2f}": _least_delay(curve, share) for share in EARLY},
        "constant": {f"{share:.2f}": _constant(share) for share in EARLY},
        **sections,
        "curve": curve,
    }


def _section(ends: Flags, p_ends: FloatArray, policy: Policy) -> dict[str, Any]:
    """The figures of some rows. ends, p_ends: [N]."""
    waits = _waits(p_ends, policy)
    delays = [1000.0 * float(wait) for wait in waits[ends]]
    return {
        "n": len(ends),
        "auc": rounded(auc(p_ends, ends)),
        "early": {str(pause): rounded(_early(waits[~ends], pause)) for pause in PAUSES_S},
        "delay_ms": p50_p95(delays, 0) if delays else {"p50": None, "p95": None},
    }


def _point(ends: Flags, p_ends: FloatArray, policy: Policy) -> dict[str, float]:
    """Share of pauses in which the floor is taken, and mean delay. ends, p_ends: [N], rows of both kinds."""
    waits = _waits(p_ends, policy)
    early = np.mean([_early(waits[~ends], pause) for pause in PAUSES_S])
    return {
        "eagerness": round(policy.eagerness, 3),
        "early": round(float(early), 4),
        "delay_ms": round(1000.0 * float(waits[ends].mean())),
    }


def _least_delay(curve: Sequence[Mapping[str, float]], share: float) -> float | None:
    return min((point["delay_ms"] for point in curve if point["early"] <= share), default=None)


def _constant(share: float) -> float:
    """The shortest wait, in ms and the same behind all words, that takes the floor in at most `share` of the pauses."""
    waits = [0.0, *PAUSES_S]
    return 1000.0 * min(wait for wait in waits if np.mean([wait < pause for pause in PAUSES_S]) <= share)


def _early(waits: Seconds, pause: float) -> float | None:
    """The share of joints whose wait is over before a pause of so many seconds. waits: [N]."""
    return float((waits < pause).mean()) if len(waits) else None


def _waits(p_ends: FloatArray, policy: Policy) -> Seconds:
    """Seconds [N] until an answer is released after the last words, which have ended."""
    decisions = (Decision(InputState.PROCESS, 1.0, (), float(p)) for p in p_ends)
    return np.array([policy.wait_s(decision, final=True) for decision in decisions])
