"""A second cache of llama.cpp, in which long new texts are read apart from everybody's conversations.

All conversations lie in one cache, since forking is free there, and every token of a pass is shown all entries of it.
For the few tokens of speech that costs little. For a history of hundreds of tokens it costs a multiple of what the
model does: so that is read here, among little else, and moved over when something forks from it, draws or watches.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import llama_cpp as ll

from duologue.backends.llamacpp import library
from duologue.errors import EngineError

LEAST = 8  # tokens: fewer are fed where all others are
_MAX_SEQS = 16


class Nursery:
    """Where sequences are that nobody has forked or looked at yet. Its slots are its own.

    Args:
        open_context: opens a context of so many KV entries and sequences.
    """

    def __init__(self, capacity: int, open_context: Callable[[int, int], Any]) -> None:
        self.context = open_context(capacity, _MAX_SEQS)
        self._memory = ll.llama_get_memory(self.context)
        self._slots = list(range(_MAX_SEQS))
        self._free = capacity

    def has_room(self, num_tokens: int, num_new: int) -> bool:
        """Whether so many can be fed, to sequences of which so many are new here."""
        return num_tokens <= self._free and num_new <= len(self._slots)

    def enter(self) -> int:
        """The slot of a new sequence."""
        return self._slots.pop()

    def fed(self, num_tokens: int) -> None:
        """So many more tokens are here; fewer, if it is negative."""
        self._free -= num_tokens

    def leave(self, slot: int, length: int) -> None:
        """Forget a sequence of `length` tokens."""
        self.roll_back(slot, 0)
        self._free += length
        self._slots.append(slot)

    def roll_back(self, slot: int, start: int) -> None:
        """Forget what is in the cache from position `start` on.

        Raises:
            EngineError: llama.cpp refused.
        """
        if not ll.llama_memory_seq_rm(self._memory, slot, start, -1):
            raise EngineError(
                f"llama.cpp could not roll a sequence back to {start}; this is a defect, please report it"
            )

    def move(self, slot: int, length: int, context: Any, target: int) -> None:
        """A sequence of `length` tokens becomes sequence `target` of `context`, which is empty.

        Raises:
            EngineError: llama.cpp refused; the sequence stays here.
        """
        size = ll.llama_state_seq_get_size(self.context, slot)
        data = (ctypes.c_uint8 * size)()
        written = ll.llama_state_seq_get_data(self.context, data, size, slot)
        if written == 0 or ll.llama_state_seq_set_data(context, data, written, target) == 0:
            raise EngineError(f"llama.cpp did not move a sequence of {length} tokens: {library.last_messages()}")
        self.leave(slot, length)
