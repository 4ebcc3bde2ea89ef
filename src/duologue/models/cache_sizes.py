"""The size of KV caches, and how many sessions share one."""

from typing import Any

MAX_SEQS = 128
"""Sequences of one cache; llama.cpp allows no more."""

_SHARED_LENGTH = (
    2048  # sessions whose contexts are no longer than this share one llama.cpp cache, whatever their number
)
_SHARED_TOKENS = 12288  # longer contexts also share one, if all of them together are no longer than this


def cache_limits(sessions: int, length: int) -> dict[str, Any]:
    """`capacity`, `max_seqs` and `context_length` of a cache for so many sessions with contexts of `length` tokens.

    A session uses up to eight sequences: output channel, input channel, suspended answers, a compaction, forks. The
    capacity is that of all contexts, half as much again and one context more, for waiting words, suspended answers and
    compactions.
    """
    capacity = (sessions + 1 + sessions // 2) * length
    return {"context_length": length, "capacity": capacity, "max_seqs": min(MAX_SEQS, 4 * sessions + 12)}


def sessions_per_cache(sessions: int, length: int) -> int:
    """How many of the sessions, with contexts of `length` tokens, share a llama.cpp cache: all, or one each.

    One pass reads the weights once for all sessions that share a cache, but the attention of each token covers the
    entries of all of them. The latter outweighs the former for long contexts (`benchmarks/caches.py`). A long
    conversation fills half to three quarters of its context, and most are short, so only contexts that were long in
    the measurement count as long.
    """
    if length <= _SHARED_LENGTH or sessions * length <= _SHARED_TOKENS:
        return sessions
    return 1
