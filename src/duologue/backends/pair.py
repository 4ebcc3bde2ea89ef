"""Two models presented as one backend: one speaks, the other listens. They share no KV, and each makes its own passes.

Sequences of the speaker have even names, those of the listener odd ones; a fork is where its parent is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import final

from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage, check_virtual
from duologue.errors import CacheFull, UnknownSeq
from duologue.types import Seq

_LISTENER = 1


@final
class PairBackend(Backend):
    """Presents `speaker` and `listener` as one backend. Closing it closes both.

    `fork(None)` opens a sequence of the speaker, `fork_listening` one of the listener. `info` is the speaker's, except
    for what limits both. It takes no embedding rows: what is heard goes to both models, and an encoder's rows mean
    something to one of them only.
    """

    def __init__(self, speaker: Backend, listener: Backend) -> None:
        self._backends = (speaker, listener)
        self._open: set[Seq] = set()
        max_seqs = min(speaker.info.max_seqs, listener.info.max_seqs)
        self._info = replace(speaker.info, max_seqs=max_seqs, embedding_width=0)

    @property
    def info(self) -> BackendInfo:
        return self._info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._fork(0 if parent is None else parent & 1, parent, length)

    def fork_listening(self) -> Seq:
        return self._fork(_LISTENER, None, 0)

    def _fork(self, which: int, parent: Seq | None, length: int) -> Seq:
        with self._naming_sequences(which):
            own = self._backends[which].fork(None if parent is None else self._own(parent), length)
        seq = 2 * own + which
        self._open.add(seq)
        return seq

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        for extend in batch:
            check_virtual(self._info, extend)
        steps: dict[int, Step] = {}
        fed: list[tuple[Seq, int]] = []
        try:
            for which in (_LISTENER, 0):
                share = self._share(batch, which)
                before = [(batch[index].seq, self.length(batch[index].seq)) for index in share]
                if share or not batch:
                    with self._naming_sequences(which):
                        results = self._backends[which].forward(list(share.values()))
                    for index, step in zip(share, results, strict=True):
                        steps[index] = replace(step, passes=tuple(2 * number + which for number in step.passes))
                fed += before
        except BaseException:
            for seq, length in fed:
                self.truncate(seq, length)
            raise
        return [steps[index] for index in range(len(batch))]

    def truncate(self, seq: Seq, length: int) -> None:
        self._backends[seq & 1].truncate(self._own(seq), length)

    def free(self, seq: Seq) -> None:
        self._backends[seq & 1].free(self._own(seq))
        self._open.discard(seq)

    def length(self, seq: Seq) -> int:
        return self._backends[seq & 1].length(self._own(seq))

    def usage(self) -> Usage:
        usages = [backend.usage() for backend in self._backends]
        return Usage(
            num_seqs=sum(usage.num_seqs for usage in usages),
            kv_entries=sum(usage.kv_entries for usage in usages),
            kv_bytes=sum(usage.kv_bytes for usage in usages),
        )

    def close(self) -> None:
        for backend in self._backends:
            backend.close()

    def _own(self, seq: Seq) -> Seq:
        """The name of `seq` in its own backend."""
        if seq not in self._open:
            raise UnknownSeq(f"no sequence {seq!r} is open; open ones: {sorted(self._open)[:16]}")
        return seq >> 1

    def _share(self, batch: Sequence[Extend], which: int) -> dict[int, Extend]:
        """What one of the two feeds, under its own names, by the index in `batch`."""
        return {
            index: replace(extend, seq=self._own(extend.seq))
            for index, extend in enumerate(batch)
            if extend.seq & 1 == which
        }

    @contextmanager
    def _naming_sequences(self, which: int) -> Iterator[None]:
        """Add the sequences that only their own backend's room concerns to a `CacheFull` from it."""
        try:
            yield
        except CacheFull as error:
            if error.seqs is None:
                seqs = frozenset(seq for seq in self._open if seq & 1 == which)
            else:
                seqs = frozenset(2 * own + which for own in error.seqs)
            raise CacheFull(str(error), seqs=seqs) from error
