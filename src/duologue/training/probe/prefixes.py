"""The KV of everything before the probe, computed once: the base is frozen, so an epoch only feeds the probe.

New tokens attend over cached prefixes with gradients for the new tokens only, through the transformers attention
interface. The KV of a segment is one tensor [L, 2, G, T, E]; the prefix of a sample is the segment of its context,
which samples in the same context share, and the segment of its own text.

B samples, N new tokens of each, T tokens of the longest prefix, L layers, H query heads, G key-value heads, E entries
per head, D hidden size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from duologue.backends.torch.huggingface import Window, attention_through, configs_of, layer_windows
from duologue.data.progress import StageProgress, silent
from duologue.errors import UnsupportedModel, UsageError
from duologue.training.layout import Layout
from duologue.training.probe.kept import KeptBatches
from duologue.training.tensors import batches_by_length, batches_by_tokens, padded
from duologue.types import Token

_TOKENS_PER_PASS = 4096
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

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, softcap: float | None, sinks: Any
    ) -> Tensor:
        """See `AttentionCache.attend`. Raises `UnsupportedModel` for sinks."""
        if sinks is not None:
            raise UnsupportedModel("the model adds a sink to its attention scores and cannot be trained")
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

    def run(self, past: Past | None, *, keep: bool = False, **inputs: Tensor) -> tuple[Tensor, PrefixCache]:
        """Feed `input_ids` [B, N] or `inputs_embeds` [B, N, D] after `past`; returns final hidden states [B, N, D].

        Inputs may be on any device; `past` and the result are on the model's.
        """
        cache = PrefixCache(past, self.windows, keep=keep)
        fed = {name: value.to(self.model.device) for name, value in inputs.items()}
        positions = torch.arange(next(iter(inputs.values())).shape[1], device=self.model.device)[None]
        if past is not None:
            positions = positions + past.lengths[:, None]
        with attention_through(configs_of(self.model), cache):
            output = self.model.base_model(**fed, position_ids=positions, past_key_values=cache, use_cache=True)
        cache.check()
        return output.last_hidden_state, cache


class Prefixes:
    """The prefixes of many samples, in memory."""

    def __init__(
        self,
        model: PrefixModel,
        layouts: Sequence[Layout],
        *,
        kept: KeptBatches | None = None,
        name: str = "prefixes",
        progress: StageProgress = silent,
    ) -> None:
        """Compute the KV of `layouts` in the model's own precision and keep it on the CPU.

        Args:
            kept: batches on disk, which are read instead of being computed; those that are missing are added.
            name: what they are called in `progress`.

        Raises:
            UnsupportedModel: the model caches something other than one key and value per token and layer.
        """
        self._layouts, self._device = list(layouts), model.model.device
        self.num_tokens = num_tokens(layouts)
        self._contexts: dict[tuple[Token, ...], Tensor] = {}
        self._texts: dict[int, Tensor] = {}
        self._buffer = torch.empty(0)  # reused by every batch: allocating would cost more than copying
        self._done = 0  # tokens, for the progress
        self._kept, self._num_batches, self._name = kept, 0, name
        with torch.no_grad():  # not inference mode: its tensors cannot take part in a backward pass
            self._compute(model, progress)

    def __len__(self) -> int:
        return len(self._layouts)

    def past(self, indices: Sequence[int]) -> Past:
        """The prefixes of these samples, kv [L, 2, B, G, T, E], on the model's device; valid until the next call."""
        # each [L, 2, G, T, E]; some templates have no context before the first turn
        found = ((self._contexts.get(self._layouts[index].context), self._texts.get(index)) for index in indices)
        segments = [[part for part in parts if part is not None] for parts in found]
        lengths = torch.tensor([sum(part.shape[3] for part in parts) for parts in segments])
        layers, _, groups, _, entries = segments[0][0].shape
        longest = int(lengths.max())
        shape = (layers, 2, len(segments), groups, longest, entries)
        size = math.prod(shape)
        if self._buffer.numel() < size or self._buffer.dtype != segments[0][0].dtype:
            self._buffer = torch.zeros(size, dtype=segments[0][0].dtype)
        kv = self._buffer[:size].view(shape)
        for row, parts in enumerate(segments):
            end = longest
            for part in reversed(parts):
                kv[:, :, row, :, end - part.shape[3] : end] = part
                end -= part.shape[3]
            kv[:, :, row, :, :end] = 0  # masked, but an earlier batch may have left NaN there
        return Past(kv.to(self._device), lengths.to(self._device))

    def batches(self, size: int) -> list[list[int]]:
        """The indices of all samples in batches of `size`, samples of similar length together."""
        return batches_by_length([layout.length for layout in self._layouts], size)

    def _compute(self, model: PrefixModel, progress: StageProgress) -> None:
        """Compute the contexts and the texts, in batches of similar length."""
        layouts = self._layouts
        contexts = sorted({layout.context for layout in layouts if layout.context}, key=len)
        for batch in batches_by_tokens(contexts, len, _TOKENS_PER_PASS):
            self._contexts |= zip(batch, self._extended(model, None, batch), strict=True)
            self._report(batch, progress)
        order = sorted(range(len(layouts)), key=lambda i: (len(layouts[i].text), len(layouts[i].context)))
        for with_context in (False, True):
            chosen = [i for i in order if bool(layouts[i].context) is with_context]
            for indices in batches_by_tokens(chosen, lambda i: layouts[i].length, _TOKENS_PER_PASS):
                texts = [layouts[i].text for i in indices]
                behind = indices if with_context else None
                self._texts |= zip(indices, self._extended(model, behind, texts), strict=True)
                self._report(texts, progress)

    def _extended(
        self, model: PrefixModel, behind: Sequence[int] | None, texts: Sequence[tuple[Token, ...]]
    ) -> list[Tensor]:
        """The KV of `texts` behind the prefixes of the samples `behind`: [L, 2, G, T, E] each."""
        number, self._num_batches = self._num_batches, self._num_batches + 1
        found = None if self._kept is None else self._kept.read(number, [len(text) for text in texts])
        if found is None:
            found = _extend(model, None if behind is None else self.past(behind), texts)
            if self._kept is not None:
                self._kept.write(number, found)
        return found

    def _report(self, computed: Sequence[tuple[Token, ...]], progress: StageProgress) -> None:
        self._done += sum(map(len, computed))
        progress(self._name, self._done, self.num_tokens)


def num_tokens(layouts: Sequence[Layout]) -> int:
    """Number of tokens whose KV is kept: a shared context counts once."""
    contexts = {layout.context for layout in layouts}
    return sum(map(len, contexts)) + sum(len(layout.text) for layout in layouts)


def shards(layouts: Sequence[Layout], max_tokens: int) -> list[range]:
    """Neighbouring samples in shards whose prefixes have at most `max_tokens` tokens.

    Raises:
        UsageError: a single sample has more.
    """
    found, start, size = [], 0, 0
    contexts: set[tuple[Token, ...]] = set()
    for index, layout in enumerate(layouts):
        new = len(layout.text) + (0 if layout.context in contexts else len(layout.context))
        if size + new > max_tokens and index > start:
            found.append(range(start, index))
            start, size, contexts = index, 0, set()
            new = layout.length
        if new > max_tokens:
            raise UsageError(
                f"a single sample of {new} tokens does not fit into the memory for prefixes ({max_tokens} tokens); "
                "allow more with --memory-gb"
            )
        size += new
        contexts.add(layout.context)
    return [*found, range(start, len(layouts))]


def even_shards(layouts: Sequence[Layout], max_tokens: int) -> list[range]:
    """As few shards as `shards` makes, but of similar size, so that training does not end with a small remainder.

    Raises:
        UsageError: see `shards`.
    """
    full = shards(layouts, max_tokens)
    mean = sum(num_tokens([layouts[i] for i in part]) for part in full) / len(full)
    longest = max((layout.length for layout in layouts), default=0)
    for slack in (1.02, 1.05, 1.1):  # shards end where a sample does, and the last one takes what the others leave
        even = shards(layouts, min(max_tokens, max(longest, int(mean * slack))))
        if len(even) == len(full):
            return even
    return full


def kv_bytes_per_token(model: PrefixModel) -> int:
    """Bytes of one token's keys and values over all layers, measured on one token."""
    with torch.inference_mode():
        _, cache = model.run(None, keep=True, input_ids=torch.zeros(1, 1, dtype=torch.long))
    return int(_segment(cache, 0, 1).numel() * model.model.dtype.itemsize)


def _extend(model: PrefixModel, past: Past | None, texts: Sequence[tuple[Token, ...]]) -> list[Tensor]:
    """Feed `texts` after `past` and return the KV of each text [L, 2, G, T, E] without padding."""
    _, cache = model.run(past, keep=True, input_ids=padded(texts)[0])
    return [_segment(cache, row, len(text)) for row, text in enumerate(texts)]


def _segment(cache: PrefixCache, row: int, length: int) -> Tensor:
    """The KV [L, 2, G, T, E] of the first `length` new tokens in one row of a batch."""
    if len({part.shape for pair in cache.kept for part in pair}) > 1:
        raise UnsupportedModel(
            "the layers of this model cache keys and values of different shapes, so its prefixes cannot be cached and "
            "`duologue train rows` and `alora` cannot train it"
        )
    # stack copies, so the cache of the whole batch is not kept alive
    return torch.stack(
        [torch.stack([keys[row, :, :length], values[row, :, :length]]) for keys, values in cache.kept]
    ).cpu()
