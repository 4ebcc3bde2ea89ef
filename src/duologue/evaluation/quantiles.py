"""Percentiles of measured values, defined as the smallest value that so many percent do not exceed."""

from collections.abc import Sequence


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of `values` that at least `percent` percent of them do not exceed; infinity if there are none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else float("inf")


def summary(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Number, median, 95th percentile and maximum of `values`, which must not be empty."""
    found = {"p50": percentile(values, 50), "p95": percentile(values, 95), "max": max(values)}
    return {"n": len(values), **{name: round(value, digits) for name, value in found.items()}}
