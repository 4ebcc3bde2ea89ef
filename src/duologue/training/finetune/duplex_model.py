"""A trainable causal language model with added rows: logits of states, losses of responses. Knows no training loop.

B samples, R of them with a response, T tokens, N tokens of responses, D hidden size, S states, V base vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from duologue.training.finetune.causal_model import CausalModel, made_trainable, said_logits
from duologue.training.finetune.examples import NO_LABEL, Batch
from duologue.training.recipes import FinetuneSettings
from duologue.types import Token


class DuplexModel(CausalModel):
    """A base model, perhaps with a LoRA, and the rows of the probe and the states."""

    def __init__(
        self, base: PreTrainedModel, num_states: int, start: Sequence[Token], settings: FinetuneSettings
    ) -> None:
        """The probe starts from the mean embedding of the ids `start`, the states from small random values.

        `base` is changed: it is trained itself (full) or gets a LoRA (lora). None of its matrices grows.
        """
        super().__init__()
        embedding = base.get_input_embeddings().weight.detach().float()
        self.vocab_size = min(int(embedding.shape[0]), int(base.get_output_embeddings().weight.shape[0]))
        self.probes = nn.Parameter(embedding[list(start)].mean(0, keepdim=True))  # [1, D]
        random = torch.Generator().manual_seed(settings.seed)
        self.states = nn.Parameter(torch.randn(num_states, embedding.shape[1], generator=random) * 0.01)  # [S, D]
        self.model = made_trainable(base, settings)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, S] of the states, and the loss [] of the responses, summed over their tokens."""
        logits = self.state_logits(batch)
        if not len(batch.replies):
            return logits, logits.new_zeros(())
        said = self._said(batch)  # [N, V]
        if self.lora is None:
            return logits, functional.cross_entropy(said, batch.labels[batch.labels != NO_LABEL], reduction="sum")
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.lora.disable_adapter():
            kept = self._said(batch).log_softmax(-1)  # of the frozen base
        self.model.train(was_training)
        changed = said.log_softmax(-1)
        return logits, functional.kl_div(changed, kept, reduction="sum", log_target=True)

    def state_logits(self, batch: Batch) -> Tensor:
        """Logits [B, S] at the probe. Words are embedded as usual; the probe's row replaces a scaled embedding."""
        is_probe = batch.heard == self.vocab_size
        embeds = self.base.get_input_embeddings()(batch.heard.masked_fill(is_probe, 0))  # [B, T, D]
        embeds = torch.where(is_probe[..., None], self.probes.to(embeds.dtype), embeds)
        output = self.base.base_model(inputs_embeds=embeds, attention_mask=batch.heard_mask, use_cache=False)
        with torch.autocast(embeds.device.type, enabled=False):
            hidden: Tensor = output.last_hidden_state[is_probe].float()  # [B, D]
            return hidden @ self.states.T

    def _said(self, batch: Batch) -> Tensor:
        """Logits [N, V] of the response tokens."""
        return said_logits(self.base, batch.replies, batch.replies_mask, batch.labels)
