"""The KV of what comes before the probe, computed once: the base is frozen, so an epoch feeds one token per sample.

B samples, L layers, H key-value heads, T tokens, E entries per head. A segment's KV is one tensor [L, 2, H, T, E]; a
sample's prefix is the segment of its context, shared with the other samples in that context, and its own.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from duologue.errors import UnsupportedModel, UsageError
from duologue.training.layout import Layout
from duologue.types import Token

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much is done and of how much."""

_TOKENS_PER_PASS = 4096


def silent(what: str, done: int, total: int) -> None:
    """Progress for nobody."""


class Prefixes:
    """The prefixes of many samples, in memory."""

    def __init__(
        self,
        model: PreTrainedModel,
        layouts: Sequence[Layout],
        *,
        max_bytes: int | None = None,
        progress: Progress = silent,
    ) -> None:
        """Compute and keep the KV of `layouts` with `model`, in the model's own precision.

        Raises:
            UsageError: it would need more than `max_bytes`.
            UnsupportedModel: the model keeps something else than one key and value per token and layer.
        """
        self._layouts = list(layouts)
        contexts = sorted({layout.context for layout in layouts if layout.context}, key=len)
        self.num_tokens = sum(map(len, contexts)) + sum(len(layout.text) for layout in layouts)
        needed = self.num_tokens * kv_bytes_per_token(model)  # raises for a model that cannot be trained so
        if max_bytes is not None and needed > max_bytes:
            raise UsageError(
                f"the prefixes of {len(layouts)} samples need {needed / 2**30:.1f} GB and "
                f"{max_bytes / 2**30:.1f} GB are allowed; "
                "use fewer samples (--samples), shorter ones, or allow more (--memory-gb)"
            )
        self._contexts: dict[tuple[Token, ...], Tensor] = {}
        self._texts: list[Tensor | None] = [None] * len(layouts)
        self._done = 0  # tokens, for the progress
        self._compute_contexts(model, contexts, progress)
        self._compute_texts(model, progress)

    def __len__(self) -> int:
        return len(self._layouts)

    def length(self, index: int) -> int:
        """Tokens before the probe of sample `index`."""
        return self._layouts[index].length

    def cache(self, indices: Sequence[int], dtype: torch.dtype) -> tuple[DynamicCache, Tensor, Tensor]:
        """A cache to continue these samples from: the cache, its mask [B, T] and the lengths [B]."""
        segments = []
        for index in indices:
            text = self._texts[index]
            assert text is not None
            context = self._contexts.get(self._layouts[index].context)  # none before the first turn of some templates
            segments.append((text,) if context is None else (context, text))
        return left_padded(segments, dtype)

    def batches(self, indices: Sequence[int], size: int) -> Iterator[list[int]]:
        """`indices` in batches of `size`, samples of similar length together."""
        ordered = sorted(indices, key=self.length)
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    def _compute_contexts(self, model: PreTrainedModel, contexts: list[tuple[Token, ...]], progress: Progress) -> None:
        for batch in _by_tokens(contexts, len):
            for tokens, segment in zip(batch, _extend(model, None, batch), strict=True):
                self._contexts[tokens] = segment
            self._done += sum(map(len, batch))
            progress("prefixes", self._done, self.num_tokens)

    def _compute_texts(self, model: PreTrainedModel, progress: Progress) -> None:
        order = sorted(
            range(len(self._layouts)), key=lambda i: (len(self._layouts[i].text), len(self._layouts[i].context))
        )
        for with_context in (False, True):
            chosen = [i for i in order if bool(self._layouts[i].context) is with_context]
            for batch in _by_tokens(chosen, lambda i: self._layouts[i].length):
                shared = [(self._contexts[self._layouts[i].context],) for i in batch] if with_context else None
                past = left_padded(shared, model.dtype) if shared else None
                texts = [self._layouts[i].text for i in batch]
                for index, segment in zip(batch, _extend(model, past, texts), strict=True):
                    self._texts[index] = segment
                self._done += sum(map(len, texts))
                progress("prefixes", self._done, self.num_tokens)


def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of one token's keys and values over all layers, measured on one token."""
    with torch.inference_mode():
        output = decoder(model)(torch.zeros(1, 1, dtype=torch.long), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    return int(_segment(cache, 0, 0, 1).numel() * model.dtype.itemsize)


def decoder(model: PreTrainedModel) -> nn.Module:
    """The model without its output matrix: ids or embeddings to normed hidden states."""
    found: nn.Module = model.base_model
    return found


def left_padded(segments: Sequence[tuple[Tensor, ...]], dtype: torch.dtype) -> tuple[DynamicCache, Tensor, Tensor]:
    """Join each sample's segments, pad on the left to one length (new tokens then follow directly, as windows need).

    Returns the cache, the mask [B, T] (1 where there is a token) and the lengths [B].
    """
    lengths = torch.tensor([sum(part.shape[3] for part in parts) for parts in segments])
    num_layers, _, heads, _, entries = segments[0][0].shape
    longest = int(lengths.max())
    joined = torch.zeros(num_layers, 2, len(segments), heads, longest, entries, dtype=dtype)
    for row, parts in enumerate(segments):
        end = longest
        for part in reversed(parts):
            joined[:, :, row, :, end - part.shape[3] : end] = part
            end -= part.shape[3]
    cache = DynamicCache()
    for layer in range(num_layers):
        cache.update(joined[layer, 0], joined[layer, 1], layer)
    mask = (torch.arange(longest)[None] >= longest - lengths[:, None]).long()
    return cache, mask, lengths


def _extend(
    model: PreTrainedModel, past: tuple[DynamicCache, Tensor, Tensor] | None, texts: Sequence[tuple[Token, ...]]
) -> list[Tensor]:
    """Feed `texts` after `past` and return the KV of each text [L, 2, H, T, E], padding left out."""
    lengths = [len(text) for text in texts]
    longest = max(lengths)
    tokens = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    cache, before, start = past or (
        DynamicCache(),
        torch.zeros(len(texts), 0, dtype=torch.long),
        torch.zeros(len(texts)),
    )
    positions = (start.long()[:, None] + torch.arange(longest)[None]).clamp_min(0)
    with torch.inference_mode():
        output = decoder(model)(
            tokens,
            attention_mask=torch.cat([before, mask], 1),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
    offset = before.shape[1]
    return [_segment(output.past_key_values, row, offset, offset + length) for row, length in enumerate(lengths)]


def _segment(cache: DynamicCache | None, row: int, start: int, end: int) -> Tensor:
    layers = getattr(cache, "layers", None)
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise UnsupportedModel(
            f"this model keeps {type(cache).__name__}, not one key and value per token and layer; its prefixes cannot "
            "be cached, so it cannot be trained with `duologue train rows`"
        )
    if len({layer.keys.shape for layer in layers} | {layer.values.shape for layer in layers}) > 1:
        raise UnsupportedModel(
            "the layers of this model keep keys or values of different shapes; that is not supported"
        )
    # stack copies, so the whole batch's cache is not kept alive
    stacked = torch.stack(
        [torch.stack([layer.keys[row, :, start:end], layer.values[row, :, start:end]]) for layer in layers]
    )
    return stacked.detach()


def _by_tokens(items: Sequence[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """Neighbouring `items` in batches whose padded size stays bounded."""
    batch: list[T] = []
    longest = 0
    for item in items:
        longest = max(longest, length(item))
        if batch and longest * (len(batch) + 1) > _TOKENS_PER_PASS:
            yield batch
            batch, longest = [], length(item)
        batch.append(item)
    if batch:
        yield batch
