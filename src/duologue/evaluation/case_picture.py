"""Draws conversations side by side, period by period, for a paper. Needs matplotlib."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from duologue.evaluation.case_study import Period
from duologue.pictures import STATE_COLOURS, new_figure

FORMATS = ("png", "pdf", "svg")

_WIDTH = 30  # characters of a side
_INCHES = 5.4  # of a conversation
_LINE = 0.155  # inches
_FORECAST = "#cf222e"  # red, as in the paper
_SIZE = 7


def draw(path: Path, columns: Mapping[str, Sequence[Period]]) -> None:
    """Draw the conversations, by title, to `path`; its ending is the format (`FORMATS`).

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    rows = {title: [_sides(period) for period in periods] for title, periods in columns.items()}
    num_lines = max(sum(_height(row) for row in found) for found in rows.values()) + 3
    figure = new_figure(_INCHES * len(columns), _LINE * num_lines + 0.2)
    for axes, (title, periods) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True):
        axes.set(xlim=(0, 1), ylim=(num_lines, 0))
        axes.axis("off")
        axes.set_title(title, fontsize=_SIZE + 2)
        for x, side in ((0.1, "user"), (0.56, "assistant")):
            axes.text(x, 0.5, side, fontsize=_SIZE, weight="bold", va="top")
        y = 2.0
        for period, row in zip(periods, rows[title], strict=True):
            _draw_period(axes, y, period, row)
            y += _height(row)
    figure.savefig(path, dpi=150, format=path.suffix[1:].lower())


def _sides(period: Period) -> tuple[list[str], list[str], list[str]]:
    """Lines of the user, of the forecast and of the assistant."""
    said = " ".join(period.assistant.split()) + (" — cut" if period.is_cut else "")
    forecast = f"→ {period.forecast}" if period.forecast else ""
    user, ahead, assistant = (textwrap.wrap(text, _WIDTH) for text in (period.user, forecast, said))
    return user, ahead, assistant


def _height(row: tuple[list[str], list[str], list[str]]) -> float:
    user, forecast, assistant = row
    return max(1, len(user) + len(forecast), len(assistant)) + 0.4


def _draw_period(axes: Any, y: float, period: Period, row: tuple[list[str], list[str], list[str]]) -> None:
    user, forecast, assistant = row
    axes.axhline(y - 0.2, color="0.9", linewidth=0.5)
    axes.text(0.0, y, f"{period.at:.0f} s", fontsize=_SIZE - 1, color="0.5", va="top")
    axes.text(0.1, y, "\n".join(user), fontsize=_SIZE, va="top")
    if forecast:
        height = 1.0 * len(user)
        axes.text(0.1, y + height, "\n".join(forecast), fontsize=_SIZE, color=_FORECAST, style="italic", va="top")
    if period.state is not None:
        axes.text(
            0.54, y, period.state.value, fontsize=_SIZE - 1, color=STATE_COLOURS[period.state], ha="right", va="top"
        )
    axes.text(0.56, y, "\n".join(assistant), fontsize=_SIZE, va="top")
