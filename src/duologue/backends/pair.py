"""Two models presented as one backend: one speaks, the other listens. They share no KV; each makes its own passes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

from duologue.backends.joined import JoinedBackend
from duologue.core.backend import Backend, Extend, check_batch, check_virtual
from duologue.types import Seq

_LISTENER, _SPEAKER = 0, 1


@final
class PairBackend(JoinedBackend):
    """Presents `speaker` and `listener` as one backend. Closing it closes both.

    `fork(None)` opens a sequence of the speaker, `fork_listening` one of the listener. `info` is the speaker's, except
    for what limits both. It takes no embedding rows: what is heard goes to both models, and an encoder's rows mean
    something to one of them only.
    """

    def __init__(self, speaker: Backend, listener: Backend) -> None:
        max_seqs = min(speaker.info.max_seqs, listener.info.max_seqs)
        super().__init__((listener, speaker), replace(speaker.info, max_seqs=max_seqs, embedding_width=0))

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._open(_SPEAKER if parent is None else self.place(parent).cache, parent, length)

    def fork_listening(self) -> Seq:
        return self._open(_LISTENER)

    def _check(self, batch: Sequence[Extend], shares: Mapping[int, Sequence[tuple[int, Extend]]]) -> None:
        if not batch:
            check_batch(self._info, batch)
        for extend in batch:
            check_virtual(self._info, extend)  # each model checks its own ids
