"""A causal language model with the added rows, all of it trainable: losses of states and responses. Knows no loop.

B samples, R of them with a response, T tokens, N tokens of responses, D hidden size, S states, V base vocabulary.
"""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from duologue.backends.rows import Rows
from duologue.data.samples import Sample
from duologue.training.recipes import FinetuneSettings
from duologue.training.sequences import Example
from duologue.types import InputState, Token

_NO_LABEL = -100
_LEAST = 1e-6  # a probability below it counts as this one


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples as tensors, padded on the right: what follows is never seen by what comes before."""

    heard: Tensor  # [B, T], the probe last; its id stands for the added row
    heard_mask: Tensor  # [B, T], 1 where there is a token
    targets: Tensor  # [B, S], 1 for the label, less for what would be right too
    replies: Tensor  # [R, T]
    replies_mask: Tensor  # [R, T]
    labels: Tensor  # [R, T], the token to be said next; _NO_LABEL where that is not the assistant's

    @classmethod
    def of(
        cls, examples: Sequence[Example], probe: Token, states: Sequence[InputState], accepted_weight: float
    ) -> "Batch":
        """`probe` is the id of the probe: the first behind the base vocabulary."""
        heard, heard_mask = _padded([(*example.heard, probe) for example in examples])
        replying = [example for example in examples if example.reply]
        replies, replies_mask = _padded([example.reply for example in replying])
        labels = torch.full_like(replies, _NO_LABEL)
        for row, example in enumerate(replying):
            end = len(example.reply)
            start = end - example.num_response
            labels[row, start - 1 : end - 1] = replies[row, start:end]
        targets = target_rows([example.sample for example in examples], states, accepted_weight)
        return cls(heard, heard_mask, targets, replies, replies_mask, labels)

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`."""
        return Batch(*(getattr(self, name).to(device) for name in self.__slots__))


class DuplexModel(nn.Module):
    """A base model, with a LoRA in it or not, and the rows of the probe and the states."""

    def __init__(
        self, base: PreTrainedModel, num_states: int, start: Sequence[Token], settings: FinetuneSettings
    ) -> None:
        """The probe starts from the mean embedding of the ids `start`, the states from next to nothing.

        `base` is changed: it is trained itself (full), or gets a LoRA (lora). No matrix of it gets longer.
        """
        super().__init__()
        embedding = base.get_input_embeddings().weight.detach().float()
        self.vocab_size = min(int(embedding.shape[0]), int(base.get_output_embeddings().weight.shape[0]))
        self.probes = nn.Parameter(embedding[list(start)].mean(0, keepdim=True))  # [1, D]
        random = torch.Generator().manual_seed(settings.seed)
        self.states = nn.Parameter(torch.randn(num_states, embedding.shape[1], generator=random) * 0.01)  # [S, D]
        if settings.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.model: Any = base.requires_grad_(True) if settings.kind == "full" else _with_lora(base, settings)

    @property
    def lora(self) -> PeftModel | None:
        """The base as PEFT sees it, where there is a LoRA."""
        return self.model if isinstance(self.model, PeftModel) else None

    @property
    def base(self) -> PreTrainedModel:
        """The model of the transformers library, LoRA layers included."""
        return self.model if self.lora is None else self.lora.get_base_model()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, S] of the states, and the loss of the responses summed over their tokens."""
        logits = self.state_logits(batch)
        if not len(batch.replies):
            return logits, logits.new_zeros(())
        said = self._said(batch)  # [N, V]
        if self.lora is None:
            labels = batch.labels[batch.labels != _NO_LABEL]
            return logits, functional.cross_entropy(said, labels, reduction="sum")
        with self._frozen_base():
            kept = self._said(batch).log_softmax(-1)
        changed = said.log_softmax(-1)
        return logits, functional.kl_div(changed, kept, reduction="sum", log_target=True)

    def state_logits(self, batch: Batch) -> Tensor:
        """Logits [B, S] at the probe. The words are fed as they are, the probe is its row after any scaling."""
        is_probe = batch.heard == self.vocab_size
        embeds = self.base.get_input_embeddings()(batch.heard.masked_fill(is_probe, 0))  # [B, T, D]
        embeds = torch.where(is_probe[..., None], self.probes.to(embeds.dtype), embeds)
        output = self.base.base_model(inputs_embeds=embeds, attention_mask=batch.heard_mask, use_cache=False)
        with torch.autocast(embeds.device.type, enabled=False):
            hidden: Tensor = output.last_hidden_state[is_probe].float()  # [B, D]
            return hidden @ self.states.T

    def rows(self) -> Rows:
        """The rows as the backends take them."""
        return Rows(
            probes=self.probes.detach().cpu().numpy().astype(np.float32),
            states=self.states.detach().cpu().numpy().astype(np.float32),
        )

    def _said(self, batch: Batch) -> Tensor:
        """Logits [N, V] where a response token is said next; the head is the model's own, with all it does."""
        is_said = batch.labels != _NO_LABEL
        columns = is_said.any(0).nonzero()[:, 0]
        first, last = int(columns[0]), int(columns[-1]) + 1
        kwargs: dict[str, Any] = {}
        if self._keeps_logits:  # a row of logits for every token is most of the memory
            kwargs["logits_to_keep"] = torch.arange(first, last, device=is_said.device)
        output = self.base(batch.replies, attention_mask=batch.replies_mask, use_cache=False, **kwargs)
        logits = output.logits if self._keeps_logits else output.logits[:, first:last]
        said: Tensor = logits[is_said[:, first:last]].float()
        return said

    @contextmanager
    def _frozen_base(self) -> Iterator[None]:
        """The model as it was before it got a LoRA, without dropout or gradients."""
        assert self.lora is not None
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.lora.disable_adapter():
                yield
        finally:
            self.model.train(was_training)


def target_rows(samples: Sequence[Sample], states: Sequence[InputState], accepted_weight: float) -> Tensor:
    """Right states [B, S]: 1 for the label, `accepted_weight` for those that would be right too."""
    return torch.tensor(
        [
            [1.0 if state is sample.state else accepted_weight if state in sample.accept else 0.0 for state in states]
            for sample in samples
        ]
    )


def state_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log [B] of the probability that right states get together, accepted ones counting less."""
    return -(logits.softmax(-1) * targets).sum(-1).clamp_min(_LEAST).log()


def _with_lora(base: PreTrainedModel, settings: FinetuneSettings) -> PeftModel:
    config = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of one library about the other
        return get_peft_model(base, config)


def _padded(rows: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows), default=0)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids, mask
