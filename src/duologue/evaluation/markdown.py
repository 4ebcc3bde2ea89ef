"""Markdown tables: the only writer of them for reports, result tables in the documents, and benchmarks."""

from collections.abc import Iterable, Sequence

MISSING = "–"
"""A cell without a value."""


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table with aligned columns: the first column to the left, all others to the right."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def percent(value: float | None, digits: int = 1) -> str:
    """A share between 0 and 1 as a percentage without the sign."""
    return MISSING if value is None else f"{100 * value:.{digits}f}"
