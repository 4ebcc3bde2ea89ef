"""An adapter's rows put into a model's own matrices, for engines that know nothing of adapters.

What is written is looked at again: the base model must say what it said, decisions must be those of the rows, and no
added row may win in ordinary text (see `never_wins`). Text for that is what the model writes by itself.
This file holds what both formats share; `export_gguf` and `export_hf` are in files of their own, one library each.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from duologue.backends.rows import Rows
from duologue.errors import EngineError, UsageError
from duologue.export.suppression import Leads, Quiet
from duologue.text.template import Template
from duologue.types import InputState, Role, Token, Turn

FloatArray = npt.NDArray[np.float32]

DECISION_TOLERANCE = 0.02
"""How far an exported probability may be from that of the rows in float32."""

KEPT_TOLERANCE = 0.1
"""The same where the base's own 8-bit matrix was kept: rows and hidden states are rounded to 8 bits."""

QUESTIONS = (
    "What should I cook for two friends tonight?",
    "Explain to a child why the sea is salty.",
    "Write a short letter to a neighbour about the noise.",
    "How do I sort a list of numbers in Python?",
    "Tell me about a town you would like to visit.",
    "List five things to take on a walk in the rain.",
    "Who invented the printing press, and when?",
    "What is three quarters of two hundred and eighty?",
)
"""Where the model's own text begins."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and what was found when it was looked at."""

    path: Path
    vocab_size: int  # rows of the matrices: base, added and padding
    added: dict[str, Token]  # name of each added token and its id
    is_untied: bool  # a separate output matrix was written because a probe row would have won
    leads: Leads  # on text that the shift was not computed from, from the written file
    num_same: int  # greedy tokens that are those of the base, of as many as were compared
    decision_error: float  # largest difference of a state's probability from that of the rows in float32
    lora: Path | None = None  # where the adapter's LoRA was written, if it has one


def check_out(out: Path, *, force: bool) -> None:
    """Raise `UsageError` if `out` is taken; with `force`, remove it."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        return
    if not force:
        raise UsageError(f"{out} exists already; give another place, or --force to replace it")
    is_ours = any((out / name).exists() for name in ("config.json", "adapter_config.json"))
    if out.is_dir() and not is_ours and any(out.iterdir()):
        raise UsageError(f"{out} is a folder with other things in it; it will not be replaced")
    shutil.rmtree(out) if out.is_dir() else out.unlink()


def starts(template: Template) -> list[tuple[Token, ...]]:
    """A question each, ready to be answered."""
    return [(*template.render([Turn(Role.USER, text)]), *template.header) for text in QUESTIONS]


def state_names(rows: Rows, states: Sequence[InputState]) -> list[str]:
    """Text of the added tokens, for the states in the adapter's order."""
    num = rows.probes.shape[0]
    if len(states) != rows.states.shape[0]:
        raise UsageError(f"{len(states)} states for {rows.states.shape[0]} rows; give one for each")
    probes = ["<|prediction|>"] if num == 1 else [f"<|prediction_{i}|>" for i in range(num)]
    return probes + [state.marker for state in states]


def quiet_rows(rows: Rows, quiet: Quiet) -> Rows:
    """The rows to be written."""
    return Rows(rows.probes, quiet.states)


def softmax(logits: FloatArray) -> FloatArray:
    """Over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def check_report(report: ExportReport, num_compared: int, tolerance: float = DECISION_TOLERANCE) -> ExportReport:
    """Raise `EngineError` if what was written is not what was meant; else return it."""
    problems = []
    if report.leads.num_won:
        problems.append(
            f"added rows win at {report.leads.num_won} of {report.leads.num_tokens} positions of plain text"
        )
    if report.num_same < num_compared:
        problems.append(f"{num_compared - report.num_same} of {num_compared} greedy tokens are not those of the base")
    if not report.decision_error <= tolerance:
        problems.append(f"probabilities of states are off by up to {report.decision_error:.3f}")
    if problems:
        raise EngineError(f"{report.path} was written but did not pass its checks: {'; '.join(problems)}")
    return report
