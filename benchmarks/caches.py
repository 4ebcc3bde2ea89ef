"""How sessions share llama.cpp's cache: one for all of them, or several contexts with a few each.

Claim: as long as all sessions together have no more than a few thousand tokens, one cache is faster, because a pass
reads the weights once for all of them; so `load` opens one. Beyond that, several caches are faster for sessions that
also listen; so `load` opens one per session where contexts are long.

Why: every token of a pass sees the entries of all sessions in its cache. Masked entries cost little each, as long as
llama.cpp does not compute in tiles, which it does for 64 tokens and more (`LlamaCppBackend` stays below that). Each
further context costs a pass of its own.

How: for each number of sessions and history length, the same passes in one cache, in contexts of four sessions, and in
one context each (which stores its scores, as `load` does for one session). *Speaking* feeds one token of each session;
in *overlap* every fourth session also listens: twelve tokens on a channel forked from it. The ways take turns. Medians
of the CPU time of one thread, in milliseconds, over all contexts together.

    python benchmarks/caches.py --weights BF16 --out benchmarks/results/caches-llamacpp-bf16.json
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import measuring
from same_history import SameHistory, weights_file

_HEARD = 12  # tokens of a channel that is heard
_EVERY = 4  # one session of so many listens


def measured(path: Path, sessions: int, tokens: int, repeats: int, threads: int) -> dict[str, Any]:
    """All ways, for sessions with histories of `tokens` tokens."""
    ways = {
        per: SameHistory(
            path, sessions=sessions, per_context=per, tokens=tokens, threads=threads, flash_attention=per > 1
        )
        for per in sorted({sessions, min(_EVERY, sessions), 1}, reverse=True)
    }
    row: dict[str, Any] = {"sessions": sessions, "context_tokens": tokens}
    for what, by in (("speaking", range(0)), ("overlap", range(0, sessions, _EVERY))):
        times: dict[int, list[float]] = {per: [] for per in ways}
        for _ in range(repeats + 1):
            for per, way in ways.items():
                times[per].append(way.timed(heard=_HEARD, by=by))
        # the first pass warms up
        row[f"{what}_ms"] = {str(per): round(statistics.median(values[1:]), 1) for per, values in times.items()}
    for way in ways.values():
        way.close()
    measuring.progress(str(row))
    return row


def main() -> int:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    path, model = weights_file(args)
    found = [
        measured(path, sessions, tokens, args.repeats, args.threads or 1)
        for sessions in args.sessions
        for tokens in args.contexts
    ]
    header = ("sessions", "context", "speaking: one cache", "four each", "one each", "overlap: one", "four", "one each")
    rows = [
        (
            row["sessions"],
            row["context_tokens"],
            *(
                row[f"{what}_ms"].get(str(per), "")
                for what in ("speaking", "overlap")
                for per in (row["sessions"], 4, 1)
            ),
        )
        for row in found
    ]
    measuring.finish(args, measurement, {"model": model, "passes": found}, header, rows)
    return 0


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048], help="tokens of history")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
