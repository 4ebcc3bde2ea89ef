"""The slow twin of every backend: it keeps ids, no KV, and computes each sequence anew in every pass."""

from collections.abc import Sequence
from typing import Any

from duologue.backends.ids import IdBackend
from duologue.backends.lora import Lora
from duologue.backends.rows import Rows
from duologue.backends.torch.huggingface import CausalModel
from duologue.core.backend import BackendInfo, Extend, Step
from duologue.types import Token


class ReferenceBackend(IdBackend):
    """Any Hugging Face causal language model, recurrent ones included, without a cache.

    Each `Extend` is one plain forward of its whole sequence, so the cost of a pass grows with the square of what is
    cached: use it to check other backends, and for models that cannot roll back. It holds no KV, but counts the
    entries that a cache which shares forks would hold. The model is set to evaluation mode.

    Raises:
        UnsupportedModel: an encoder-decoder model, or one without output embeddings.
        AdapterMismatch: the rows have another width than the model, or the LoRA changes layers that it does not have.
        UsageError: a limit that makes no sense.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: Rows | None = None,
        lora: Lora | None = None,
        capacity: int = 1 << 20,
        max_seqs: int = 256,
        context_length: int | None = None,
    ) -> None:
        self._causal = CausalModel(model, rows, lora)
        super().__init__(
            BackendInfo(
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
        )

    def check(self, batch: Sequence[Extend]) -> None:
        super().check(batch)
        self._causal.check_ids(batch)

    def step(self, extend: Extend, tokens: list[Token]) -> Step:
        logits, hidden = self._causal.run(tokens, [len(tokens) - 1], use_cache=False)
        return self._causal.read(extend, logits[0], hidden[-1])
