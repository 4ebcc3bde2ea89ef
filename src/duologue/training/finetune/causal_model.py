"""A causal language model that is trained: with a LoRA or as a whole; what it says, and how it is saved.

T tokens, N tokens that are said, V base vocabulary.
"""

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.training.finetune.examples import NO_LABEL
from duologue.training.recipes import FinetuneSettings


class CausalModel(nn.Module):
    """A causal language model, perhaps with a LoRA around it. Subclasses set `model`."""

    model: Any

    @property
    def lora(self) -> PeftModel | None:
        """The PEFT model around the base, if there is a LoRA."""
        return self.model if isinstance(self.model, PeftModel) else None

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, LoRA layers included."""
        return self.model if self.lora is None else self.lora.get_base_model()


def made_trainable(base: PreTrainedModel, settings: FinetuneSettings) -> Any:
    """`base`, of which all weights are trained (full), or with a LoRA around all its linear layers (lora)."""
    if settings.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if settings.kind == "full":
        return base.requires_grad_(True)
    config = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # PEFT about transformers
        return get_peft_model(base, config)


def said_logits(base: PreTrainedModel, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Logits [N, V] of the tokens that are labelled in `labels` [B, T], in order, from the model's own head."""
    is_said = labels != NO_LABEL
    columns = is_said.any(0).nonzero()[:, 0]
    kwargs: dict[str, Any] = {}
    keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
    if keeps:  # logits of every position would take most of the memory
        kwargs["logits_to_keep"] = columns
    output = base(ids, attention_mask=mask, use_cache=False, **kwargs)
    logits: Tensor = output.logits if keeps else output.logits[:, columns]
    return logits[is_said[:, columns]].float()


def write_model(
    out: Path, base: PreTrainedModel, lora: PeftModel | None, tokenizer: HfTokenizer, *, precision: str
) -> None:
    """Save the changed model as a Hugging Face folder `model`, and the LoRA on its own if there is one."""
    if lora is not None:
        # without this argument PEFT asks the hub whether the vocabulary has grown
        lora.save_pretrained(out / "lora", save_embedding_layers=False)
        base = lora.merge_and_unload()
    transformers_logging.disable_progress_bar()
    if precision == "bf16":
        base = base.to(torch.bfloat16)
    base.save_pretrained(out / "model")
    tokenizer.wrapped.save_pretrained(out / "model")
