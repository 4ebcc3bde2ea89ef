"""Percentiles of measured values, defined as the smallest value that so many percent do not exceed."""

from collections.abc import Sequence


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of `values` that at least `percent` percent of them do not exceed; infinity if there are none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else float("inf")


def p50_p95(values: Sequence[float], digits: int) -> dict[str, float]:
    """Median and 95th percentile, rounded; infinity if there are no values."""
    return {f"p{percent}": round(percentile(values, percent), digits) for percent in (50, 95)}


def summary(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Number, median, 95th percentile and maximum of `values`, which must not be empty."""
    return {"n": len(values), **p50_p95(values, digits), "max": round(max(values), digits)}
