"""Computed prefixes on disk, so that a run that is killed while it computes them goes on with those it has.

A file holds the segments of one batch. At most as much is kept as the run has in memory, and less on a full disk; what
is not kept is computed again.
"""

import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from duologue.training.layout import Layout

_SPARE_BYTES = 1 << 30  # left free on the disk


@final
class KeptPrefixes:
    """The folder with the prefixes of a run: those of several sets of samples, which it forgets one by one."""

    def __init__(self, folder: Path, origin: str) -> None:
        """`origin` says what else determines the KV; batches of another origin are not used."""
        self._folder, self._origin = folder, origin

    def of(self, layouts: Sequence[Layout]) -> "KeptBatches":
        """The batches of these samples."""
        content = repr((self._origin, [(layout.context, layout.text) for layout in layouts]))
        return KeptBatches(self._folder / sha256(content.encode()).hexdigest()[:16])

    def keep_only(self, *kept: "KeptBatches") -> None:
        """Remove the batches of all other samples."""
        for folder in self._folder.glob("*"):
            if folder not in [one.folder for one in kept]:
                shutil.rmtree(folder, ignore_errors=True)

    def discard(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._folder, ignore_errors=True)


@final
class KeptBatches:
    """The segments of some samples, in batches that are numbered in the order in which they are computed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, number: int, lengths: Sequence[int]) -> list[Tensor] | None:
        """The segments [L, 2, G, T, E] of a batch, whose T are `lengths`; None if they are not kept."""
        try:
            found = torch.load(self._path(number), weights_only=True, map_location="cpu")
        except Exception:  # whatever a missing or damaged file raises: the batch is computed again
            return None
        is_whole = isinstance(found, list) and [part.shape[3] for part in found] == list(lengths)
        return found if is_whole else None

    def write(self, number: int, segments: Sequence[Tensor]) -> None:
        """Keep a batch, if there is room for it."""
        path = self._path(number)
        partial = path.with_suffix(".partial")
        size = sum(part.numel() * part.element_size() for part in segments)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < size + _SPARE_BYTES:
                return
            torch.save(list(segments), partial)
            partial.replace(path)
        except (OSError, RuntimeError):  # torch raises either when the disk is full
            partial.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.pt"
