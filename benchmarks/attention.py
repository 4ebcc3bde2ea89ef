"""How llama.cpp computes attention on a CPU: with the scores stored or not, by sessions and context length.

Claim: with one session, passes of several tokens are faster when scores are stored (flash attention off), the more so
the longer the context; with several sessions in one cache it depends on the processor. So `load` turns flash attention
off for one session, and for more it measures both (`duologue.backends.llamacpp.attention`).

Why: the entries of all sessions lie in one cache, and every token of a pass sees all of them, most behind a mask. Flash
attention skips what is masked. Storing scores computes them all, but by matrix products, which are faster.

How: two backends of the same weights, one each way, take turns with the same passes: *speaking* feeds one token of each
session, *listening* also feeds seven tokens of a channel that one of them hears. Medians, in milliseconds of CPU time.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import measuring
from same_history import SameHistory, weights_file

_HEARD = 7  # tokens of the channel that is heard, without the probe
_WAYS = {"flash": True, "stored": False}


def measured(path: Path, sessions: int, tokens: int, repeats: int, threads: int) -> dict[str, Any]:
    """Both ways, for sessions with histories of `tokens` tokens."""
    sides = {
        name: SameHistory(
            path, sessions=sessions, per_context=sessions, tokens=tokens, threads=threads, flash_attention=flash
        )
        for name, flash in _WAYS.items()
    }
    row: dict[str, Any] = {"context_tokens": tokens, "sessions": sessions}
    for what, by in (("speaking", ()), ("listening", (0,))):
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, side in sides.items():
                times[name].append(side.timed(heard=_HEARD, by=by, passes=2))  # the first of two passes warms up
        row[f"{what}_ms"] = {name: round(statistics.median(values), 2) for name, values in times.items()}
    for side in sides.values():
        side.close()
    measuring.progress(str(row))
    return row


def main() -> int:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    path, model = weights_file(args)
    found = [
        measured(path, sessions, tokens, args.repeats, args.threads or 1)
        for tokens in args.contexts
        for sessions in args.sessions
        if sessions * tokens <= args.max_entries
    ]
    header = ("context", "sessions", "speaking: flash", "stored", "listening: flash", "stored")
    rows = [
        (row["context_tokens"], row["sessions"], *row["speaking_ms"].values(), *row["listening_ms"].values())
        for row in found
    ]
    measuring.finish(args, measurement, {"model": model, "passes": found}, header, rows)
    return 0


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 1920], help="tokens of history")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 16], help="in one cache")
    parser.add_argument("--max-entries", type=int, default=8192, help="skip combinations with more cache entries")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
