"""The slow twin of every backend: it keeps ids, no KV, and computes each sequence anew in every pass."""

import itertools
from collections.abc import Sequence
from typing import Any

from duologue.backends.huggingface import CausalModel
from duologue.backends.rows import Rows
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage, check_batch
from duologue.errors import CacheFull, ContextOverflow, UnknownSeq, UsageError
from duologue.types import Seq, Token


class ReferenceBackend(Backend):
    """Any Hugging Face causal language model, recurrent ones included, without a cache.

    Each `Extend` is one plain forward of its whole sequence, so the cost of a pass grows with the square of what is
    cached: use it to check other backends, and for models that cannot roll back. It holds no KV, but counts the
    entries that a cache which shares forks would hold. The model is set to evaluation mode.

    Raises:
        UnsupportedModel: an encoder-decoder model, or one without output embeddings.
        AdapterMismatch: the rows have another width than the model.
        UsageError: a limit that makes no sense.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: Rows | None = None,
        capacity: int = 1 << 20,
        max_seqs: int = 256,
        context_length: int | None = None,
    ) -> None:
        if capacity < 1 or max_seqs < 1:
            raise UsageError(f"capacity {capacity} and max_seqs {max_seqs} must both be at least 1")
        self._causal = CausalModel(model, rows)
        self._info = BackendInfo(
            name="reference",
            model=self._causal.label,
            weights=self._causal.weights,
            vocab_size=self._causal.vocab_size,
            num_added=self._causal.num_added,
            context_length=self._causal.context_length(context_length),
            capacity=capacity,
            max_seqs=max_seqs,
            kv_bytes_per_token=0,
            can_truncate=True,
        )
        # A sequence is a list of (token, entry): the entry is what a cache would hold for this token, a number that
        # no other token has, and that forks share.
        self._seqs: dict[Seq, list[tuple[Token, int]]] = {}
        self._names = itertools.count(1)
        self._entries = itertools.count()

    @property
    def info(self) -> BackendInfo:
        return self._info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        held = [] if parent is None else self._get(parent)
        if not 0 <= length <= len(held):
            raise UsageError(f"cannot share {length} tokens of sequence {parent}, which has {len(held)} cached")
        if len(self._seqs) >= self._info.max_seqs:
            raise CacheFull(f"{self._info.max_seqs} sequences are open, which is the limit (max_seqs); free one first")
        seq = next(self._names)
        self._seqs[seq] = held[:length]
        return seq

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        check_batch(self._info, batch)
        self._causal.check_ids(batch)
        num_new = 0
        for extend in batch:
            length = len(self._get(extend.seq)) + len(extend.tokens)
            if length > self._info.context_length:
                raise ContextOverflow(
                    f"sequence {extend.seq} would have {length} tokens; the context holds {self._info.context_length}"
                )
            num_new += len(extend.tokens)
        num_free = self._info.capacity - self._num_entries()
        if num_new > num_free:
            raise CacheFull(f"the pass feeds {num_new} tokens; {num_free} of {self._info.capacity} entries are free")
        steps = [self._step(extend) for extend in batch]
        for extend in batch:
            self._seqs[extend.seq].extend((token, next(self._entries)) for token in extend.tokens)
        return steps

    def truncate(self, seq: Seq, length: int) -> None:
        held = self._get(seq)
        if not 0 <= length <= len(held):
            raise UsageError(f"cannot cut sequence {seq} to {length} tokens; it has {len(held)} cached")
        del held[length:]

    def free(self, seq: Seq) -> None:
        self._get(seq)
        del self._seqs[seq]

    def length(self, seq: Seq) -> int:
        return len(self._get(seq))

    def usage(self) -> Usage:
        return Usage(num_seqs=len(self._seqs), kv_entries=self._num_entries(), kv_bytes=0)

    def _get(self, seq: Seq) -> list[tuple[Token, int]]:
        if seq not in self._seqs:
            raise UnknownSeq(f"no sequence {seq} is open; open ones: {sorted(self._seqs)[:16]}")
        return self._seqs[seq]

    def _num_entries(self) -> int:
        return len({entry for held in self._seqs.values() for _, entry in held})

    def _step(self, extend: Extend) -> Step:
        tokens = [token for token, _ in self._seqs[extend.seq]] + list(extend.tokens)
        logits, hidden = self._causal.run(tokens, [len(tokens) - 1], use_cache=False)
        return self._causal.read(extend, logits[0], hidden[-1])
