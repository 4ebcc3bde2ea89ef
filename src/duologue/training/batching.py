"""Token sequences of different lengths in padded batches. B sequences, T tokens of the longest."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from duologue.types import Token

T = TypeVar("T")


def padded(rows: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
    """Ids [B, T], padded on the right with 0, and their mask [B, T], 1 where there is a token.

    In a causal model no real token attends to padding on the right.
    """
    if not rows:
        return torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0, dtype=torch.long)
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()


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
