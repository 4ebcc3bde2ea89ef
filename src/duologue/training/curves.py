"""The loss curve of a run as a picture, from its log."""

from collections.abc import Callable
from pathlib import Path

from duologue.data.jsonl import read_rows
from duologue.errors import BadData, MissingDependency

_LABELS = {"loss": "training loss", "dev_loss": "held-out loss", "dev_accuracy": "held-out accuracy"}


def draw(log: Path, out: Path, say: Callable[[str], None]) -> None:
    """Plot, or say that it cannot be done here: no reason to lose what was trained."""
    try:
        plot(log, out)
    except MissingDependency as error:
        say(str(error))


def plot(log: Path, out: Path) -> None:
    """Draw training loss, held-out loss and held-out accuracy over the steps into the picture `out` (PNG).

    `log` has one JSON object a line, with `step` and any of `loss`, `dev_loss` and `dev_accuracy` (0 to 1).

    Raises:
        BadData: the log cannot be read, or has nothing to draw.
        MissingDependency: matplotlib is not installed.
    """
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in _LABELS}
    for number, row in read_rows(log):
        for name, points in curves.items():
            if name in row:
                try:
                    points.append((float(row["step"]), float(row[name])))
                except (KeyError, TypeError, ValueError):
                    raise BadData(f"{log}, line {number}: needs numbers for step and {name}, got {row}") from None
    if not any(curves.values()):
        raise BadData(f"{log} has no line with {', '.join(_LABELS)}; nothing to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(
            "a loss curve needs matplotlib; install it with: pip install 'duologue[train]'"
        ) from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    losses = figure.subplots()
    losses.set(xlabel="step", ylabel="loss")
    losses.locator_params(axis="x", integer=True)
    accuracies = losses.twinx()
    accuracies.set(ylabel="accuracy", ylim=(0, 1))
    styles = {"loss": ("C0-", losses), "dev_loss": ("C1o-", losses), "dev_accuracy": ("C2s--", accuracies)}
    drawn = []
    for name, (style, axes) in styles.items():
        if points := curves[name]:
            steps, values = zip(*points, strict=True)
            drawn += axes.plot(steps, values, style, markersize=3, linewidth=1, label=_LABELS[name])
    losses.legend(handles=drawn, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=len(drawn), frameon=False)
    figure.savefig(out, dpi=150, format="png")
