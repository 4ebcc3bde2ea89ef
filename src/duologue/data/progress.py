"""How long work reports its progress."""

from collections.abc import Callable

StageProgress = Callable[[str, int, int], None]
"""Receives the stage, what is done of it, and its total, 0 if that is not known. Figures may follow a colon: "epoch 2:
loss 0.41"."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
