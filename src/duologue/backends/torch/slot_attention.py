"""Attention over a pool of KV slots: conversations and channels (DUO, 2.1) attend to their own, and nothing is copied.

Within a conversation, masks hide the tokens of one channel from the other, except for the prefix that they share: the
paper's attention mask (DUO, section 2.1).

It enters a model's layers through the transformers attention interface. Shapes: N tokens of a pass, Q of them in one
conversation, H query heads, G key/value heads, D head width, C slots of the pool, T slots that one conversation sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache

from duologue.backends.slots import IntArray, SlotTable
from duologue.backends.torch.huggingface import CausalModel, Window
from duologue.core.backend import Extend
from duologue.errors import UnsupportedModel, UsageError, require

Tensor: TypeAlias = torch.Tensor

_SPARSE = 2  # a range of slots is read in place if it is at most this many times the number of slots seen
_MASKED = torch.finfo(torch.bfloat16).min  # finite, so that nothing becomes NaN; its exp is exactly 0
_FEW_QUERIES = 16  # up to this many queries of a head group are merged; more would only repeat a large mask


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """The attention of one conversation."""

    start: int  # its queries are tokens start … stop - 1 of the pass
    stop: int
    keys: slice | Tensor  # its slots: a range that is read in place, or numbers [T] to gather
    masks: dict[Window, Tensor | None]  # [1, 1, Q, T], added to the scores; None if everything is visible


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The attention of one pass."""

    blocks: list[AttentionBlock]
    order: list[int]  # indices of the batch, in the order in which they are fed
    write: Tensor  # [N], the slot of each token
    positions: Tensor  # [1, N]


def plan_attention(
    slots: SlotTable, batch: Sequence[Extend], causal: CausalModel, windows: set[Window]
) -> AttentionPlan:
    """Plan a pass whose slots have been assigned already. Sequences of one conversation are fed side by side."""
    conversations: dict[int, list[int]] = {}
    for index, extend in enumerate(batch):
        conversations.setdefault(slots.conversation(extend.seq), []).append(index)
    order = [index for indices in conversations.values() for index in indices]
    blocks, start = [], 0
    for indices in conversations.values():
        fed = [(slots.slots(batch[index].seq), len(batch[index].tokens)) for index in indices]
        blocks.append(_block(slots.positions, fed, start, windows, causal))
        start = blocks[-1].stop
    write = np.concatenate([slots.slots(batch[index].seq)[-len(batch[index].tokens) :] for index in order])
    positions = torch.from_numpy(slots.positions[write])[None]
    return AttentionPlan(blocks, order, torch.from_numpy(write).to(causal.device), positions.to(causal.device))


def _block(
    positions: IntArray, fed: list[tuple[IntArray, int]], start: int, windows: set[Window], causal: CausalModel
) -> AttentionBlock:
    """Plan one conversation: a token sees the slots of its own sequence up to its own position.

    positions: [C]; fed: for each of its sequences, all its slots and how many are new.
    """
    low = min(int(own.min()) for own, _ in fed)
    high = max(int(own.max()) for own, _ in fed) + 1
    if high - low <= _SPARSE * max(len(own) for own, _ in fed) + 64:
        columns: IntArray = np.arange(low, high)
        keys: slice | Tensor = slice(low, high)
    else:
        columns = np.unique(np.concatenate([own for own, _ in fed]))
        keys = torch.from_numpy(columns).to(causal.device)
    visible, distance = [], []  # each [Q, T]
    for own, num_new in fed:
        is_own = np.zeros(len(columns), dtype=bool)
        is_own[own - low if isinstance(keys, slice) else np.searchsorted(columns, own)] = True
        behind = positions[own[-num_new:], None] - positions[columns][None]
        visible.append(is_own[None] & (behind >= 0))
        distance.append(behind)
    seen, behind = np.concatenate(visible), np.concatenate(distance)
    masks = {window: _mask(seen if window is None else seen & (behind < window), causal) for window in windows}
    return AttentionBlock(start, start + len(seen), keys, masks)


def _mask(visible: Any, causal: CausalModel) -> Tensor | None:
    """The mask [1, 1, Q, T] for visibility [Q, T]; None if everything is visible."""
    if visible.all():
        return None
    mask = torch.from_numpy(np.where(visible, np.float32(0), np.float32(_MASKED)))
    return mask[None, None].to(causal.device, causal.dtype)


# --- Pool, cache and attention ----------------------------------------------------------------------------------------


class SlotPool:
    """Keys and values of each layer: two tensors [C, G, D] whose widths may differ. Allocated at the first write."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of one layer, [C, G, D] each. key, value: [1, G, N, D], which give the shapes."""
        if index not in self.layers:
            self.layers[index] = (
                key.new_zeros(self.capacity, key.shape[1], key.shape[3]),
                value.new_zeros(self.capacity, value.shape[1], value.shape[3]),
            )
        return self.layers[index]

    def sized(self, capacity: int) -> "SlotPool":
        """An empty pool of the same shapes with another capacity. Raises `UsageError` if there is no memory for it."""
        require(capacity >= 1, f"capacity {capacity} must be at least 1")
        pool = SlotPool(capacity)
        try:
            for index, (keys, values) in self.layers.items():
                pool.layers[index] = (
                    keys.new_zeros(capacity, *keys.shape[1:]),
                    values.new_zeros(capacity, *values.shape[1:]),
                )
        except (RuntimeError, MemoryError) as error:
            raise UsageError(
                f"capacity {capacity} needs {capacity * self.bytes_per_slot / 2**30:.1f} GiB of KV, which cannot be "
                "allocated; use a smaller capacity"
            ) from error
        return pool

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return sum(t[0].numel() * t.element_size() for pair in self.layers.values() for t in pair)


class SlotCache(Cache):  # type: ignore[misc]  # transformers has no types
    """The cache that the layers of one pass write to and read from."""

    def __init__(self, pool: SlotPool, plan: AttentionPlan, windows: list[Window]) -> None:
        super().__init__(layers=[])
        self._pool = pool
        self._plan = plan
        self._windows = windows
        self._layer = -1  # the layer that attends next
        self._num_updates = 0
        self._num_reads = 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Note which layer attends next; its keys and values [1, G, N, D] are written when it attends.

        By then, latent attention (DeepSeek, MiniCPM 3) has expanded its latents into keys. The pool holds those keys.
        """
        self._layer = layer_idx
        self._num_updates += 1
        return key_states, value_states

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Write the keys and values of the pass into their slots, then attend per conversation.

        query: [1, H, N, D]; key, value: [1, G, N, D]; sinks: [H]. Returns [1, N, H, D'].
        """
        keys, values = self._pool.layer(self._layer, key, value)
        keys.index_copy_(0, self._plan.write, key[0].transpose(0, 1))
        values.index_copy_(0, self._plan.write, value[0].transpose(0, 1))
        window = self._windows[self._layer]
        self._num_reads += 1
        outputs = []
        for block in self._plan.blocks:
            seen = keys[block.keys].transpose(0, 1)[None], values[block.keys].transpose(0, 1)[None]
            args = query[:, :, block.start : block.stop], *seen, block.masks[window], scale
            is_plain = softcap is None and sinks is None
            outputs.append(_scaled(*args) if is_plain else _capped(*args, softcap, sinks))
        return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)

    def check(self) -> None:
        """Raise `UnsupportedModel` unless each layer that caches also attended here exactly once."""
        if not self._num_updates or self._num_reads != self._num_updates:
            raise UnsupportedModel(
                f"{self._num_updates} of its layers cache keys, but {self._num_reads} attend through the library's "
                "attention interface; the numbers must be equal"
            )


def _scaled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """query: [1, H, Q, D], key and value: [1, G, T, D], mask: [1, 1, Q, T]; returns [1, H, Q, D']."""
    _, num_heads, num_queries, width = query.shape
    repeat = num_heads // key.shape[1]
    if scale is None:
        scale = width**-0.5
    if repeat == 1 or num_queries > _FEW_QUERIES:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=repeat > 1)
    # Treat heads that share keys as additional queries: the keys are read once instead of once per head, which is five
    # times as fast for one query in bf16 on a CPU.
    if mask is not None:
        mask = mask.repeat(1, 1, repeat, 1)
    query = query.reshape(1, key.shape[1], repeat * num_queries, width)
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return out.reshape(1, num_heads, num_queries, value.shape[3])


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """As `_scaled`, with capped scores (Gemma 2) or a learned sink per head (GPT-OSS), which fused kernels lack.

    sinks: [H].
    """
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        sink = sinks.reshape(1, -1, 1, 1).expand(1, -1, query.shape[2], 1)
        scores = torch.cat([scores, sink.to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return weights[..., : key.shape[2]] @ value
