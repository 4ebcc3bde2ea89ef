"""The KV of what comes before the probe, computed once: the base is frozen, so an epoch feeds one token per sample.

B samples, L layers, G key-value heads, T tokens, E entries per head. A segment's KV is one tensor [L, 2, G, T, E]; a
sample's prefix is the segment of its context, shared with the other samples in that context, and its own.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from duologue.errors import UnsupportedModel, UsageError
from duologue.training.layout import Layout
from duologue.training.probe.prefix_attention import Past, PrefixCache, PrefixModel
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
        model: PrefixModel,
        layouts: Sequence[Layout],
        *,
        progress: Progress = silent,
    ) -> None:
        """Compute and keep the KV of `layouts` with `model`, in the model's own precision; it is kept on the CPU.

        Raises:
            UnsupportedModel: the model keeps something else than one key and value per token and layer.
        """
        self._layouts, self._device = list(layouts), model.device
        contexts = sorted({layout.context for layout in layouts if layout.context}, key=len)
        self.num_tokens = num_tokens(layouts)
        self._contexts: dict[tuple[Token, ...], Tensor] = {}
        self._texts: list[Tensor | None] = [None] * len(layouts)
        self._room = torch.empty(0)  # reused by every batch: fresh memory would cost more than what is copied into it
        self._done = 0  # tokens, for the progress
        with torch.no_grad():  # not inference mode: what a gradient flows past may not be made in it
            self._compute_contexts(model, contexts, progress)
            self._compute_texts(model, progress)

    def __len__(self) -> int:
        return len(self._layouts)

    def length(self, index: int) -> int:
        """Tokens before the probe of sample `index`."""
        return self._layouts[index].length

    def past(self, indices: Sequence[int]) -> Past:
        """What comes before the probes of these samples, on the model's device. It holds until the next call."""
        return self._joined([self._segments(index) for index in indices])

    def batches(self, indices: Sequence[int], size: int) -> Iterator[list[int]]:
        """`indices` in batches of `size`, samples of similar length together."""
        ordered = sorted(indices, key=self.length)
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    def _segments(self, index: int) -> tuple[Tensor, ...]:
        context = self._contexts.get(self._layouts[index].context)  # none before the first turn of some templates
        text = self._texts[index]
        return tuple(part for part in (context, text) if part is not None)

    def _joined(self, segments: Sequence[tuple[Tensor, ...]]) -> Past:
        lengths = torch.tensor([sum(part.shape[3] for part in parts) for parts in segments])
        layers, _, groups, _, entries = segments[0][0].shape
        longest = int(lengths.max())
        shape = (layers, 2, len(segments), groups, longest, entries)
        size = layers * 2 * len(segments) * groups * longest * entries
        if self._room.numel() < size or self._room.dtype != segments[0][0].dtype:
            self._room = torch.zeros(size, dtype=segments[0][0].dtype)
        kv = self._room[:size].view(shape)
        for row, parts in enumerate(segments):
            end = longest
            for part in reversed(parts):
                kv[:, :, row, :, end - part.shape[3] : end] = part
                end -= part.shape[3]
            kv[:, :, row, :, :end] = 0  # masked, but what is left there from another batch could be no number
        return Past(kv.to(self._device), lengths.to(self._device))

    def _compute_contexts(self, model: PrefixModel, contexts: list[tuple[Token, ...]], progress: Progress) -> None:
        for batch in _by_tokens(contexts, len):
            for tokens, segment in zip(batch, _extend(model, None, batch), strict=True):
                self._contexts[tokens] = segment
            self._done += sum(map(len, batch))
            progress("prefixes", self._done, self.num_tokens)

    def _compute_texts(self, model: PrefixModel, progress: Progress) -> None:
        order = sorted(
            range(len(self._layouts)), key=lambda i: (len(self._layouts[i].text), len(self._layouts[i].context))
        )
        for with_context in (False, True):
            chosen = [i for i in order if bool(self._layouts[i].context) is with_context]
            for batch in _by_tokens(chosen, lambda i: self._layouts[i].length):
                past = self.past(batch) if with_context else None
                texts = [self._layouts[i].text for i in batch]
                for index, segment in zip(batch, _extend(model, past, texts), strict=True):
                    self._texts[index] = segment
                self._done += sum(map(len, texts))
                progress("prefixes", self._done, self.num_tokens)


def num_tokens(layouts: Sequence[Layout]) -> int:
    """Tokens whose KV is kept: a context counts once."""
    contexts = {layout.context for layout in layouts}
    return sum(map(len, contexts)) + sum(len(layout.text) for layout in layouts)


def shards(layouts: Sequence[Layout], max_tokens: int) -> list[range]:
    """Neighbouring samples in shards whose prefixes have at most `max_tokens` tokens.

    Raises:
        UsageError: one sample alone has more.
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
                f"a sample of {new} tokens alone needs more than the memory that is allowed ({max_tokens} tokens); "
                "allow more with --memory-gb"
            )
        size += new
        contexts.add(layout.context)
    return [*found, range(start, len(layouts))]


def even_shards(layouts: Sequence[Layout], max_tokens: int) -> list[range]:
    """As many shards as `shards` makes, of about the same size: what is trained on last is not a small rest.

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
    """Feed `texts` after `past` and return the KV of each text [L, 2, G, T, E], padding left out."""
    longest = max(map(len, texts))
    tokens = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)  # padding on the right: no real token looks at it
    _, cache = model.run(past, keep=True, input_ids=tokens)
    return [_segment(cache, row, len(text)) for row, text in enumerate(texts)]


def _segment(cache: PrefixCache, row: int, length: int) -> Tensor:
    if len({part.shape for pair in cache.kept for part in pair}) > 1:
        raise UnsupportedModel(
            "the layers of this model keep keys and values of different shapes; its prefixes cannot be cached, so it "
            "cannot be trained with `duologue train rows` or `alora`"
        )
    # stack copies, so the whole batch's cache is not kept alive
    kept = [torch.stack([keys[row, :, :length], values[row, :, :length]]) for keys, values in cache.kept]
    return torch.stack(kept).cpu()


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
