"""Pictures of one result, as PNG files. Needs matplotlib, which is optional."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duologue.errors import MissingDependency

_SIZE = (5.0, 4.0)  # inches
_DPI = 150


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `reliability.png` and `curve.png` of what `states.details` gave; returns the paths.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no state
    except ImportError as error:
        raise MissingDependency("pictures need matplotlib: pip install 'duologue[train]'") from error
    paths = []
    for name, fill in (("reliability", _reliability), ("curve", _curve)):
        figure = Figure(figsize=_SIZE, layout="constrained")
        fill(figure.add_subplot(), result)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=_DPI)
        paths.append(path)
    return paths


def _reliability(axes: Any, result: Mapping[str, Any]) -> None:
    bins = result["reliability"]
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="as sure as right")
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o", label="bins of equal size")
    axes.set(
        title="Reliability" if not bins else f"Reliability, ECE {result['ece']:.3f} (n {sum(b['num'] for b in bins)})",
        xlabel="probability of the most probable state",
        ylabel="share in which it is right",
    )
    axes.legend(loc="upper left")


def _curve(axes: Any, result: Mapping[str, Any]) -> None:
    for name, title in (("idle", "assistant silent"), ("speaking", "over an answer")):
        points = result["curve"][name]
        if not points:
            continue
        xs, ys = ([100 * point[field] for point in points] for field in ("false_actions", "delay"))
        (line,) = axes.plot(xs, ys, label=title)
        at = result["operating_point"][name]
        axes.plot(100 * at["false_actions"], 100 * at["delay"], marker="o", color=line.get_color())
    axes.set(
        title="False actions against delay (dots: as calibrated)",
        xlabel="answered of ignore and incomplete, %",
        ylabel="process that has to wait, %",
        xlim=(-1, 101),
        ylim=(-1, 101),
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right")
