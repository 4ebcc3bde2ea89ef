"""Samples as tensors: padded batches of token ids, target probabilities of the states, and the loss of the states.

B samples, T tokens of the longest, S states.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from duologue.data.samples import Sample
from duologue.types import InputState, Token

T = TypeVar("T")

_MIN_P = 1e-6  # lower probabilities count as this one


def padded(rows: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
    """Ids [B, T], padded on the right with 0, and their mask [B, T], 1 where there is a token.

    In a causal model no real token attends to padding on the right.
    """
    if not rows:
        return torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0, dtype=torch.long)
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    return ids, (torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])).long()


def batches_by_tokens(items: Sequence[T], length: Callable[[T], int], max_tokens: int) -> Iterator[list[T]]:
    """Neighbouring `items` in batches of at most `max_tokens` tokens, padding included; one item at least."""
    batch: list[T] = []
    longest = 0
    for item in items:
        longest = max(longest, length(item))
        if batch and longest * (len(batch) + 1) > max_tokens:
            yield batch
            batch, longest = [], length(item)
        batch.append(item)
    if batch:
        yield batch


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The indices of items in batches of `size`, those of similar length together."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def target_rows(samples: Sequence[Sample], states: Sequence[InputState], accepted_weight: float) -> Tensor:
    """Targets [B, S]: 1 for the label, `accepted_weight` for accepted states, 0 elsewhere."""
    return torch.tensor(
        [
            [1.0 if state is sample.state else accepted_weight if state in sample.accept else 0.0 for state in states]
            for sample in samples
        ]
    )


def target_losses(p: Tensor, targets: Tensor) -> Tensor:
    """Losses [B] of probabilities [B, S]: negative log of the target-weighted sum."""
    return -(p * targets).sum(-1).clamp_min(_MIN_P).log()


def state_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses [B] of logits [B, S]; see `target_losses`."""
    return target_losses(logits.softmax(-1), targets)
