"""Sessions with histories of the same length on llama.cpp, and the time of a pass for all of them."""

import argparse
import time
from collections.abc import Collection
from pathlib import Path

import measuring

from duologue.backends.llamacpp.backend import LlamaCppBackend
from duologue.backends.llamacpp.gguf_convert import cached_gguf
from duologue.core.backend import Draw, Extend
from duologue.types import Seq

_CHUNK = 128  # tokens of a history in one pass


def weights_file(args: argparse.Namespace) -> tuple[Path, dict[str, str]]:
    """The file of the model that the flags name, by default in BF16, and how to describe it."""
    weights = args.weights or "BF16"
    return cached_gguf(measuring.gguf_file(args), weights=weights), {"backend": "llamacpp", "weights": weights.lower()}


class SameHistory:
    """Sessions with `tokens` tokens of history each, `per_context` of them in one llama.cpp context."""

    def __init__(
        self, path: Path, *, sessions: int, per_context: int, tokens: int, threads: int, flash_attention: bool
    ) -> None:
        self._tokens = tokens
        self._contexts: list[tuple[LlamaCppBackend, list[Seq]]] = []
        for first in range(0, sessions, per_context):
            number = min(per_context, sessions - first)
            backend = LlamaCppBackend(
                path, capacity=(number + 1) * (tokens + 64), max_seqs=2 * number + 1, threads=threads,
                flash_attention=flash_attention, micro_batch=_CHUNK, prefill_capacity=tokens + 64 if number > 1 else 0,
            )  # fmt: skip
            self._contexts.append((backend, [self._filled(backend) for _ in range(number)]))

    def _filled(self, backend: LlamaCppBackend) -> Seq:
        seq = backend.fork(None)
        for start in range(0, self._tokens, _CHUNK):
            end = min(start + _CHUNK, self._tokens)
            backend.forward([Extend(seq, tuple(range(100 + start, 100 + end)))])
        backend.forward([Extend(seq, (5,), draw=Draw())])  # moves it from the prefill cache to the shared cache
        backend.truncate(seq, self._tokens)
        return seq

    def timed(self, *, heard: int = 0, by: Collection[int] = (), passes: int = 1) -> float:
        """CPU milliseconds of the last of `passes` passes, over all contexts together; nothing of them stays cached.

        A pass feeds one token of each session, and `heard` tokens of a channel forked from each session whose number is
        in `by`.
        """
        return sum(self._timed(heard, by, passes, context) for context in range(len(self._contexts)))

    def _timed(self, heard: int, by: Collection[int], passes: int, context: int) -> float:
        backend, seqs = self._contexts[context]
        first = sum(len(others) for _, others in self._contexts[:context])
        milliseconds = 0.0
        for _ in range(passes):
            forks = [backend.fork(seq, self._tokens) for number, seq in enumerate(seqs, first) if number in by]
            batch = [Extend(seq, (5,), draw=Draw()) for seq in seqs]
            batch += [Extend(fork, (5,) * heard, draw=Draw()) for fork in forks]
            began = time.process_time()
            backend.forward(batch)
            milliseconds = 1000 * (time.process_time() - began)
            for seq in seqs:
                backend.truncate(seq, self._tokens)
            for fork in forks:
                backend.free(fork)
        return milliseconds

    def close(self) -> None:
        """Release everything."""
        for backend, _ in self._contexts:
            backend.close()
