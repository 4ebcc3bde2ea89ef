"""Waits behind joints and ends of turns: `duologue eval timing`, with the facts that a committed figure needs.

    python benchmarks/timing.py samples/timing.jsonl --out benchmarks/results/timing-alora-torch.json -- [eval options]

Everything after `--` is passed to `duologue eval timing` (--adapter, --backend, --eagerness). `duologue data build`
writes the rows, from documents that the adapter was not trained on.
"""

from collections.abc import Iterator
from typing import Any

import measuring

HEADER = ("", "n", "AUC", "early at 1.2 s", "p50 ms", "p95 ms")


def rows(found: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """One for all rows, and one for questions and statements each."""
    for name, part in (("all", found), ("questions", found["questions"]), ("statements", found["statements"])):
        yield name, part["n"], part["auc"], part["early"]["1.2"], part["delay_ms"]["p50"], part["delay_ms"]["p95"]


if __name__ == "__main__":
    raise SystemExit(measuring.run_eval("timing", __doc__, HEADER, rows))
