"""A second llama.cpp cache in which long new texts are read, apart from the cache of all conversations.

All conversations share one cache because forking within it is free. In exchange, attention passes over all entries of
that cache for every token. For the few tokens of speech this costs little; for a history of hundreds of tokens it costs
several times the model itself. Such a text is read here, and moved to the shared cache when something forks from it,
draws or watches.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import llama_cpp as ll

from duologue.backends.llamacpp import library
from duologue.errors import EngineError

MIN_PREFILL = 8
"""Tokens. Shorter texts are fed to the shared cache directly."""

_MAX_SEQS = 16


class PrefillCache:
    """Holds sequences that nothing has forked from or watched yet, under sequence ids of its own.

    Args:
        capacity: KV entries; with 0 there is room for nothing and no context.
        open_context: opens a llama.cpp context, given `capacity` and `max_seqs`.
    """

    def __init__(self, capacity: int, open_context: Callable[..., Any]) -> None:
        self.context = open_context(capacity=capacity, max_seqs=_MAX_SEQS) if capacity else None
        self._free_ids = list(range(_MAX_SEQS))
        self._num_free = capacity

    def has_room(self, num_tokens: int, num_new: int) -> bool:
        """Whether so many tokens can be fed, to sequences of which so many are not here yet."""
        return num_tokens <= self._num_free and num_new <= len(self._free_ids)

    def open(self) -> int:
        """The id of a new, empty sequence."""
        return self._free_ids.pop()

    def count(self, num_tokens: int) -> None:
        """Record that so many tokens were fed, or rolled back if negative."""
        self._num_free -= num_tokens

    def free(self, seq_id: int, length: int) -> None:
        """Remove a sequence of `length` tokens."""
        library.remove_from_cache(self.context, seq_id, 0)
        self._num_free += length
        self._free_ids.append(seq_id)

    def move(self, seq_id: int, length: int, context: Any, target: int) -> None:
        """Move a sequence of `length` tokens to `context`, where it becomes the empty sequence `target`.

        Raises:
            EngineError: llama.cpp refused; the sequence stays here.
        """
        size = ll.llama_state_seq_get_size(self.context, seq_id)
        data = (ctypes.c_uint8 * size)()
        written = ll.llama_state_seq_get_data(self.context, data, size, seq_id)
        if written == 0 or ll.llama_state_seq_set_data(context, data, written, target) == 0:
            raise EngineError(f"llama.cpp did not move a sequence of {length} tokens: {library.last_messages()}")
        self.free(seq_id, length)
