"""Any Hugging Face causal language model with a KV pool that sequences share: fork copies a list, never KV.

Letters of shapes: N tokens of a pass, H query heads, G key/value heads, D head width, C slots of the pool,
T slots that one row of attention looks at.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache
from transformers.modeling_utils import AttentionInterface

from duologue.backends.huggingface import CausalModel
from duologue.backends.rows import Rows
from duologue.backends.slots import IntArray, SlotTable
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage, check_batch
from duologue.errors import CacheFull, ContextOverflow, UnsupportedModel, UsageError
from duologue.types import Seq, Token

Tensor = torch.Tensor
Window = int | None  # tokens a layer looks back, its own included; None for all

_ATTENTION = "duologue_slots"
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # relative; half precision rounds far more
_HALF_TOLERANCE = 0.1
_SPARSE = 2  # a row reads its range of slots in place if it is at most this many times what it looks at
_MASKED = torch.finfo(torch.bfloat16).min  # finite, so that nothing becomes NaN; exp of it is exactly 0


class TorchBackend(Backend):
    """A preallocated slot pool per layer, a slot list per sequence, and one model forward per `forward`.

    All tokens of a pass are fed as one row of N tokens. Only attention knows that they belong to different sequences:
    it runs once per *conversation* (sequences that share slots by forking), over that conversation's slots, under a
    mask made from the slot lists. So nothing is padded, no KV is copied, and a conversation costs the same whoever
    else is in the pass. Sliding windows are applied in the mask; nothing is evicted, so every rollback is possible.

    The model's attention is replaced for the time of a pass by way of the library's attention interface, and the model
    can be used for anything else between passes. It is set to evaluation mode.

    At construction two forked channels and a stranger are run against plain forwards of the same tokens; a model that
    answers otherwise is refused. Runs on the model's device; devices other than the CPU are not tested.

    Raises:
        UnsupportedModel: recurrent or linear attention, an encoder, or a model whose attention cannot be replaced.
        AdapterMismatch: the rows have another width than the model.
        UsageError: a limit that makes no sense, or a pool larger than the memory.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: Rows | None = None,
        capacity: int,
        max_seqs: int = 16,
        context_length: int | None = None,
        label: str | None = None,
        weights: str | None = None,
    ) -> None:
        self._causal = CausalModel(model, rows)
        self._windows = _windows(self._causal)
        self._slots = SlotTable(capacity, max_seqs)
        self._pool = _verified_pool(self._causal, self._windows).sized(capacity)
        self._info = BackendInfo(
            name="torch",
            model=label or self._causal.label,
            weights=weights or self._causal.weights,
            vocab_size=self._causal.vocab_size,
            num_added=self._causal.num_added,
            context_length=self._causal.context_length(context_length),
            capacity=capacity,
            max_seqs=max_seqs,
            kv_bytes_per_token=self._pool.bytes_per_slot,
            can_truncate=True,
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def model(self) -> Any:
        """The Hugging Face model; not to be used while a pass runs."""
        return self._causal.model

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._slots.fork(parent, length)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        check_batch(self._info, batch)
        self._causal.check_ids(batch)
        for extend in batch:
            length = self._slots.length(extend.seq) + len(extend.tokens)
            if length > self._info.context_length:
                raise ContextOverflow(
                    f"sequence {extend.seq} would have {length} tokens; the context holds {self._info.context_length}"
                )
        return _forward(self._causal, self._windows, self._slots, self._pool, batch)

    def truncate(self, seq: Seq, length: int) -> None:
        self._slots.truncate(seq, length)

    def free(self, seq: Seq) -> None:
        self._slots.free(seq)

    def length(self, seq: Seq) -> int:
        return self._slots.length(seq)

    def usage(self) -> Usage:
        entries = self._slots.num_used
        return Usage(self._slots.num_seqs, entries, entries * self._info.kv_bytes_per_token)

    def close(self) -> None:
        self._pool.layers.clear()


def _forward(
    causal: CausalModel, windows: list[Window], slots: SlotTable, pool: "_Pool", batch: Sequence[Extend]
) -> list[Step]:
    """Plan, run, read; if anything fails the slots are as before."""
    before = [slots.length(extend.seq) for extend in batch]
    slots.extend([(extend.seq, len(extend.tokens)) for extend in batch])
    try:
        plan, order = _plan(slots, batch, causal, set(windows))
        ordered = [batch[index] for index in order]
        looked = [index for index, extend in enumerate(ordered) if causal.needs_logits(extend)]
        lasts = np.cumsum([len(extend.tokens) for extend in ordered]) - 1
        cache = _SlotCache(pool, plan, windows)
        with _slot_attention(causal.model, cache):
            logits, hidden = causal.run(
                [token for extend in ordered for token in extend.tokens],
                [int(lasts[index]) for index in looked],
                position_ids=plan.positions,
                past_key_values=cache,
                use_cache=True,
            )
        cache.check()
        at = {index: logits[row] for row, index in enumerate(looked)}
        steps = {
            order[index]: causal.read(extend, at.get(index), hidden[int(lasts[index])])
            for index, extend in enumerate(ordered)
        }
    except BaseException as error:
        for extend, length in zip(batch, before, strict=True):
            slots.truncate(extend.seq, length)
        if isinstance(error, torch.OutOfMemoryError):
            raise CacheFull(f"no memory for a pass of {sum(len(e.tokens) for e in batch)} tokens: {error}") from error
        raise
    return [steps[index] for index in range(len(batch))]


# --- What a pass looks at ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """The attention of one conversation."""

    start: int  # its queries are start … stop - 1 of the pass
    stop: int
    keys: slice | Tensor  # its slots: a range, read in place, or [T] numbers to gather
    masks: dict[Window, Tensor | None]  # [1, 1, stop - start, T], added to the scores; None if all is visible


@dataclass(frozen=True, slots=True)
class _Plan:
    """One pass."""

    rows: list[_Row]
    write: Tensor  # [N], slot of each token
    positions: Tensor  # [1, N]


def _plan(
    slots: SlotTable, batch: Sequence[Extend], causal: CausalModel, windows: set[Window]
) -> tuple[_Plan, list[int]]:
    """The plan of a pass whose slots are given out already, and the order in which the batch is fed."""
    conversations: dict[int, list[int]] = {}
    for index, extend in enumerate(batch):
        conversations.setdefault(slots.conversation(extend.seq), []).append(index)
    order = [index for members in conversations.values() for index in members]
    rows, start = [], 0
    for members in conversations.values():
        held = [(slots.slots(batch[index].seq), len(batch[index].tokens)) for index in members]
        rows.append(_row(slots.positions, held, start, windows, causal))
        start = rows[-1].stop
    write = np.concatenate([slots.slots(batch[index].seq)[-len(batch[index].tokens) :] for index in order])
    positions = torch.from_numpy(slots.positions[write])[None]
    return _Plan(rows, torch.from_numpy(write).to(causal.device), positions.to(causal.device)), order


def _row(
    positions: IntArray, held: list[tuple[IntArray, int]], start: int, windows: set[Window], causal: CausalModel
) -> _Row:
    """One conversation. held: for each of its sequences in the pass, all slots and how many of them are new."""
    low = min(int(own.min()) for own, _ in held)
    high = max(int(own.max()) for own, _ in held) + 1
    if high - low <= _SPARSE * max(len(own) for own, _ in held) + 64:
        columns: IntArray = np.arange(low, high)
        keys: slice | Tensor = slice(low, high)
    else:
        columns = np.unique(np.concatenate([own for own, _ in held]))
        keys = torch.from_numpy(columns).to(causal.device)
    visible, distance = [], []  # each [Q, T]
    for own, num_new in held:
        is_own = np.zeros(len(columns), dtype=bool)
        is_own[own - low if isinstance(keys, slice) else np.searchsorted(columns, own)] = True
        behind = positions[own[-num_new:], None] - positions[columns][None]
        visible.append(is_own[None] & (behind >= 0))
        distance.append(behind)
    seen, behind = np.concatenate(visible), np.concatenate(distance)
    masks = {window: _mask(seen if window is None else seen & (behind < window), causal) for window in windows}
    return _Row(start, start + len(seen), keys, masks)


def _mask(visible: Any, causal: CausalModel) -> Tensor | None:
    if visible.all():
        return None
    mask = torch.from_numpy(np.where(visible, np.float32(0), np.float32(_MASKED)))
    return mask[None, None].to(causal.device, causal.dtype)


# --- Pool, cache and attention ----------------------------------------------------------------------------------------


class _Pool:
    """Keys and values of every layer: two tensors [C, G, D] each, whose widths may differ. Made at the first write."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The tensors of one layer; key and value, [1, G, N, D], give the shapes."""
        if index not in self.layers:
            self.layers[index] = (_zeros(self.capacity, key), _zeros(self.capacity, value))
        return self.layers[index]

    def sized(self, capacity: int) -> "_Pool":
        """An empty pool of these shapes with another capacity. Raises `UsageError` if there is no memory for it."""
        pool = _Pool(capacity)
        try:
            for index, (keys, values) in self.layers.items():
                pool.layers[index] = (
                    keys.new_zeros(capacity, *keys.shape[1:]),
                    values.new_zeros(capacity, *values.shape[1:]),
                )
        except (RuntimeError, MemoryError) as error:
            raise UsageError(
                f"capacity {capacity} needs {capacity * self.bytes_per_slot / 2**30:.1f} GiB of KV, which cannot be "
                "had; ask for a smaller capacity"
            ) from error
        return pool

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return sum(t[0].numel() * t.element_size() for pair in self.layers.values() for t in pair)


def _zeros(capacity: int, like: Tensor) -> Tensor:
    return like.new_zeros(capacity, like.shape[1], like.shape[3])


class _SlotCache(Cache):  # type: ignore[misc]  # transformers has no types
    """What the layers of one pass write to and read from."""

    def __init__(self, pool: _Pool, plan: _Plan, windows: list[Window]) -> None:
        super().__init__(layers=[])
        self._pool = pool
        self._plan = plan
        self._windows = windows
        self._layer = -1  # the layer that attends next
        self._num_updates = 0
        self._num_reads = 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Note which layer attends next; what it caches is written when it attends.

        By then latent attention (DeepSeek, MiniCPM 3) has made keys of its latents: these are what the pool holds.
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
        """Write the keys and values of the pass, [1, G, N, D], into their slots; let each conversation see its own.

        query: [1, H, N, D]; returns [1, N, H, D'].
        """
        keys, values = self._pool.layer(self._layer, key, value)
        keys.index_copy_(0, self._plan.write, key[0].transpose(0, 1))
        values.index_copy_(0, self._plan.write, value[0].transpose(0, 1))
        window = self._windows[self._layer]
        self._num_reads += 1
        rows = []
        for row in self._plan.rows:
            seen = keys[row.keys].transpose(0, 1)[None], values[row.keys].transpose(0, 1)[None]
            args = query[:, :, row.start : row.stop], *seen, row.masks[window], scale
            plain = softcap is None and sinks is None
            rows.append(_scaled(*args) if plain else _capped(*args, softcap, sinks))
        return torch.cat([row.transpose(1, 2) for row in rows], dim=1)

    def check(self) -> None:
        """Raise `UnsupportedModel` unless every layer that caches also attended here, once."""
        if not self._num_updates or self._num_reads != self._num_updates:
            raise UnsupportedModel(
                f"{self._num_updates} of its layers cache keys and {self._num_reads} attend through the library's "
                "attention interface; these must be the same"
            )


def _scaled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """query: [1, H, Q, D], key and value: [1, G, T, D], mask: [1, 1, Q, T]; returns [1, H, Q, D']."""
    num_heads, num_groups = query.shape[1], key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=num_heads != num_groups
    )


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The same with capped scores (Gemma 2) or a learned sink per head (GPT-OSS), which the fused kernels lack."""
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
    """Stands in for the model's attention. Keys come from the pool: those that are passed are of this pass only."""
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModel("the model adds a bias for distance to its attention scores, which this backend lacks")
    cache: _SlotCache = _running.cache
    return cache.attend(query, key, value, scaling, kwargs.get("softcap"), kwargs.get("s_aux")), None


@contextmanager
def _slot_attention(model: Any, cache: _SlotCache) -> Iterator[None]:
    """Let the model's layers attend through `cache`, and give them back as they were."""
    AttentionInterface.register(_ATTENTION, _attend)
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [config._attn_implementation_internal for config in configs]
    _running.cache = cache
    try:
        for config in configs:
            # No mask function goes by this name, so the library makes no masks of its own.
            config._attn_implementation_internal = _ATTENTION
        yield
    finally:
        _running.cache = None
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation


# --- What the model is, and the proof of it ---------------------------------------------------------------------------


def _windows(causal: CausalModel) -> list[Window]:
    """How far each layer looks back. Raises `UnsupportedModel` for layers that are not attention."""
    if getattr(causal.model, "_is_stateful", False):
        raise UnsupportedModel(_refusal(causal, "it is recurrent: its state cannot be rolled back or shared"))
    window = getattr(causal.config, "sliding_window", None)
    kinds = getattr(causal.config, "layer_types", None) or []
    kinds = kinds or ["sliding_attention" if window else "full_attention"] * causal.config.num_hidden_layers
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedModel(_refusal(causal, f"it has layers of kind {', '.join(unknown)}"))
    return [int(window) if window and kind == "sliding_attention" else None for kind in kinds]


def _verified_pool(causal: CausalModel, windows: list[Window]) -> _Pool:
    """Run two channels and a stranger, compare with plain forwards, and return the (small) pool that was used."""
    shortest = min((window for window in windows if window is not None), default=0)
    length = 12 + (shortest if shortest <= 64 else 0)  # beyond the window, where that is cheap to see
    ids = [(7919 * index + 13) % causal.vocab_size for index in range(length + 24)]
    prefix, answer, words, stranger = ids[:length], ids[length : length + 4], ids[length + 6 : length + 11], ids[-9:]
    slots, pool = SlotTable(2 * length + 64, 3), _Pool(2 * length + 64)
    output, other = slots.fork(None), slots.fork(None)
    seen: list[Tensor] = []
    try:
        _look(causal, windows, slots, pool, [(output, prefix[:-2])])
        _look(causal, windows, slots, pool, [(output, [*prefix[-2:], *words]), (other, stranger[:4])])
        slots.truncate(output, length)
        heard = slots.fork(output, length - 3)
        seen = _look(causal, windows, slots, pool, [(output, answer), (other, stranger[4:]), (heard, words)])
        plain = [
            causal.run(tokens, [len(tokens) - 1], use_cache=False)[0][0]
            for tokens in (prefix + answer, stranger, prefix[:-3] + words)
        ]
    except UnsupportedModel as error:
        raise UnsupportedModel(_refusal(causal, str(error))) from error
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
        raise UnsupportedModel(_refusal(causal, f"a trial pass failed ({type(error).__name__}: {error})")) from error
    worst = max(_difference(fast, slow) for fast, slow in zip(seen, plain, strict=True))
    if not worst <= _TOLERANCE.get(causal.dtype, _HALF_TOLERANCE):
        raise UnsupportedModel(
            _refusal(causal, f"two channels in one pass gave other logits than each alone (relative error {worst:.2g})")
        )
    return pool


def _look(
    causal: CausalModel, windows: list[Window], slots: SlotTable, pool: _Pool, fed: list[tuple[Seq, list[Token]]]
) -> list[Tensor]:
    """One pass of the trial; the logits at the last token of each sequence."""
    batch = [Extend(seq, tuple(tokens)) for seq, tokens in fed]
    slots.extend([(extend.seq, len(extend.tokens)) for extend in batch])
    plan, order = _plan(slots, batch, causal, set(windows))
    cache = _SlotCache(pool, plan, windows)
    lasts = np.cumsum([len(batch[index].tokens) for index in order]) - 1
    with _slot_attention(causal.model, cache):
        logits, _ = causal.run(
            [token for index in order for token in batch[index].tokens],
            [int(last) for last in lasts],
            position_ids=plan.positions,
            past_key_values=cache,
            use_cache=True,
        )
    cache.check()
    return [logits[order.index(index)] for index in range(len(batch))]


def _difference(fast: Tensor, slow: Tensor) -> float:
    """Length of the difference of two logit vectors, relative to how much the logits vary."""
    fast, slow = fast.float(), slow.float()
    spread = (slow - slow.mean()).norm().clamp_min(1e-6)
    return float((fast - slow).norm() / spread)


def _refusal(causal: CausalModel, reason: str) -> str:
    return (
        f"{causal.label} ({causal.model.config.model_type}) cannot run on the torch backend: {reason}. "
        "The reference backend runs it, slowly: ReferenceBackend(model), or --backend reference"
    )
