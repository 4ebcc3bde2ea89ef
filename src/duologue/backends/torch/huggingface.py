"""A Hugging Face causal language model with an adapter around and in it. Knows its modules, not caches."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers.modeling_utils import AttentionInterface

from duologue.backends.lora import Lora
from duologue.backends.rows import Rows
from duologue.backends.sampling import choose, weigh
from duologue.backends.torch.lora_modules import LoraModules
from duologue.core.backend import Extend, Step
from duologue.errors import AdapterMismatch, UnsupportedModel, UsageError
from duologue.types import Token

PreTrainedModel: TypeAlias = Any  # transformers ships no types
Tensor: TypeAlias = torch.Tensor
Window: TypeAlias = int | None
"""Tokens a layer looks back, its own included; `None` for all."""

_WEIGHTS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64"}
_FALLBACK_CONTEXT = 4096  # for models that name no limit, such as Mamba


@contextmanager
def attention_by(configs: Sequence[Any], name: str, attend: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Let layers with these configs attend by `attend`, registered as `name`, and give them back as they were."""
    AttentionInterface.register(name, attend)
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            # No mask function goes by this name, so the library makes no masks of its own.
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation


def configs_of(model: PreTrainedModel) -> list[Any]:
    """Every configuration that a layer of the model looks at, once."""
    return list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())


def layer_windows(config: Any) -> list[Window]:
    """How far each layer looks back. Raises `UnsupportedModel` for layers that are not attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or []
    kinds = kinds or ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise UnsupportedModel(f"it has layers of kind {', '.join(unknown)}, which keep no keys and values")
    return [int(window) if window and kind == "sliding_attention" else None for kind in kinds]


class CausalModel:
    """A model, its limits, and the rows and the LoRA that an adapter adds. The LoRA holds at probe tokens alone.

    The row of a probe token stands in place of what the embedding module returns, after any scaling that the module
    itself does (Gemma, MiniCPM): it is the vector that enters the first layer. What the model does with *every*
    embedding later (Granite's multiplier) is done with the row too. The row of a state is multiplied with the final,
    normed hidden state, before any scaling or soft-capping of the model's own head.
    """

    def __init__(self, model: PreTrainedModel, rows: Rows | None, lora: Lora | None = None) -> None:
        self.model = model.eval()  # dropout would make the same tokens give other answers
        self.config = model.config.get_text_config()
        if model.config.is_encoder_decoder:
            raise UnsupportedModel(
                f"{self.label} is an encoder-decoder model; duplex decoding needs a causal (decoder-only) one"
            )
        head = model.get_output_embeddings()
        if head is None:
            raise UnsupportedModel(f"{self.label} has no output embeddings; load it with AutoModelForCausalLM")
        embeddings = model.get_input_embeddings()
        self.vocab_size = min(int(head.weight.shape[0]), int(embeddings.weight.shape[0]))
        self.rows = rows
        self._check_rows(int(embeddings.weight.shape[1]))
        self._lora = None if lora is None else LoraModules(model.get_decoder(), lora, self.label)
        self.num_probes = 0 if rows is None else int(rows.probes.shape[0])
        self.num_added = 0 if rows is None else rows.num_added
        self._probes = None if rows is None else torch.from_numpy(rows.probes).to(self.device, self.dtype)
        self.configs = configs_of(model)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def label(self) -> str:
        """The model's name for people: its folder or its class."""
        path = str(getattr(self.model.config, "_name_or_path", "")).rstrip("/")
        return path.rsplit("/", 1)[-1] or type(self.model).__name__

    @property
    def device(self) -> torch.device:
        """Where tokens are fed."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the embeddings."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def weights(self) -> str:
        """Weight type for people, such as "bf16"."""
        return _WEIGHTS.get(self.dtype, str(self.dtype).removeprefix("torch."))

    def context_length(self, wanted: int | None) -> int:
        """`wanted`, or the longest the model takes. Raises `UsageError` if it takes less than `wanted`."""
        limit = getattr(self.config, "max_position_embeddings", None)
        scaling = getattr(self.config, "rope_parameters", None) or {}
        if isinstance(scaling, dict) and scaling.get("rope_type") in ("dynamic", "longrope"):
            # These change the rotation of every position with the longest sequence of a pass: cached keys would no
            # longer fit, and one conversation would change another.
            limit = scaling.get("original_max_position_embeddings") or limit
        if wanted is None:
            return int(limit or _FALLBACK_CONTEXT)
        if wanted < 1 or (limit is not None and wanted > limit):
            raise UsageError(f"context_length {wanted} is not between 1 and {limit}, the most that {self.label} takes")
        return wanted

    def check_ids(self, batch: Sequence[Extend]) -> None:
        """Raise `UsageError` if a state is fed, or a probe watched: neither has the row for it."""
        first_state = self.vocab_size + self.num_probes
        for extend in batch:
            for token in extend.tokens:
                if token >= first_state:
                    raise UsageError(f"id {token} is a state of the adapter; states are watched, never fed")
            for token in extend.watch:
                if self.vocab_size <= token < first_state:
                    raise UsageError(f"id {token} is a probe token of the adapter; probes are fed, never watched")

    def run(self, tokens: Sequence[Token], looked: Sequence[int], **kwargs: Any) -> tuple[Tensor, Tensor]:
        """One forward pass over `tokens` as one row; `kwargs` go to the model.

        Returns the logits of the base ids [E, V] at the positions `looked`, and the final hidden state [N, D] of all.
        """
        where = torch.tensor(looked, dtype=torch.long, device=self.device)
        if self._keeps_logits:
            kwargs["logits_to_keep"] = where
        with torch.inference_mode(), self._final_hidden() as hidden, self._lora_at_probes(tokens):
            logits = self.model(**self._inputs(tokens), **kwargs).logits[0]
        if not self._keeps_logits:
            logits = logits[where]
        return logits[:, : self.vocab_size], hidden[-1][0]

    def read(self, extend: Extend, logits: Tensor | None, hidden: Tensor) -> Step:
        """What one `Extend` wants to know. logits: [V] (not needed to watch states alone), hidden: [D]."""
        base = None if logits is None else logits.float().cpu().numpy()
        if extend.draw is not None:
            assert base is not None
            token, margin = choose(base, extend.draw)
            return Step(extend.ticket, tokens=(token,), margin=margin)
        if not extend.watch:
            return Step(extend.ticket)
        state = hidden.float().cpu().numpy()
        return Step(extend.ticket, p=weigh([self._logit(token, base, state) for token in extend.watch]))

    def needs_logits(self, extend: Extend) -> bool:
        """Whether base logits are looked at."""
        return extend.draw is not None or any(token < self.vocab_size for token in extend.watch)

    def _logit(self, token: Token, base: Any, state: Any) -> float:
        if token < self.vocab_size:
            return float(base[token])
        assert self.rows is not None
        return float(np.dot(self.rows.states[token - self.vocab_size - self.num_probes], state))

    def _inputs(self, tokens: Sequence[Token]) -> dict[str, Tensor]:
        ids = torch.tensor([list(tokens)], dtype=torch.long, device=self.device)
        if not self.num_probes or max(tokens) < self.vocab_size:
            return {"input_ids": ids}
        assert self._probes is not None
        added = ids >= self.vocab_size
        embeds = self.model.get_input_embeddings()(ids.masked_fill(added, 0)).clone()
        embeds[added] = self._probes[ids[added] - self.vocab_size].to(embeds.dtype)
        return {"inputs_embeds": embeds}

    def _lora_at_probes(self, tokens: Sequence[Token]) -> AbstractContextManager[None]:
        probes = [i for i, token in enumerate(tokens) if token >= self.vocab_size]
        return nullcontext() if self._lora is None or not probes else self._lora.at(probes, len(tokens))

    @contextmanager
    def _final_hidden(self) -> Iterator[list[Tensor]]:
        """Collects what the decoder returns, whatever the head makes of it."""
        seen: list[Tensor] = []
        hook = self.model.get_decoder().register_forward_hook(lambda module, args, output: seen.append(output[0]))
        try:
            yield seen
        finally:
            hook.remove()

    def _check_rows(self, width: int) -> None:
        if self.rows is None:
            return
        for name, matrix in (("probe", self.rows.probes), ("state", self.rows.states)):
            if matrix.ndim != 2 or matrix.shape[1] != width:
                raise AdapterMismatch(
                    f"the adapter's {name} rows have shape {matrix.shape}, but {self.label} has embeddings of width "
                    f"{width}: the adapter was made for another model"
                )
