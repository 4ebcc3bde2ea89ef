"""The KV of everything before the probe, computed once: the base is frozen, so an epoch only feeds the probe.

B samples, L layers, G key-value heads, T tokens, E entries per head. The KV of a segment is one tensor
[L, 2, G, T, E]; the prefix of a sample is the segment of its context, which samples in the same context share, and the
segment of its own text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from duologue.data.progress import StageProgress, silent
from duologue.errors import UnsupportedModel, UsageError
from duologue.training.layout import Layout
from duologue.training.probe.prefix_attention import Past, PrefixCache, PrefixModel
from duologue.training.tensors import batches_by_length, batches_by_tokens, padded
from duologue.types import Token

_TOKENS_PER_PASS = 4096


class Prefixes:
    """The prefixes of many samples, in memory."""

    def __init__(self, model: PrefixModel, layouts: Sequence[Layout], *, progress: StageProgress = silent) -> None:
        """Compute the KV of `layouts` in the model's own precision and keep it on the CPU.

        Raises:
            UnsupportedModel: the model caches something other than one key and value per token and layer.
        """
        self._layouts, self._device = list(layouts), model.device
        self.num_tokens = num_tokens(layouts)
        self._contexts: dict[tuple[Token, ...], Tensor] = {}
        self._texts: dict[int, Tensor] = {}
        self._buffer = torch.empty(0)  # reused by every batch: allocating would cost more than copying
        self._done = 0  # tokens, for the progress
        with torch.no_grad():  # not inference mode: its tensors cannot take part in a backward pass
            self._compute_contexts(model, progress)
            self._compute_texts(model, progress)

    def __len__(self) -> int:
        return len(self._layouts)

    def past(self, indices: Sequence[int]) -> Past:
        """The prefixes of these samples, kv [L, 2, B, G, T, E], on the model's device; valid until the next call."""
        return self._joined([self._segments(index) for index in indices])

    def batches(self, size: int) -> list[list[int]]:
        """The indices of all samples in batches of `size`, samples of similar length together."""
        return batches_by_length([layout.length for layout in self._layouts], size)

    def _segments(self, index: int) -> tuple[Tensor, ...]:
        """The segments of a sample, each [L, 2, G, T, E]; some templates have no context before the first turn."""
        context, text = self._contexts.get(self._layouts[index].context), self._texts.get(index)
        return tuple(part for part in (context, text) if part is not None)

    def _joined(self, segments: Sequence[tuple[Tensor, ...]]) -> Past:
        """Segments of each sample, each [L, 2, G, T, E], as one tensor [L, 2, B, G, T, E] padded on the left."""
        lengths = torch.tensor([sum(part.shape[3] for part in parts) for parts in segments])
        layers, _, groups, _, entries = segments[0][0].shape
        longest = int(lengths.max())
        shape = (layers, 2, len(segments), groups, longest, entries)
        size = layers * 2 * len(segments) * groups * longest * entries
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

    def _compute_contexts(self, model: PrefixModel, progress: StageProgress) -> None:
        contexts = sorted({layout.context for layout in self._layouts if layout.context}, key=len)
        for batch in batches_by_tokens(contexts, len, _TOKENS_PER_PASS):
            self._contexts |= zip(batch, _extend(model, None, batch), strict=True)
            self._report(batch, progress)

    def _compute_texts(self, model: PrefixModel, progress: StageProgress) -> None:
        layouts = self._layouts
        order = sorted(range(len(layouts)), key=lambda i: (len(layouts[i].text), len(layouts[i].context)))
        for with_context in (False, True):
            chosen = [i for i in order if bool(layouts[i].context) is with_context]
            for batch in batches_by_tokens(chosen, lambda i: layouts[i].length, _TOKENS_PER_PASS):
                texts = [layouts[i].text for i in batch]
                past = self.past(batch) if with_context else None
                self._texts |= zip(batch, _extend(model, past, texts), strict=True)
                self._report(texts, progress)

    def _report(self, computed: Sequence[tuple[Token, ...]], progress: StageProgress) -> None:
        self._done += sum(map(len, computed))
        progress("prefixes", self._done, self.num_tokens)


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
    kept = [torch.stack([keys[row, :, :length], values[row, :, :length]]) for keys, values in cache.kept]
    return torch.stack(kept).cpu()
