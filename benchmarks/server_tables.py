"""Tables of what a server holds, for `tables.py`."""

from collections.abc import Iterator
from typing import Any, Protocol

from duologue.evaluation.markdown import table
from duologue.evaluation.results import busy_mark


class Found(Protocol):
    """Result files."""

    def of(self, benchmark: str) -> Iterator[tuple[str, dict[str, Any]]]: ...


def serve(results: Found) -> str:
    """Every run of the load on a server."""
    header = (
        "engine",
        "clients",
        "minutes",
        "decisions",
        "words → decision (ms, p50 / p95)",
        "longest wait for words (s)",
        "lost",
        "server (MB, first / last twentieth)",
        "in real time",
        "file",
    )
    rows = []
    for name, result in results.of("serve"):
        model, decision, memory = result["model"], result["decision_ms"], result["memory_mb"]
        rows.append(
            (
                f"{model['backend']} {model['weights']}, {model['adapter']}{busy_mark(result)}",
                result["clients"],
                f"{result['seconds'] / 60:g}",
                f"{result['decisions']:,}",
                f"{decision['p50']:.0f} / {decision['p95']:.0f}",
                f"{result['longest_wait_s']:.2f}",
                result["lost"],
                f"{memory[0]:.0f} / {memory[-1]:.0f}" if memory else "–",
                "yes" if result["realtime"] else "no",
                f"[{name}](../benchmarks/results/{name})",
            )
        )
    return table(header, rows) if rows else "No run has been committed yet."
