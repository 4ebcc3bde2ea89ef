"""Several backends presented as one: each has its own cache and makes its own passes.

Knows which sequence is in which cache, not what a cache consists of.
"""

import itertools
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage
from duologue.errors import CacheFull, UnknownSeq
from duologue.types import Seq


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sequence is."""

    cache: int
    seq: Seq  # its name in that cache
    root: Seq  # the sequence, opened empty, from which this one descends by forking


class JoinedBackend(Backend):
    """Presents `caches` as one backend. A fork goes to its parent's cache; a subclass opens empty sequences.

    `forward` runs one pass for each cache that has tokens to feed, in their order. If one fails, the others are rolled
    back. Closing this backend closes them.
    """

    def __init__(self, caches: Sequence[Backend], info: BackendInfo) -> None:
        self._caches = tuple(caches)
        self._info = info
        self._places: dict[Seq, Place] = {}
        self._names = itertools.count()

    @property
    def info(self) -> BackendInfo:
        return self._info

    @abstractmethod
    def _check(self, batch: Sequence[Extend], shares: Mapping[int, Sequence[tuple[int, Extend]]]) -> None:
        """Raise what can be said against `batch`, whose `shares` go to the caches, before any cache computes."""

    def _open(self, number: int, parent: Seq | None = None, length: int = 0) -> Seq:
        """Open a sequence in cache `number`."""
        place = None if parent is None else self.place(parent)
        with self._naming_sequences(number):
            own = self._caches[number].fork(None if place is None else place.seq, length)
        seq = next(self._names)
        self._places[seq] = Place(number, own, seq if place is None else place.root)
        return seq

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        shares = self._shares(batch)
        self._check(batch, shares)
        steps: dict[int, Step] = {}
        num_passes = 0  # of the caches so far
        fed: list[tuple[Backend, Seq, int]] = []
        try:
            for number, share in sorted(shares.items()):
                cache = self._caches[number]
                before = [(cache, extend.seq, cache.length(extend.seq)) for _, extend in share]
                with self._naming_sequences(number):
                    results = cache.forward([extend for _, extend in share])
                fed += before
                steps |= {
                    index: replace(step, passes=tuple(num_passes + number for number in step.passes))
                    for (index, _), step in zip(share, results, strict=True)
                }
                num_passes = 1 + max(number for step in steps.values() for number in step.passes)
        except BaseException:
            for cache, seq, length in fed:
                cache.truncate(seq, length)
            raise
        return [steps[index] for index in range(len(batch))]

    def truncate(self, seq: Seq, length: int) -> None:
        place = self.place(seq)
        self._caches[place.cache].truncate(place.seq, length)

    def free(self, seq: Seq) -> None:
        place = self.place(seq)
        self._caches[place.cache].free(place.seq)
        del self._places[seq]

    def length(self, seq: Seq) -> int:
        place = self.place(seq)
        return self._caches[place.cache].length(place.seq)

    def usage(self) -> Usage:
        usages = [cache.usage() for cache in self._caches]
        return Usage(
            num_seqs=sum(usage.num_seqs for usage in usages),
            kv_entries=sum(usage.kv_entries for usage in usages),
            kv_bytes=sum(usage.kv_bytes for usage in usages),
        )

    def close(self) -> None:
        for cache in self._caches:
            cache.close()

    def place(self, seq: Seq) -> Place:
        """Where `seq` is. Raises `UnknownSeq` if it is not open."""
        try:
            return self._places[seq]
        except (KeyError, TypeError):
            raise UnknownSeq(f"no sequence {seq!r} is open; open ones: {sorted(self._places)[:16]}") from None

    def _shares(self, batch: Sequence[Extend]) -> dict[int, list[tuple[int, Extend]]]:
        """What each cache feeds, under its own sequence names, with the index in `batch`."""
        shares: defaultdict[int, list[tuple[int, Extend]]] = defaultdict(list)
        for index, extend in enumerate(batch):
            place = self.place(extend.seq)
            shares[place.cache].append((index, replace(extend, seq=place.seq)))
        return shares

    @contextmanager
    def _naming_sequences(self, number: int) -> Iterator[None]:
        """Add the sequences that it is about to a `CacheFull` from cache `number`."""
        try:
            yield
        except CacheFull as error:
            inside = {place.seq: seq for seq, place in self._places.items() if place.cache == number}
            seqs = frozenset(inside[own] for own in (inside if error.seqs is None else error.seqs))
            raise CacheFull(str(error), seqs=seqs) from error
