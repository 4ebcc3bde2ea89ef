"""The result of `duologue eval states` for people: Markdown tables, and two pictures."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from duologue import pictures
from duologue.evaluation.markdown import MISSING, percent, table
from duologue.types import InputState

_STATES = [state.value for state in InputState]


def tables(result: Mapping[str, Any]) -> str:
    """All tables, each with a line of explanation where it needs one."""
    parts = [
        f"{result['model']} with {result['adapter']} on {result['backend']}, {result['weights']}: "
        f"{result['n']} rows of {result['file']}. Figures are percentages; time per decision: {_latency(result)}."
        f"{_apart(result)}",
        _systems(result),
        _confusion(result),
        _groups("source", result["per_source"]),
    ]
    if set(result["per_kind"]) != {""}:
        parts.append(_groups("kind", result["per_kind"]))
    if "compare" in result:
        other = result["compare"]
        parts.append(
            f"On {other['backend']}, {other['weights']}: {100 * other['equal_decisions']:.1f} % of {other['n']} "
            f"decisions are the same. Probabilities differ by at most {other['largest_difference']:.4f}, on average by "
            f"{other['mean_difference']:.4f}."
        )
    return "\n\n".join(parts)


def _latency(result: Mapping[str, Any]) -> str:
    values = result["latency_ms"]
    return "not measured" if values["p50"] is None else f"p50 {values['p50']:.1f} ms, p95 {values['p95']:.1f} ms"


def _apart(result: Mapping[str, Any]) -> str:
    if not result.get("apart"):
        return ""
    silent, speaking = (percent(result[name]["apart"]) for name in ("idle", "speaking"))
    return (
        f" {percent(result['apart'])} % of the decisions took a pass of their own ({silent} silent, {speaking} over an "
        "answer)."
    )


def _systems(result: Mapping[str, Any]) -> str:
    """The adapter and its baselines, one row each."""
    header = ["", "n", "right", "answer P", "R", "F1", "respond F1", "false answers", "false waits", *_STATES, "ECE"]
    named = {"**adapter**": result, "… silent": result["idle"], "… over an answer": result["speaking"]}
    rows = [_system(name, one) for name, one in named.items() if one["n"]]
    notes = []
    for name, one in result.get("baselines", {}).items():
        if "unavailable" in one:
            notes.append(f"\n\n{name}: not available. {one['unavailable']}")
        else:
            rows.append(_system(name, one))
    return table(header, rows) + "".join(notes)


def _system(name: str, one: Mapping[str, Any]) -> list[str]:
    answer = one["answer"]
    shares = [one["accuracy"], answer["precision"], answer["recall"], answer["f1"], one["respond"]["f1"]]
    shares += [one["false_answer_rate"], one["false_wait_rate"], *(one["recall"][state] for state in _STATES)]
    return [name, str(one["n"]), *map(percent, shares), percent(one["ece"])]


def _confusion(result: Mapping[str, Any]) -> str:
    rows = [
        [label, *(row[state] for state in _STATES)] for label, row in result["confusion"].items() if any(row.values())
    ]
    return table(["label ↓, decision →", *_STATES], rows)


def _groups(what: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name or MISSING,
            one["n"],
            percent(one["accuracy"]),
            *(percent(one["recall"].get(state)) for state in _STATES),
            percent(one["false_answer_rate"]),
        ]
        for name, one in groups.items()
    ]
    return table([what, "n", "right", *_STATES, "false answers"], rows)


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `reliability.png` and `curve.png` of a result with the `details` of `states`; returns the paths.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    paths = []
    for name, fill in (("reliability", _draw_reliability), ("curve", _draw_curve)):
        paths.append(folder / f"{name}.png")
        pictures.draw(paths[-1], [partial(fill, result=result)])
    return paths


def _draw_reliability(axes: Any, result: Mapping[str, Any]) -> None:
    bins = result["reliability"]
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="perfect calibration")
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o", label="bins of equal size")
    axes.set(
        title="Reliability" if not bins else f"Reliability, ECE {result['ece']:.3f} (n {sum(b['num'] for b in bins)})",
        xlabel="probability of the most probable state",
        ylabel="share of decisions that are right",
    )
    axes.legend(loc="upper left")


def _draw_curve(axes: Any, result: Mapping[str, Any]) -> None:
    for name, title in (("idle", "assistant silent"), ("speaking", "over an answer")):
        points = result["curve"][name]
        if not points:
            continue
        xs, ys = ([100 * point[field] for point in points] for field in ("false_actions", "delay"))
        (line,) = axes.plot(xs, ys, label=title)
        at = result["operating_point"][name]
        axes.plot(100 * at["false_actions"], 100 * at["delay"], marker="o", color=line.get_color())
    axes.set(
        title="False actions against delay (dots: calibrated thresholds)",
        xlabel="ignore and incomplete that are answered, %",
        ylabel="process that has to wait, %",
        xlim=(-1, 101),
        ylim=(-1, 101),
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right")
