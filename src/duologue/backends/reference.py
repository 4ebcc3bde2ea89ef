"""The slow backend that others are compared with: it stores ids, not KV, and recomputes each sequence in every pass."""

from collections.abc import Sequence
from typing import Any

from duologue.backends.ids import IdBackend
from duologue.backends.lora import Lora
from duologue.backends.rows import AdapterRows, check_added_ids
from duologue.backends.torch.huggingface import CausalModel
from duologue.core.backend import BackendInfo, Extend, Step
from duologue.types import Token


class ReferenceBackend(IdBackend):
    """Any Hugging Face causal language model without a cache, including recurrent models.

    Each `Extend` runs one plain forward over its whole sequence, so a pass costs the square of the sequence length.
    Use it to check other backends and to run models that cannot roll back. `usage` counts the entries that a KV cache
    with shared forks would hold. The constructor sets the model to evaluation mode.

    Raises:
        UnsupportedModel: the model is an encoder-decoder or has no output embeddings.
        AdapterMismatch: the rows have a different width from the model, or the LoRA names layers it does not have.
        UsageError: a limit is out of range.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: AdapterRows | None = None,
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
                embedding_width=self._causal.embedding_width,
            )
        )

    def check(self, batch: Sequence[Extend]) -> None:
        super().check(batch)
        check_added_ids(self._info.vocab_size, self._causal.num_probes, batch)

    def step(self, extend: Extend, tokens: list[Token]) -> Step:
        last = range(len(tokens) - self._causal.num_logits(extend), len(tokens))
        logits, hidden = self._causal.run(tokens, last, use_cache=False)
        return self._causal.read(extend, logits, hidden[-1])
