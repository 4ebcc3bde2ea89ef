"""A Hugging Face causal language model with an adapter applied. Knows the model's modules, not caches.

Shapes: N tokens of a pass, D the hidden width, V the base vocabulary, E positions whose logits are needed.
"""

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from transformers.modeling_utils import AttentionInterface

from duologue.backends.lora import Lora
from duologue.backends.rows import AdapterRows
from duologue.backends.sampling import drawn, score, weigh
from duologue.backends.torch.lora_modules import LoraModules
from duologue.core.backend import Extend, Step
from duologue.errors import UnsupportedModel, UsageError
from duologue.types import Token, VirtualId

PreTrainedModel: TypeAlias = Any  # transformers ships no types
Tensor: TypeAlias = torch.Tensor
Window: TypeAlias = int | None
"""The number of tokens a layer attends to, its own included; `None` for all."""

_WEIGHTS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64"}
_ATTENTION = "duologue"  # its name in transformers
_FALLBACK_CONTEXT = 4096  # for models that declare no limit, such as Mamba


class AttentionCache(Protocol):
    """What the layers attend through in one pass: it knows the keys and values of earlier tokens."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, softcap: float | None, sinks: Any
    ) -> Tensor:
        """query: [B, H, N, E]; key, value: [B, G, N, E], of this pass alone; sinks: [H] or None. Returns [B, N, H, E].

        B samples (1 in a backend), H query heads, G key-value heads, E entries per head.
        """


_running = threading.local()  # holds the cache of the pass that runs in this thread


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Replaces the model's attention; shapes as in `AttentionCache.attend`."""
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModel("the model adds a position bias to its attention scores, which Duologue lacks")
    cache: AttentionCache = _running.cache
    return cache.attend(query, key, value, scaling, kwargs.get("softcap"), kwargs.get("s_aux")), None


@contextmanager
def attention_through(configs: Sequence[Any], cache: AttentionCache) -> Iterator[None]:
    """Make layers with these configs attend through `cache` in this thread; restore them afterwards."""
    AttentionInterface.register(_ATTENTION, _attend)
    before = [config._attn_implementation_internal for config in configs]
    _running.cache = cache
    try:
        for config in configs:
            # No mask function is registered under this name, so the library builds no masks of its own.
            config._attn_implementation_internal = _ATTENTION
        yield
    finally:
        _running.cache = None
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation


def configs_of(model: PreTrainedModel) -> list[Any]:
    """Every configuration object that a layer of the model reads, once."""
    return list(
        {id(config): config for m in model.modules() if (config := getattr(m, "config", None)) is not None}.values()
    )


def layer_windows(config: Any) -> list[Window]:
    """The attention window of each layer. Raises `UnsupportedModel` for layers that are not attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or []
    kinds = kinds or ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise UnsupportedModel(f"it has layers of kind {', '.join(unknown)}, which store no keys and values")
    return [int(window) if window and kind == "sliding_attention" else None for kind in kinds]


class CausalModel:
    """A model, its limits, and the rows and LoRA that an adapter adds. The LoRA applies at probe tokens only.

    The row of a probe token replaces the output of the embedding module, after any scaling by the module itself (Gemma,
    MiniCPM): it is the vector that enters the first layer. Later operations on *every* embedding (Granite's
    multiplier) also apply to the row. The logit of an output row is its dot product with the final, normed hidden
    state, before any scaling or soft-capping by the model's own head.
    """

    def __init__(self, model: PreTrainedModel, rows: AdapterRows | None, lora: Lora | None = None) -> None:
        self.model = model.eval()  # dropout would make results random
        self.config = model.config.get_text_config()
        path = str(getattr(model.config, "_name_or_path", "")).rstrip("/")
        self.label = path.rsplit("/", 1)[-1] or type(model).__name__  # for display
        if model.config.is_encoder_decoder:
            raise UnsupportedModel(
                f"{self.label} is an encoder-decoder model; duplex decoding needs a causal (decoder-only) model"
            )
        head = model.get_output_embeddings()
        if head is None:
            raise UnsupportedModel(f"{self.label} has no output embeddings; load it with AutoModelForCausalLM")
        embeddings = model.get_input_embeddings()
        self.device: torch.device = embeddings.weight.device  # to which tokens are fed
        self.dtype: torch.dtype = embeddings.weight.dtype
        self.weights = _WEIGHTS.get(self.dtype, str(self.dtype).removeprefix("torch."))  # such as "bf16"
        self.vocab_size = min(int(head.weight.shape[0]), int(embeddings.weight.shape[0]))
        self._outputs = None if rows is None else rows.outputs  # [S, D], or [S + 2, D] with a timing pair
        if rows is not None:
            rows.check_width(int(embeddings.weight.shape[1]), self.label)
        self._lora = None if lora is None else LoraModules(model.get_decoder(), lora, self.label)
        self.num_probes = 0 if rows is None else rows.num_probes
        self.num_added = 0 if rows is None else rows.num_added
        # Models with embeddings in every layer (Gemma 3n, Gemma 4) look these up by id, which a row does not have.
        has_layers_of_ids = bool(getattr(self.config, "hidden_size_per_layer_input", 0))
        self.embedding_width = 0 if has_layers_of_ids else int(embeddings.weight.shape[1])
        self._probes = None if rows is None else torch.from_numpy(rows.probes).to(self.device, self.dtype)
        # The layers of the decoder alone: an encoder beside it may work on another thread during a pass.
        self.configs = [model.config, *(one for one in configs_of(model.get_decoder()) if one is not model.config)]
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def context_length(self, wanted: int | None) -> int:
        """`wanted`, or by default the model's limit. Raises `UsageError` if `wanted` exceeds the limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        scaling = getattr(self.config, "rope_parameters", None) or {}
        if isinstance(scaling, dict) and scaling.get("rope_type") in ("dynamic", "longrope"):
            # These rescale the rotation of every position by the longest sequence of a pass. Cached keys would become
            # invalid, and one conversation would change another.
            limit = scaling.get("original_max_position_embeddings") or limit
        if wanted is None:
            return int(limit or _FALLBACK_CONTEXT)
        if wanted < 1 or (limit is not None and wanted > limit):
            raise UsageError(f"context_length {wanted} is not between 1 and {limit}, the limit of {self.label}")
        return wanted

    def run(self, tokens: Sequence[Token], needed: Sequence[int], **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Run one forward pass over `tokens` as one row; `kwargs` go to the model.

        Returns the logits of the base ids [E, V] at the positions `needed`, and all final hidden states [N, D].
        """
        where = torch.tensor(needed, dtype=torch.long, device=self.device)
        if self._keeps_logits:
            kwargs["logits_to_keep"] = where
        with torch.inference_mode(), self._final_hidden() as hidden, self._lora_at_probes(tokens):
            logits = self.model(**self._inputs(tokens), **kwargs).logits[0]
        if not self._keeps_logits:
            logits = logits[where]
        return logits[:, : self.vocab_size], hidden[-1][0]

    def read(self, extend: Extend, logits: Tensor, hidden: Tensor) -> Step:
        """The result of one `Extend`. logits: [E, V] at its last `num_logits` tokens, hidden: [D]."""
        base = logits.float().cpu().numpy()
        if extend.score:
            return Step(extend.ticket, scores=score(base, extend.score))
        if extend.draw is not None:
            return drawn(extend.ticket, base[-1], extend.draw)
        if not extend.watch:
            return Step(extend.ticket)
        state = hidden.float().cpu().numpy()
        logits_of = partial(self._logit, base=base, state=state)
        return Step(extend.ticket, p=tuple(weigh([logits_of(token) for token in group]) for group in extend.watch))

    def num_logits(self, extend: Extend) -> int:
        """The result of `extend` depends on the base logits at so many of its last tokens."""
        if extend.score:
            return len(extend.score)
        return int(extend.draw is not None or any(token < self.vocab_size for token in extend.watched))

    def _logit(self, token: Token, base: Any, state: Any) -> float:
        """base: [E, V], state: [D]."""
        if token < self.vocab_size:
            return float(base[-1, token])
        assert self._outputs is not None
        return float(np.dot(self._outputs[token - self.vocab_size - self.num_probes], state))

    def _inputs(self, tokens: Sequence[Token]) -> dict[str, Tensor]:
        """Ids [1, N], or embeddings [1, N, D] where there are probe tokens or embedding rows among them."""
        replaced = [index for index, token in enumerate(tokens) if token >= self.vocab_size]
        ids = [0 if token >= self.vocab_size else token for token in tokens]
        fed = torch.tensor([ids], dtype=torch.long, device=self.device)
        if not replaced:
            return {"input_ids": fed}
        embeds = self.model.get_input_embeddings()(fed).clone()
        embeds[0, replaced] = torch.stack([self._row(tokens[index]) for index in replaced]).to(embeds.dtype)
        return {"inputs_embeds": embeds}

    def _row(self, token: Token) -> Tensor:
        """What enters the first layer in place of an embedding: [D]."""
        if isinstance(token, VirtualId):
            return torch.frombuffer(bytearray(token.row), dtype=torch.float32).to(self.device, self.dtype)
        assert self._probes is not None
        return self._probes[token - self.vocab_size]

    def _is_probe(self, token: Token) -> bool:
        return token >= self.vocab_size and not isinstance(token, VirtualId)

    def _lora_at_probes(self, tokens: Sequence[Token]) -> AbstractContextManager[None]:
        probes = [i for i, token in enumerate(tokens) if self._is_probe(token)]
        return nullcontext() if self._lora is None or not probes else self._lora.at(probes, len(tokens))

    @contextmanager
    def _final_hidden(self) -> Iterator[list[Tensor]]:
        """Collects the decoder's output [1, N, D], before the head."""
        seen: list[Tensor] = []
        hook = self.model.get_decoder().register_forward_hook(lambda module, args, output: seen.append(output[0]))
        try:
            yield seen
        finally:
            hook.remove()
