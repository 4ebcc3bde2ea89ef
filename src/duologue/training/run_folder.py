"""The files of a training run: a log of its steps, its loss curve, and a checkpoint to continue a killed run from."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from duologue.data.jsonl import read_rows
from duologue.errors import BadData, MissingDependency, UsageError
from duologue.pictures import new_figure

_CURVES = {  # field of the log: label, style
    "loss": ("training loss", "C0-"),
    "dev_loss": ("held-out loss", "C1o-"),
    "dev_accuracy": ("held-out accuracy", "C2s--"),
}


def num_stale(losses: Sequence[float]) -> int:
    """How many held-out losses have followed the best one, which is the first minimum."""
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def write_state(path: Path, state: Any) -> None:
    """Replace `path` with `state` atomically: a kill during the write leaves the old file intact.

    Raises:
        UsageError: the file cannot be written.
    """
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises either when the disk is full
        raise UsageError(f"cannot write {path}: {error}; free some space and repeat the command") from error


@final
class RunFolder:
    """Log and checkpoint in the output folder. In distributed runs one process writes and all of them read."""

    def __init__(self, folder: Path, log_name: str, *, is_writer: bool = True) -> None:
        self.log_path, self.checkpoint = folder / log_name, folder / "checkpoint.pt"
        self._is_writer = is_writer

    def resume(self, made_with: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state that a killed run left, on the CPU; None for a new run, which starts with an empty log.

        Args:
            made_with: settings and data that must be those of the killed run.

        Raises:
            UsageError: the checkpoint belongs to another run.
        """
        if not self.checkpoint.exists():
            if self._is_writer:
                self.log_path.unlink(missing_ok=True)
            return None
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        theirs = state.get("made_with", {})
        if different := [name for name, value in made_with.items() if theirs.get(name) != value]:
            raise UsageError(
                f"{self.checkpoint} belongs to a run with another {', '.join(different)}; "
                "use the same settings to continue it, or another --out to start anew"
            )
        return state

    def save(self, state: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
        """Write the checkpoint. Raises `UsageError` if that fails."""
        write_state(self.checkpoint, {"made_with": dict(made_with), **state})

    def log(self, **row: Any) -> None:
        """Append a line to the log."""
        if self._is_writer:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop log lines of steps after `step`, which will be repeated, and an incomplete last line."""
        if not self._is_writer or not self.log_path.exists():
            return
        lines = self.log_path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        self.log_path.write_text("".join(kept), encoding="utf-8")

    def draw(self, out: Path, say: Callable[[str], None]) -> None:
        """Plot the log, or report why that is not possible here: a missing library must not lose a trained adapter."""
        try:
            plot(self.log_path, out)
        except MissingDependency as error:
            say(str(error))


def plot(log: Path, out: Path) -> None:
    """Draw training loss, held-out loss and held-out accuracy over the steps into the PNG file `out`.

    Each line of `log` is a JSON object with `step` and any of `loss`, `dev_loss` and `dev_accuracy` (0 to 1).

    Raises:
        BadData: the log cannot be read, or has nothing to draw.
        MissingDependency: matplotlib is not installed.
    """
    curves = _read_curves(log)
    figure = new_figure(7.0, 4.0)
    losses = figure.subplots()
    losses.set(xlabel="step", ylabel="loss")
    losses.locator_params(axis="x", integer=True)
    accuracies = losses.twinx()
    accuracies.set(ylabel="accuracy", ylim=(0, 1))
    drawn = []
    for name, points in curves.items():
        label, style = _CURVES[name]
        axes = accuracies if name == "dev_accuracy" else losses
        drawn += axes.plot(*zip(*points, strict=True), style, markersize=3, linewidth=1, label=label)
    losses.legend(handles=drawn, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=len(drawn), frameon=False)
    figure.savefig(out, dpi=150, format="png")


def _read_curves(log: Path) -> dict[str, list[tuple[float, float]]]:
    """The points (step, value) of each curve that the log has."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for number, row in read_rows(log):
        for name in _CURVES.keys() & row.keys():
            try:
                curves.setdefault(name, []).append((float(row["step"]), float(row[name])))
            except (KeyError, TypeError, ValueError):
                raise BadData(f"{log}, line {number}: expected numbers for step and {name}, got {row}") from None
    if not curves:
        raise BadData(f"{log} has no line with {', '.join(_CURVES)}; nothing to draw")
    return {name: curves[name] for name in _CURVES if name in curves}
