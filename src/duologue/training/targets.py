"""Target probabilities of the states and the loss over them. B samples, S states."""

from collections.abc import Sequence

import torch
from torch import Tensor

from duologue.data.samples import Sample
from duologue.types import InputState

_MIN_P = 1e-6  # lower probabilities count as this one


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
