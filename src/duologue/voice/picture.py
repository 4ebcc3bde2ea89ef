"""Draws a spoken conversation: the sound of both sides, the words and the decisions. Needs matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from duologue.pictures import STATE_COLOURS, new_figure
from duologue.voice.sound import Samples
from duologue.voice.timeline import Row

_CHANGES = {  # of the answer's volume: label, colour, line style
    "ducked": ("−12 dB", "#9a6700", ":"),
    "yielded": ("pause", "#9a6700", "-"),
    "came_back": ("back", "#1a7f37", ":"),
    "cut": ("cut", "#cf222e", "-"),
}
_INCHES_PER_S = 0.55
_ROW_S = 30.0  # of a row; a longer conversation has several
_MOST_ROWS = 40  # beyond which rows are longer
_LETTERS_PER_S = 11  # of annotations
_LEVELS = 7
_POINTS = 200  # of a waveform, per second


def draw(path: Path, user: tuple[Samples, int], assistant: tuple[Samples, int], rows: Sequence[Row]) -> None:
    """Draw the conversation to `path`. `user` and `assistant` are samples, `[n]`, with their rates.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    seconds = len(user[0]) / user[1]
    num_rows = min(_MOST_ROWS, max(1, math.ceil(seconds / _ROW_S)))
    length = seconds if num_rows == 1 else max(_ROW_S, seconds / num_rows)
    figure = new_figure(max(10.0, min(length, _ROW_S) * _INCHES_PER_S), 5.2 * num_rows)
    lines = figure.subfigures(num_rows, 1, squeeze=False)[:, 0]
    sounds = _outline(*user), _outline(*assistant)
    for number, line in enumerate(lines):
        _draw_row(line, sounds, rows, number * length, (number + 1) * length)
    figure.savefig(path, dpi=110)


def _draw_row(figure: Any, sounds: tuple[Any, Any], rows: Sequence[Row], begin: float, end: float) -> None:
    """Draw what happened from `begin` to `end`, in seconds. `sounds` are the outlines of both sides."""
    upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1.6, 2))
    for axes, (times, low, high), name, colour in (
        (upper, sounds[0], "user", "#0969da"),
        (lower, sounds[1], "assistant", "#8250df"),
    ):
        first, last = np.searchsorted(times, (begin, end))
        axes.fill_between(times[first:last], low[first:last], high[first:last], color=colour, linewidth=0)
        axes.set(ylabel=name, ylim=(-1, 1), yticks=[])
    here = [row for row in rows if begin <= row["at"] < end]
    _words(middle, here, begin, end)
    for row in (row for row in here if row["type"] in _CHANGES):
        label, colour, style = _CHANGES[row["type"]]
        lower.axvline(row["at"], color=colour, linestyle=style, linewidth=1.2 if style == "-" else 1)
        lower.annotate(label, (row["at"], 0.86), fontsize=7, color=colour, rotation=90, va="top")
    for number, (whole, start, stop) in enumerate(when_played(rows)):
        start, stop = max(start, begin), min(stop, end)
        if stop > start:
            room = min((stop - start) * 1.8, end - start)  # a line holds every second clause
            text = _short(whole, max(4, int(room * _LETTERS_PER_S)))
            _write(lower, text, (start, -0.97 + 0.13 * (number % 2)), va="bottom")
    lower.set(xlabel="seconds", xlim=(begin, end))


def _words(axes: Any, rows: Sequence[Row], begin: float, end: float) -> None:
    """Annotate the recognised words and the decisions, on several levels so that they do not overlap."""
    axes.set(ylim=(0, _LEVELS), yticks=[], ylabel="decisions")
    ends = [begin] * _LEVELS  # of the annotations on each level, in seconds
    for row in (row for row in rows if row["type"] == "decided"):
        state, text = row["state"], f"{_short(row['text'], 34)} · {row['state']} {row['p']:.2f}"
        start = max(begin, min(row["at"], end - len(text) / _LETTERS_PER_S))
        level = next((i for i, last in enumerate(ends) if last <= start), ends.index(min(ends)))
        ends[level] = start + len(text) / _LETTERS_PER_S
        axes.axvline(row["at"], color=STATE_COLOURS[state], linewidth=0.8, alpha=0.6)
        _write(axes, text, (start, _LEVELS - level - 0.7), color=STATE_COLOURS[state])


def _write(axes: Any, text: str, where: tuple[float, float], **style: str) -> None:
    """Words at a point. The layout leaves no room for them beyond the axes, so that all rows are equally wide."""
    axes.annotate(text, where, fontsize=6, **style).set_in_layout(False)


def when_played(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """Each synthesised clause, with the times between which it was played: from its synthesis or the end of the clause
    before it, to its end or the cut. A pause delays the rest.
    """
    spans: list[tuple[str, float, float]] = []
    free = 0.0  # when the player runs out of sound
    paused: float | None = None  # since
    for row in rows:
        at = float(row["at"])
        match row["type"]:
            case "synthesised":
                begin = max(free, at if paused is None else paused)
                free = begin + float(row["seconds"])
                spans.append((row["text"], begin, free))
            case "yielded":
                paused = at
            case "came_back" if paused is not None:
                spans = [(text, _delayed(begin, paused, at), _delayed(end, paused, at)) for text, begin, end in spans]
                free, paused = _delayed(free, paused, at), None
            case "cut":
                stop = at if paused is None else paused
                spans = [(text, begin, min(end, stop)) for text, begin, end in spans]
                free, paused = 0.0, None
    return spans


def _delayed(when: float, begin: float, end: float) -> float:
    """`when`, delayed by a pause from `begin` to `end`."""
    return when + (end - begin) if when >= begin else when


def _outline(samples: Samples, rate: int) -> tuple[Any, Any, Any]:
    """Times, minima and maxima of blocks of five milliseconds, each `[blocks]`."""
    size = max(1, rate // _POINTS)
    count = len(samples) // size
    blocks = samples[: count * size].reshape(count, size)
    return np.arange(count) * size / rate, blocks.min(axis=1), blocks.max(axis=1)


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else "…" + text[-most:]
