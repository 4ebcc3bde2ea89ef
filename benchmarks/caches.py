"""How sessions share llama.cpp's cache: one for all of them, or several contexts with a few each.

Claim: where all sessions together have no more than a few thousand tokens, one cache is faster, since a pass reads the
weights once for all of them; so `load` opens one. Beyond, several are faster for sessions that are also heard; so it
opens one for each session where contexts are long.

Why: every token of a pass is shown the entries of all sessions in its cache. Behind a mask each costs little, as long
as llama.cpp does not compute in tiles, which it does for 64 tokens and more (`LlamaCppBackend` keeps below that); but
each context of its own costs a pass of its own.

How: for each number of sessions and length of their histories, the same passes in one cache, in contexts of four
sessions, and in one context each (which stores its scores, as `load` has it for one session). *Speaking* feeds one
token of each session; in *overlap* every fourth session is also heard: twelve tokens on a channel forked from it. They
take turns; medians of the processor time of one thread, in milliseconds, for all contexts together.

    python benchmarks/caches.py --weights BF16 --out benchmarks/results/caches-llamacpp-bf16.json
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import measuring

from duologue.backends.llamacpp.backend import LlamaCppBackend
from duologue.backends.llamacpp.gguf_convert import cached_gguf
from duologue.core.backend import Draw, Extend
from duologue.types import Seq

_HEARD = 12  # tokens of a channel that is heard
_EVERY = 4  # of so many sessions one is heard
_CHUNK = 128  # tokens of a history in one pass


class Caches:
    """Sessions with the same history each, so many in a context."""

    def __init__(self, path: Path, *, sessions: int, per_context: int, tokens: int, threads: int) -> None:
        self._tokens = tokens
        self._contexts: list[tuple[LlamaCppBackend, list[Seq]]] = []
        for first in range(0, sessions, per_context):
            number = min(per_context, sessions - first)
            backend = LlamaCppBackend(
                path, capacity=(number + 1) * (tokens + 64), max_seqs=2 * number + 1, threads=threads,
                flash_attention=number > 1, micro_batch=_CHUNK, prefill_capacity=tokens + 64 if number > 1 else 0,
            )  # fmt: skip
            self._contexts.append((backend, [self._filled(backend) for _ in range(number)]))

    def _filled(self, backend: LlamaCppBackend) -> Seq:
        seq = backend.fork(None)
        for start in range(0, self._tokens, _CHUNK):
            end = min(start + _CHUNK, self._tokens)
            backend.forward([Extend(seq, tuple(range(100 + start, 100 + end)))])
        backend.forward([Extend(seq, (5,), draw=Draw())])  # it moves to where all others are
        backend.truncate(seq, self._tokens)
        return seq

    def timed(self, *, is_overlap: bool) -> float:
        """A pass of each context, which is taken back. Milliseconds."""
        seconds, num_before = 0.0, 0
        for backend, seqs in self._contexts:
            batch = [Extend(seq, (5,), draw=Draw()) for seq in seqs]
            due = [seq for number, seq in enumerate(seqs, num_before) if is_overlap and number % _EVERY == 0]
            heard = [backend.fork(seq, self._tokens) for seq in due]
            batch += [Extend(seq, (5,) * _HEARD, draw=Draw()) for seq in heard]
            num_before += len(seqs)
            began = time.process_time()
            backend.forward(batch)
            seconds += time.process_time() - began
            for seq in seqs:
                backend.truncate(seq, self._tokens)
            for seq in heard:
                backend.free(seq)
        return 1000 * seconds

    def close(self) -> None:
        """Release all of it."""
        for backend, _ in self._contexts:
            backend.close()


def measured(path: Path, sessions: int, tokens: int, repeats: int, threads: int) -> dict[str, Any]:
    """All ways for one number of sessions with histories of so many tokens."""
    ways = {
        per: Caches(path, sessions=sessions, per_context=per, tokens=tokens, threads=threads)
        for per in sorted({sessions, min(_EVERY, sessions), 1}, reverse=True)
    }
    row: dict[str, Any] = {"sessions": sessions, "context_tokens": tokens}
    for what in ("speaking", "overlap"):
        times: dict[int, list[float]] = {per: [] for per in ways}
        for _ in range(repeats + 1):
            for per, way in ways.items():
                times[per].append(way.timed(is_overlap=what == "overlap"))
        # the first pays for what is new
        row[f"{what}_ms"] = {str(per): round(statistics.median(values[1:]), 1) for per, values in times.items()}
    for way in ways.values():
        way.close()
    measuring.progress(str(row))
    return row


def main() -> int:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    source = measuring.gguf_file(args)
    path = cached_gguf(source, weights=args.weights or "BF16")
    found = [
        measured(path, sessions, tokens, args.repeats, args.threads or 1)
        for sessions in args.sessions
        for tokens in args.contexts
    ]
    result = {"model": {"backend": "llamacpp", "weights": (args.weights or "BF16").lower()}, "passes": found}
    header = ("sessions", "context", "speaking: one cache", "four each", "one each", "overlap: one", "four", "one each")
    rows = [
        (row["sessions"], row["context_tokens"], *(
            row[f"{what}_ms"].get(str(per), "") for what in ("speaking", "overlap") for per in (row["sessions"], 4, 1)
        ))
        for row in found
    ]  # fmt: skip
    measuring.finish(args, measurement, result, header, rows)
    return 0


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048], help="tokens of history")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
