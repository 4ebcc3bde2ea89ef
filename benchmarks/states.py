"""Decisions on labelled rows: `duologue eval states`, with the facts that a committed figure needs.

    python benchmarks/states.py samples/test.jsonl --out benchmarks/results/states-alora-torch.json -- [eval options]

Everything after `--` is passed to `duologue eval states` (--adapter, --backend, --baselines, --train, --compare). The
rows come from whole sources that the adapter was not trained on; `duologue data build` writes them.
"""

from collections.abc import Iterator
from typing import Any

import measuring

HEADER = ("", "n", "answer F1", "false answers", "accuracy")


def rows(found: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """One for silence and one for answers."""
    for place in ("idle", "speaking"):
        part = found[place]
        yield place, part["n"], part["answer"]["f1"], part["false_answer_rate"], part["accuracy"]


if __name__ == "__main__":
    raise SystemExit(measuring.run_eval("states", __doc__, HEADER, rows))
