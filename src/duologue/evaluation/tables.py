"""A result of `duologue eval states` as tables in Markdown, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from duologue.types import InputState

_STATES = [state.value for state in InputState]
_NONE = "–"


def tables(result: Mapping[str, Any]) -> str:
    """All tables, with a line of explanation where it is needed."""
    parts = [
        f"{result['model']} with {result['adapter']} on {result['backend']}, {result['weights']}: "
        f"{result['n']} rows of {result['file']}. Figures in %; ms for a decision: {_latency(result)}.",
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
            f"decisions are the same; probabilities differ by {other['largest_difference']:.4f} at most, by "
            f"{other['mean_difference']:.4f} in the mean."
        )
    return "\n\n".join(parts)


def _latency(result: Mapping[str, Any]) -> str:
    values = result["latency_ms"]
    if values["p50"] is None:
        return "not measured"
    return f"p50 {values['p50']:.1f}, p95 {values['p95']:.1f}"


def _systems(result: Mapping[str, Any]) -> str:
    columns = ["", "n", "right", "answer P", "R", "F1", "respond F1", "false answers", "false waits", *_STATES, "ECE"]
    named = {"**adapter**": result, "… silent": result["idle"], "… over an answer": result["speaking"]}
    rows = [_system(name, one) for name, one in named.items() if one["n"]]
    missing = []
    for name, one in result.get("baselines", {}).items():
        if "unavailable" in one:
            missing.append(f"\n\n{name}: not available. {one['unavailable']}")
        else:
            rows.append(_system(name, one))
    return markdown(columns, rows) + "".join(missing)


def _system(name: str, one: Mapping[str, Any]) -> list[str]:
    answer = one["answer"]
    shares = [one["accuracy"], answer["precision"], answer["recall"], answer["f1"], one["respond"]["f1"]]
    shares += [one["false_answer_rate"], one["false_wait_rate"], *(one["recall"][state] for state in _STATES)]
    return [name, str(one["n"]), *map(_percent, shares), _percent(one["ece"])]


def _confusion(result: Mapping[str, Any]) -> str:
    rows = [
        [label, *(str(row[state]) for state in _STATES)]
        for label, row in result["confusion"].items()
        if any(row.values())
    ]
    return markdown(["label ↓, decision →", *_STATES], rows)


def _groups(what: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name or _NONE,
            str(one["n"]),
            _percent(one["accuracy"]),
            *(_percent(one["recall"].get(state)) for state in _STATES),
            _percent(one["false_answer_rate"]),
        ]
        for name, one in groups.items()
    ]
    return markdown([what, "n", "right", *_STATES, "false answers"], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up; all but the first are numbers."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *others = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join([first, *others])} |"

    rule = f"| {' | '.join(['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])])} |"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f}"
