"""Several backends with the same weights presented as one: each has its own cache, for some of the sessions.

An empty sequence starts in the cache with the fewest conversations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

from duologue.backends.joined import JoinedBackend
from duologue.core.backend import Backend, Extend, check_batch
from duologue.errors import CacheFull
from duologue.types import Seq


@final
class MultiCacheBackend(JoinedBackend):
    """Presents `caches`, which may differ in size only, as one backend."""

    def __init__(self, caches: Sequence[Backend]) -> None:
        infos = [cache.info for cache in caches]
        info = replace(
            infos[0],
            capacity=sum(info.capacity for info in infos),
            max_seqs=sum(info.max_seqs for info in infos),
            num_caches=len(infos),
        )
        super().__init__(caches, info)

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        if parent is not None:
            return self._open(self.place(parent).cache, parent, length)
        for number in self._emptiest_first():
            try:
                return self._open(number, None, length)
            except CacheFull:
                continue
        raise CacheFull(f"{len(self._places)} sequences are open, and no cache has room for another; free one")

    def _emptiest_first(self) -> list[int]:
        """The caches ordered by the number of conversations, then by the number of entries.

        Conversations count first because a new one holds no entries yet, but will grow.
        """
        roots = [set[Seq]() for _ in self._caches]
        for place in self._places.values():
            roots[place.cache].add(place.root)
        loads = [(len(roots[number]), cache.usage().kv_entries) for number, cache in enumerate(self._caches)]
        return sorted(range(len(loads)), key=loads.__getitem__)

    def _check(self, batch: Sequence[Extend], shares: Mapping[int, Sequence[tuple[int, Extend]]]) -> None:
        check_batch(self._info, batch)
        for number, share in shares.items():
            cache = self._caches[number]
            wanted = sum(len(extend.tokens) for _, extend in share)
            free = cache.info.capacity - cache.usage().kv_entries
            if wanted > free:
                with self._naming_sequences(number):
                    raise CacheFull(
                        f"the pass needs {wanted} KV entries in one of {len(self._caches)} caches, and {free} of its "
                        f"{cache.info.capacity} are free; free or truncate a sequence there"
                    )
