"""Any Hugging Face causal language model with a KV pool that sequences share. A fork copies a list, never KV."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from duologue.backends.lora import Lora
from duologue.backends.rows import AdapterRows, check_added_ids
from duologue.backends.slots import SlotTable
from duologue.backends.torch.huggingface import CausalModel, Window, attention_through, layer_windows
from duologue.backends.torch.slot_attention import SlotCache, SlotPool, plan_attention
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage, check_batch
from duologue.errors import CacheFull, UnsupportedModel
from duologue.types import Seq, Token

Tensor = torch.Tensor

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # relative; half precision rounds far more
_HALF_TOLERANCE = 0.1
_STEPS = (7919, 6007, 4999)  # between the token ids of the trials


class TorchBackend(Backend):
    """A preallocated slot pool per layer, a slot list per sequence, and one model forward per `forward`.

    All tokens of a pass are fed as one row of N tokens. Only attention knows that they belong to different sequences:
    it runs once per *conversation* (a set of sequences that share slots by forking), over the slots of that
    conversation, under a mask built from the slot lists. Nothing is padded, no KV is copied, and the cost of a
    conversation does not depend on the others in the pass. Sliding windows are applied in the mask and nothing is
    evicted, so every rollback is possible.

    During a pass, the model's attention is replaced through the library's attention interface; between passes the model
    can be used for anything else. The constructor sets it to evaluation mode. It also runs two forked channels and an
    unrelated sequence, compares them with plain forwards of the same tokens, and refuses a model whose results differ.
    The backend runs on the model's device; devices other than the CPU are untested.

    Raises:
        UnsupportedModel: recurrent or linear attention, an encoder, or a model whose attention cannot be replaced.
        AdapterMismatch: the rows have a different width from the model, or the LoRA names layers it does not have.
        UsageError: a limit is out of range, or the pool does not fit into memory.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: AdapterRows | None = None,
        lora: Lora | None = None,
        capacity: int,
        max_seqs: int = 16,
        context_length: int | None = None,
        label: str | None = None,
    ) -> None:
        causal = CausalModel(model, rows, lora)
        context_length = causal.context_length(context_length)
        windows = _windows(causal)
        pool = _verified_pool(causal, windows).sized(capacity)
        self._causal = causal
        self._slots = SlotTable(capacity, max_seqs)
        self._passes = _PassRunner(causal, windows, self._slots, pool)
        self._info = BackendInfo(
            name="torch",
            model=label or causal.label,
            weights=causal.weights,
            vocab_size=causal.vocab_size,
            num_added=causal.num_added,
            context_length=context_length,
            capacity=capacity,
            max_seqs=max_seqs,
            kv_bytes_per_token=pool.bytes_per_slot,
            can_truncate=True,
            embedding_width=causal.embedding_width,
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def model(self) -> Any:
        """The Hugging Face model. Do not use it during a pass."""
        return self._causal.model

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._slots.fork(parent, length)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        check_batch(self._info, batch)
        check_added_ids(self._info.vocab_size, self._causal.num_probes, batch)
        self._slots.check(batch, self._info.context_length)
        with self._undone_on_error(batch):
            outputs = self._passes.run(batch, [self._causal.num_logits(extend) for extend in batch])
            return [self._causal.read(extend, *output) for extend, output in zip(batch, outputs, strict=True)]

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
        self._passes.pool.layers.clear()

    @contextmanager
    def _undone_on_error(self, batch: Sequence[Extend]) -> Iterator[None]:
        """Restore the length of every sequence if the body fails."""
        before = [self._slots.length(extend.seq) for extend in batch]
        try:
            yield
        except BaseException as error:
            for extend, length in zip(batch, before, strict=True):
                self._slots.truncate(extend.seq, length)
            if isinstance(error, torch.OutOfMemoryError):
                number = sum(len(extend.tokens) for extend in batch)
                raise CacheFull(f"no memory for a pass of {number} tokens; feed fewer at once") from error
            raise


@dataclass(frozen=True, slots=True)
class _PassRunner:
    """Runs the model over a pool."""

    causal: CausalModel
    windows: list[Window]  # of each layer
    slots: SlotTable
    pool: SlotPool

    def run(self, batch: Sequence[Extend], num_logits: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """One forward pass. For each `Extend`: base logits [E, V] at its last E tokens, and its last hidden state [D].

        E is that of `num_logits`.
        """
        for extend in batch:
            self.slots.extend(extend.seq, len(extend.tokens))
        plan = plan_attention(self.slots, batch, self.causal, set(self.windows))
        ends = np.cumsum([len(batch[index].tokens) for index in plan.order]) - 1
        last = {index: int(end) for index, end in zip(plan.order, ends, strict=True)}
        cache = SlotCache(self.pool, plan, self.windows)
        with attention_through(self.causal.configs, cache):
            logits, hidden = self.causal.run(
                [token for index in plan.order for token in batch[index].tokens],
                [end for index in plan.order for end in range(last[index] + 1 - num_logits[index], last[index] + 1)],
                position_ids=plan.positions,
                past_key_values=cache,
                use_cache=True,
            )
        cache.check()
        starts = dict(zip(plan.order, accumulate((num_logits[index] for index in plan.order), initial=0), strict=False))
        return [
            (logits[starts[index] : starts[index] + num_logits[index]], hidden[last[index]])
            for index in range(len(batch))
        ]


# --- Which models are supported, and the check at construction --------------------------------------------------------


def _windows(causal: CausalModel) -> list[Window]:
    """The attention window of each layer. Raises `UnsupportedModel` for layers that are not attention."""
    if getattr(causal.model, "_is_stateful", False):
        raise UnsupportedModel(_refusal(causal, "it is recurrent: its state cannot be rolled back or shared"))
    try:
        return layer_windows(causal.config)
    except UnsupportedModel as error:
        raise UnsupportedModel(_refusal(causal, str(error))) from None


def _verified_pool(causal: CausalModel, windows: list[Window]) -> SlotPool:
    """Compare passes of several channels with plain forwards; return the (small) pool that was used.

    In half precision, rounding alone can be too much for some tokens on some CPUs: then others are tried. Wrong
    attention is wrong for all of them.
    """
    tolerance = _TOLERANCE.get(causal.dtype, _HALF_TOLERANCE)
    for step in _STEPS if causal.dtype.itemsize < 4 else _STEPS[:1]:
        worst, pool = _trial(causal, windows, step)
        if worst <= tolerance:
            return pool
    raise UnsupportedModel(
        _refusal(causal, f"two channels in one pass gave other logits than each alone (relative error {worst:.2g})")
    )


def _trial(causal: CausalModel, windows: list[Window], step: int) -> tuple[float, SlotPool]:
    """The largest relative error (or NaN) of two channels and an unrelated sequence; `step` chooses the tokens."""
    shortest = min((window for window in windows if window is not None), default=0)
    length = 12 + (shortest if shortest <= 64 else 0)  # beyond the window, where that is cheap to check
    ids = [(step * index + 13) % causal.vocab_size for index in range(length + 24)]
    prefix, answer, words, unrelated = ids[:length], ids[length : length + 4], ids[length + 6 : length + 11], ids[-9:]
    try:
        packed, pool = _trial_passes(causal, windows, prefix, answer, words, unrelated)
        plain = [
            causal.run(tokens, [len(tokens) - 1], use_cache=False)[0][0]
            for tokens in (prefix + answer, unrelated, prefix[:-3] + words)
        ]
    except UnsupportedModel as error:
        raise UnsupportedModel(_refusal(causal, str(error))) from error
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
        raise UnsupportedModel(_refusal(causal, f"a trial pass failed ({type(error).__name__}: {error})")) from error
    return float(np.max([_difference(fast, slow) for fast, slow in zip(packed, plain, strict=True)])), pool


def _trial_passes(
    causal: CausalModel,
    windows: list[Window],
    prefix: list[Token],
    answer: list[Token],
    words: list[Token],
    unrelated: list[Token],
) -> tuple[list[Tensor], SlotPool]:
    """Logits [V] after prefix + answer, after `unrelated`, and after a fork of the prefix without 3 tokens + words."""
    capacity = 2 * len(prefix) + 64
    passes = _PassRunner(causal, windows, SlotTable(capacity, 3), SlotPool(capacity))
    slots = passes.slots
    output, other = slots.fork(None), slots.fork(None)

    def feed(*fed: tuple[Seq, list[Token]]) -> list[Tensor]:
        outputs = passes.run([Extend(seq, tuple(tokens)) for seq, tokens in fed], [1] * len(fed))
        return [logits[0] for logits, _ in outputs]

    feed((output, prefix[:-2]))
    feed((output, [*prefix[-2:], *words]), (other, unrelated[:4]))
    slots.truncate(output, len(prefix))
    heard = slots.fork(output, len(prefix) - 3)
    return feed((output, answer), (other, unrelated[4:]), (heard, words)), passes.pool


def _difference(fast: Tensor, slow: Tensor) -> float:
    """The norm of the difference of two logit vectors [V], relative to how much the logits vary."""
    fast, slow = fast.float(), slow.float()
    spread = (slow - slow.mean()).norm().clamp_min(1e-6)
    return float((fast - slow).norm() / spread)


def _refusal(causal: CausalModel, reason: str) -> str:
    return (
        f"{causal.label} ({causal.model.config.model_type}) cannot run on the torch backend: {reason}. "
        "The reference backend runs it, slowly: ReferenceBackend(model), or --backend reference"
    )
