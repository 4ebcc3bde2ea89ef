"""Several backends on the same weights as one: each has a cache of its own, for a few of the sessions.

It knows which sequence lies in which cache, and nothing of what a cache is made of. A fork lies where its parent does;
a sequence that begins empty begins where there are fewest conversations.
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
    """Where a sequence lies."""

    cache: int
    seq: Seq  # its name there
    family: Seq  # the sequence that began empty and of which this is a fork, or a fork of a fork


class Caches(Backend):
    """`caches` as one backend, with a pass for each of them that has something to feed.

    They are alike, but may differ in size. Whoever closes this one closes them.
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
            with self._told_of(place.cache):
                return self._named(place.cache, self._caches[place.cache].fork(place.seq, length), place.family)
        for number in self._emptiest_first():
            try:
                return self._named(number, self._caches[number].fork(None, length))
            except CacheFull:
                continue
        raise CacheFull(f"{len(self._places)} sequences are open, and no cache takes another one; free one")

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        check_batch(self._info, batch)
        shares = self._shares(batch)
        for number, share in shares.items():
            self._check_room(number, [extend for _, extend in share])
        steps: dict[int, Step] = {}
        fed: list[tuple[Backend, Seq, int]] = []
        try:
            for number, share in shares.items():
                cache = self._caches[number]
                before = [(cache, extend.seq, cache.length(extend.seq)) for _, extend in share]
                with self._told_of(number):
                    said = cache.forward([extend for _, extend in share])
                fed += before
                steps |= {index: step for (index, _), step in zip(share, said, strict=True)}
        except BaseException:
            for cache, seq, length in fed:
                cache.truncate(seq, length)
            raise
        return [steps[index] for index in range(len(batch))]

    def num_passes(self, batch: Sequence[Extend]) -> int:
        shares = self._shares(batch).items()
        return sum(self._caches[number].num_passes([extend for _, extend in share]) for number, share in shares)

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
        held = [cache.usage() for cache in self._caches]
        return Usage(
            num_seqs=sum(usage.num_seqs for usage in held),
            kv_entries=sum(usage.kv_entries for usage in held),
            kv_bytes=sum(usage.kv_bytes for usage in held),
        )

    def close(self) -> None:
        for cache in self._caches:
            cache.close()

    def _place(self, seq: Seq) -> _Place:
        try:
            return self._places[seq]
        except (KeyError, TypeError):
            raise UnknownSeq(f"no sequence {seq!r} is open; open ones: {sorted(self._places)}") from None

    def _named(self, number: int, own: Seq, family: Seq | None = None) -> Seq:
        """Our name for the sequence that cache `number` calls `own`."""
        seq = next(self._names)
        self._places[seq] = _Place(number, own, seq if family is None else family)
        return seq

    def _emptiest_first(self) -> list[int]:
        """The caches, those with fewest conversations first, among them those with fewest entries.

        Conversations come first because those that have just begun hold nothing yet, and grow.
        """
        families = [set[Seq]() for _ in self._caches]
        for place in self._places.values():
            families[place.cache].add(place.family)
        held = [(len(families[number]), cache.usage().kv_entries) for number, cache in enumerate(self._caches)]
        return sorted(range(len(held)), key=held.__getitem__)

    def _shares(self, batch: Sequence[Extend]) -> dict[int, list[tuple[int, Extend]]]:
        """What each cache feeds, in its own names; with the index in `batch`."""
        shares: defaultdict[int, list[tuple[int, Extend]]] = defaultdict(list)
        for index, extend in enumerate(batch):
            place = self._place(extend.seq)
            own = Extend(place.seq, extend.tokens, extend.draw, extend.watch, extend.ticket)
            shares[place.cache].append((index, own))
        return shares

    def _check_room(self, number: int, batch: Sequence[Extend]) -> None:
        """Before any cache has computed in vain."""
        cache = self._caches[number]
        wanted, free = sum(len(extend.tokens) for extend in batch), cache.info.capacity - cache.usage().kv_entries
        if wanted > free:
            with self._told_of(number):
                raise CacheFull(
                    f"the pass needs {wanted} KV entries in one of {len(self._caches)} caches, and {free} of its "
                    f"{cache.info.capacity} are free; free or truncate a sequence there"
                )

    @contextmanager
    def _told_of(self, number: int) -> Iterator[None]:
        """A `CacheFull` of one cache says which sequences lie there."""
        try:
            yield
        except CacheFull as error:
            there = frozenset(seq for seq, place in self._places.items() if place.cache == number)
            raise CacheFull(str(error), seqs=there) from error
