"""The slow twin of every backend: it keeps ids, no KV, and computes each sequence anew in every pass."""

from collections.abc import Sequence
from typing import Any

from duologue.backends.huggingface import CausalModel
from duologue.backends.ids import IdLists
from duologue.backends.rows import Rows
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage
from duologue.types import Seq


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
        self._ids = IdLists(self._info)

    @property
    def info(self) -> BackendInfo:
        return self._info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._ids.fork(parent, length)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        self._ids.check(batch)
        self._causal.check_ids(batch)
        steps = [self._step(extend) for extend in batch]
        self._ids.extend(batch)
        return steps

    def truncate(self, seq: Seq, length: int) -> None:
        self._ids.truncate(seq, length)

    def free(self, seq: Seq) -> None:
        self._ids.free(seq)

    def length(self, seq: Seq) -> int:
        return len(self._ids.tokens(seq))

    def usage(self) -> Usage:
        return Usage(num_seqs=self._ids.num_seqs, kv_entries=self._ids.num_entries, kv_bytes=0)

    def _step(self, extend: Extend) -> Step:
        tokens = [*self._ids.tokens(extend.seq), *extend.tokens]
        logits, hidden = self._causal.run(tokens, [len(tokens) - 1], use_cache=False)
        return self._causal.read(extend, logits[0], hidden[-1])
