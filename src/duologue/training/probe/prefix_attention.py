"""Attention of new tokens over cached prefixes, with gradients for the new tokens only.

Reaches a model's layers through the transformers attention interface. B samples, N new tokens of each, T tokens of the
longest prefix, L layers, H query heads, G key-value heads, E entries per head, D hidden size.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from duologue.backends.torch.huggingface import Window, attention_by, configs_of, layer_windows
from duologue.errors import UnsupportedModel

_ATTENTION = "duologue_prefixes"
_MASKED = -1e30  # added to a score; finite, so that nothing becomes NaN


@dataclass(frozen=True, slots=True)
class Past:
    """The prefixes of a batch, padded on the left, so that the new tokens follow directly."""

    kv: Tensor  # [L, 2, B, G, T, E]
    lengths: Tensor  # [B], tokens of each prefix


class PrefixCache(Cache):  # type: ignore[misc]  # transformers has no types
    """What the layers read in one forward pass; it can keep what they compute for the new tokens."""

    def __init__(self, past: Past | None, windows: Sequence[Window], *, keep: bool) -> None:
        super().__init__(layers=[])
        self.kept: list[tuple[Tensor, Tensor]] = []  # keys and values of each layer, [B, G, N, E], if `keep`
        self._past, self._windows, self._keep = past, windows, keep
        self._layer = -1  # the layer that attends next
        self._num_updates = self._num_reads = 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Note which layer attends next; key_states and value_states: [B, G, N, E], returned unchanged."""
        self._layer = layer_idx
        self._num_updates += 1
        return key_states, value_states

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, softcap: float | None) -> Tensor:
        """query [B, H, N, E], key and value [B, G, N, E]; returns [B, N, H, E]."""
        self._num_reads += 1
        if self._keep:
            self.kept.append((key, value))
        batch, heads, new, width = query.shape
        groups = key.shape[1]
        query = query.reshape(batch, groups, heads // groups * new, width)  # heads that share keys become more queries
        scores = query @ key.transpose(2, 3)
        length = 0
        if self._past is not None:
            # Prefix keys and values are not joined with the new ones: they take no gradient and are not copied.
            past_keys, past_values = self._past.kv[self._layer]
            length = past_keys.shape[2]
            scores = torch.cat([query @ past_keys.transpose(2, 3), scores], -1)
        scores = scores.float() * (width**-0.5 if scale is None else scale)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        mask = self._mask(new, self._windows[self._layer], query.device)
        scores = scores.view(batch, groups, -1, new, length + new) + mask
        weights = torch.softmax(scores, -1).to(value.dtype).view(batch, groups, -1, length + new)
        out = weights[..., length:] @ value
        if self._past is not None:
            out = out + weights[..., :length] @ past_values
        return out.reshape(batch, heads, new, width).transpose(1, 2)

    def check(self) -> None:
        """Raise `UnsupportedModel` unless every layer that caches also attended here, once."""
        if not self._num_updates or self._num_reads != self._num_updates:
            raise UnsupportedModel(
                f"{self._num_updates} layers of this model cache keys and {self._num_reads} attend through the "
                "attention interface of transformers, so its prefixes cannot be cached and it cannot be trained "
                "around its frozen weights"
            )

    def _mask(self, new: int, window: Window, device: torch.device) -> Tensor:
        """[B or 1, 1, 1, N, T + N], added to scores: hides padding, later tokens, and tokens outside the window."""
        at = torch.arange(new, device=device)
        length = 0 if self._past is None else self._past.kv.shape[4]
        columns = torch.arange(length + new, device=device)
        distance = length + at[:, None] - columns[None]  # [N, T + N]
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        hidden = ~visible[None]
        if self._past is not None:
            padding = columns[None] < length - self._past.lengths[:, None]  # [B, T + N]
            hidden = hidden | padding[:, None]
        hidden = hidden[:, None, None]
        return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, _MASKED)


@dataclass(slots=True)
class PrefixModel:
    """A model whose layers can run over cached prefixes."""

    model: PreTrainedModel
    windows: list[Window] = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.windows = layer_windows(self.model.config.get_text_config())
        except UnsupportedModel as error:
            raise UnsupportedModel(f"this model cannot be trained around its frozen weights: {error}") from None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return torch.device(self.model.device)

    def run(self, past: Past | None, *, keep: bool = False, **inputs: Tensor) -> tuple[Tensor, PrefixCache]:
        """Feed `input_ids` [B, N] or `inputs_embeds` [B, N, D] after `past`; returns final hidden states [B, N, D].

        Inputs may be on any device; `past` and the result are on the model's.
        """
        cache = PrefixCache(past, self.windows, keep=keep)
        fed = {name: value.to(self.device) for name, value in inputs.items()}
        positions = torch.arange(next(iter(inputs.values())).shape[1], device=self.device)[None]
        if past is not None:
            positions = positions + past.lengths[:, None]
        with _attending(self.model, cache):
            output = self.model.base_model(**fed, position_ids=positions, past_key_values=cache, use_cache=True)
        cache.check()
        hidden: Tensor = output.last_hidden_state
        return hidden, cache


_running = threading.local()  # the cache of the pass that runs in this thread


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Replaces the model's attention; shapes as in `PrefixCache.attend`."""
    if kwargs.get("position_bias") is not None or kwargs.get("s_aux") is not None:
        raise UnsupportedModel("the model adds a bias or a sink to its attention scores and cannot be trained")
    return _running.cache.attend(query, key, value, scaling, kwargs.get("softcap")), None


@contextmanager
def _attending(model: PreTrainedModel, cache: PrefixCache) -> Iterator[None]:
    """Let the layers of `model` attend through `cache`."""
    _running.cache = cache
    try:
        with attention_by(configs_of(model), _ATTENTION, _attend):
            yield
    finally:
        _running.cache = None
