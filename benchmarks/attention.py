"""How llama.cpp computes attention on a CPU: the scores stored or not, by sessions and length of their contexts.

Claim: with one session, passes of several tokens are quicker when scores are stored (flash attention off), the more so
the longer the context; with several sessions in one cache they are quicker when scores are not stored. So `load` turns
flash attention off for one session and on for more.

Why: the sessions' entries lie in one cache, and every token of a pass is shown all of them, most behind a mask. Flash
attention passes over what is masked; storing scores computes them all, but by matrix products, which are faster.

How: two backends of the same weights, one each way, take turns with the same passes: *speaking* feeds one token of each
session, *listening* seven more of a channel that one of them is heard in. Medians, in milliseconds.
"""

import argparse
import statistics
import time
from typing import Any

import measuring

from duologue.backends.llamacpp.backend import LlamaCppBackend
from duologue.backends.llamacpp.gguf_convert import cached_gguf
from duologue.core.backend import Draw, Extend
from duologue.types import Seq

_HEARD = 7  # tokens of the channel that is heard, the probe left out
_CHUNK = 128  # tokens of a history in one pass


class Side:
    """One backend, and sessions on it that have the same history each."""

    def __init__(self, path: Any, *, flash: bool, context: int, sessions: int, threads: int) -> None:
        self.backend = LlamaCppBackend(
            path, capacity=(sessions + 1) * (context + 64), max_seqs=2 * sessions + 2, threads=threads,
            flash_attention=flash,
        )  # fmt: skip
        self._context = context
        self._seqs: list[Seq] = []

    def fill(self, sessions: int) -> None:
        """Let there be so many."""
        while len(self._seqs) < sessions:
            seq = self.backend.fork(None)
            for start in range(0, self._context, _CHUNK):
                end = min(start + _CHUNK, self._context)
                self.backend.forward([Extend(seq, tuple(range(100 + start, 100 + end)))])
            self._seqs.append(seq)

    def timed(self, *, listening: bool) -> float:
        """One pass, which is taken back; the second of two, so that the first pays for what is new. Milliseconds."""
        batch = [Extend(seq, (5,), draw=Draw()) for seq in self._seqs]
        heard = self.backend.fork(self._seqs[0], self._context - 1) if listening else None
        if heard is not None:
            batch.append(Extend(heard, (5,) * _HEARD, draw=Draw()))
        seconds = 0.0
        for _ in range(2):
            began = time.process_time()
            self.backend.forward(batch)
            seconds = time.process_time() - began
            for seq in self._seqs:
                self.backend.truncate(seq, self._context)
            if heard is not None:
                self.backend.truncate(heard, self._context - 1)
        if heard is not None:
            self.backend.free(heard)
        return 1000 * seconds


def measured(args: argparse.Namespace, path: Any, context: int) -> list[dict[str, Any]]:
    """All numbers of sessions with one context."""
    numbers = [number for number in args.sessions if number * context <= args.most_entries]
    sides = {
        name: Side(path, flash=flash, context=context, sessions=max(numbers), threads=args.threads or 1)
        for name, flash in (("flash", True), ("stored", False))
    }
    rows = []
    for number in numbers:
        row: dict[str, Any] = {"context_tokens": context, "sessions": number}
        for side in sides.values():
            side.fill(number)
        for what in ("speaking", "listening"):
            times: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(args.repeats):
                for name, side in sides.items():
                    times[name].append(side.timed(listening=what == "listening"))
            row[f"{what}_ms"] = {name: round(statistics.median(values), 2) for name, values in times.items()}
        rows.append(row)
        measuring.progress(str(row))
    for side in sides.values():
        side.backend.close()
    return rows


def main() -> int:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    source = measuring.gguf_file(args)
    path = cached_gguf(source, weights=args.weights or "BF16")
    found = [row for context in args.contexts for row in measured(args, path, context)]
    result = {"model": {"backend": "llamacpp", "weights": (args.weights or "BF16").lower()}, "passes": found}
    header = ("context", "sessions", "speaking: flash", "stored", "listening: flash", "stored")
    rows = [
        (row["context_tokens"], row["sessions"], *row["speaking_ms"].values(), *row["listening_ms"].values())
        for row in found
    ]
    measuring.finish(args, measurement, result, header, rows)
    return 0


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 1920], help="tokens of history")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 16], help="in one cache")
    parser.add_argument("--most-entries", type=int, default=8192, help="larger combinations are left out")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
