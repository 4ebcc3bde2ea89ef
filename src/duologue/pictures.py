"""Pictures of measurements and conversations. Needs matplotlib, which is optional."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from duologue.errors import MissingDependency

STATE_COLOURS = {"process": "#1a7f37", "incomplete": "#9a6700", "ignore": "#6e7781", "stop": "#cf222e"}
"""State of what was heard → its colour."""

_DPI = 150


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib `Figure` of `width` by `height` inches. It opens no window and keeps no global state.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps every figure that it makes
    except ImportError as error:
        raise MissingDependency("pictures need matplotlib: pip install 'duologue[train]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def draw(path: Path, panels: Sequence[Callable[[Any], None]], *, width: float = 5.0, height: float = 4.0) -> None:
    """Write a picture with `panels` side by side; each is called with its matplotlib `Axes` and fills it.

    The ending of `path` is its format: png, svg or pdf.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = new_figure(width, height)
    for axes, fill in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        fill(axes)
    figure.savefig(path, dpi=_DPI)
