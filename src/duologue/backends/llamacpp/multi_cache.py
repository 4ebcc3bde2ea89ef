"""Several backends with the same weights presented as one: each has its own cache, for some of the sessions.

This module knows which sequence is in which cache, not what a cache consists of. A fork goes to its parent's cache; an
empty sequence starts in the cache with the fewest conversations.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage, check_batch
from duologue.errors import CacheFull, UnknownSeq
from duologue.types import Seq


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a sequence is."""

    cache: int
    seq: Seq  # its name in that cache
    root: Seq  # the sequence, opened empty, from which this one descends by forking


class MultiCacheBackend(Backend):
    """Presents `caches` as one backend. `forward` runs one pass for each cache that has tokens to feed.

    The caches may differ in size only. Closing this backend closes them.
    """

    def __init__(self, caches: Sequence[Backend]) -> None:
        self._caches = tuple(caches)
        self._places: dict[Seq, _Place] = {}
        self._names = itertools.count()
        infos = [cache.info for cache in self._caches]
        self._info = replace(
            infos[0],
            capacity=sum(info.capacity for info in infos),
            max_seqs=sum(info.max_seqs for info in infos),
            num_caches=len(infos),
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        if parent is not None:
            place = self._place(parent)
            with self._naming_sequences(place.cache):
                return self._register(place.cache, self._caches[place.cache].fork(place.seq, length), place.root)
        for number in self._emptiest_first():
            try:
                return self._register(number, self._caches[number].fork(None, length))
            except CacheFull:
                continue
        raise CacheFull(f"{len(self._places)} sequences are open, and no cache has room for another; free one")

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        check_batch(self._info, batch)
        shares = self._shares(batch)
        for number, share in shares.items():
            self._check_room(number, [extend for _, extend in share])
        steps: dict[int, Step] = {}
        num_passes = 0  # of the caches so far
        fed: list[tuple[Backend, Seq, int]] = []
        try:
            for number, share in shares.items():
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
        place = self._place(seq)
        self._caches[place.cache].truncate(place.seq, length)

    def free(self, seq: Seq) -> None:
        place = self._place(seq)
        self._caches[place.cache].free(place.seq)
        del self._places[seq]

    def length(self, seq: Seq) -> int:
        place = self._place(seq)
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

    def _place(self, seq: Seq) -> _Place:
        try:
            return self._places[seq]
        except (KeyError, TypeError):
            raise UnknownSeq(f"no sequence {seq!r} is open; open ones: {sorted(self._places)}") from None

    def _register(self, number: int, own: Seq, root: Seq | None = None) -> Seq:
        """A name for the sequence that cache `number` calls `own`."""
        seq = next(self._names)
        self._places[seq] = _Place(number, own, seq if root is None else root)
        return seq

    def _emptiest_first(self) -> list[int]:
        """The caches ordered by the number of conversations, then by the number of entries.

        Conversations count first because a new one holds no entries yet, but will grow.
        """
        roots = [set[Seq]() for _ in self._caches]
        for place in self._places.values():
            roots[place.cache].add(place.root)
        loads = [(len(roots[number]), cache.usage().kv_entries) for number, cache in enumerate(self._caches)]
        return sorted(range(len(loads)), key=loads.__getitem__)

    def _shares(self, batch: Sequence[Extend]) -> dict[int, list[tuple[int, Extend]]]:
        """What each cache feeds, under its own sequence names, with the index in `batch`."""
        shares: defaultdict[int, list[tuple[int, Extend]]] = defaultdict(list)
        for index, extend in enumerate(batch):
            place = self._place(extend.seq)
            shares[place.cache].append((index, replace(extend, seq=place.seq)))
        return shares

    def _check_room(self, number: int, batch: Sequence[Extend]) -> None:
        """Raise `CacheFull` before any cache computes, so that no pass is wasted."""
        cache = self._caches[number]
        wanted, free = sum(len(extend.tokens) for extend in batch), cache.info.capacity - cache.usage().kv_entries
        if wanted > free:
            with self._naming_sequences(number):
                raise CacheFull(
                    f"the pass needs {wanted} KV entries in one of {len(self._caches)} caches, and {free} of its "
                    f"{cache.info.capacity} are free; free or truncate a sequence there"
                )

    @contextmanager
    def _naming_sequences(self, number: int) -> Iterator[None]:
        """Add the sequences in cache `number` to a `CacheFull` from it."""
        try:
            yield
        except CacheFull as error:
            seqs = frozenset(seq for seq, place in self._places.items() if place.cache == number)
            raise CacheFull(str(error), seqs=seqs) from error
