"""What an export wrote, and the criteria that the written model must meet."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from duologue.backends.rows import AdapterRows
from duologue.errors import EngineError, UsageError
from duologue.export.suppression import Leads
from duologue.types import InputState, Token

DECISION_TOLERANCE = 0.02
"""How far an exported state probability may differ from that of the rows in float32."""

KEPT_TOLERANCE = 0.1
"""The same if the base's own 8-bit matrix was kept, which rounds rows and hidden states to 8 bits."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and the results of its checks."""

    path: Path
    vocab_size: int  # rows of the matrices: base, added and padding
    added: dict[str, Token]  # the id of each added token by its text
    is_untied: bool  # a separate output matrix was written because a probe row would have won
    leads: Leads  # of the written file, on text that the shift was not computed from
    num_same: int  # greedy tokens equal to the base model's
    decision_error: float  # the largest difference of a state probability from that of the rows in float32
    lora: Path | None = None  # the file or folder of the adapter's LoRA, if it has one


def check_out(out: Path, *, force: bool) -> None:
    """Raise `UsageError` if `out` exists; with `force`, remove it."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        return
    if not force:
        raise UsageError(f"{out} exists already; give another path, or --force to replace it")
    is_ours = any((out / name).exists() for name in ("config.json", "adapter_config.json"))
    if out.is_dir() and not is_ours and any(out.iterdir()):
        raise UsageError(f"{out} is a folder with other content, which will not be replaced")
    shutil.rmtree(out) if out.is_dir() else out.unlink()


def token_names(rows: AdapterRows, states: Sequence[InputState]) -> list[str]:
    """Text of the added tokens. `states` names the state rows in their order."""
    if len(states) != rows.num_added - rows.num_probes:
        raise UsageError(f"{len(states)} states for {rows.num_added - rows.num_probes} state rows; give one per row")
    return rows.token_names(states)


def check_report(report: ExportReport, num_compared: int, tolerance: float = DECISION_TOLERANCE) -> ExportReport:
    """Return `report`, or raise `EngineError` if what was written failed its checks."""
    problems = []
    if report.leads.num_won:
        problems.append(
            f"added rows win at {report.leads.num_won} of {report.leads.num_tokens} positions of plain text"
        )
    if report.num_same < num_compared:
        problems.append(f"{num_compared - report.num_same} of {num_compared} greedy tokens differ from the base model")
    if not report.decision_error <= tolerance:
        problems.append(f"state probabilities are off by up to {report.decision_error:.3f}")
    if problems:
        raise EngineError(f"{report.path} was written but failed its checks: {'; '.join(problems)}")
    return report
