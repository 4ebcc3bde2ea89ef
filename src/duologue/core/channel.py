"""One token sequence and how much of it is in the KV cache. Knows ids and lengths; not what they mean."""

from collections.abc import Sequence

from duologue.types import Seq, Token


class Channel:
    """What a sequence should hold (`items`), and what the cache holds of it.

    `items[:cached]` is in the KV cache; the rest is *pending*. `kv_length` may be larger than `cached`: a probe, or
    words that have been revised since. Those are rolled back before the next pass. Between a plan and its result `fed`
    are under way, and `items` may change meanwhile: `land` sorts out what of them is still wanted.
    """

    __slots__ = ("cached", "fed", "items", "kv_length", "seq")

    def __init__(self, seq: Seq, items: Sequence[Token] = (), cached: int = 0) -> None:
        self.seq = seq
        self.items: list[Token] = list(items)
        self.cached = cached
        self.kv_length = cached
        self.fed: tuple[Token, ...] | None = None

    @property
    def num_pending(self) -> int:
        """Tokens that still have to be fed."""
        return len(self.items) - self.cached

    @property
    def num_waiting(self) -> int:
        """Pending tokens that are not under way."""
        return max(0, self.num_pending - len(self.fed or ()))

    @property
    def num_surplus(self) -> int:
        """Tokens in the cache that have to be rolled back before anything is fed."""
        return self.kv_length - self.cached

    def fork(self, seq: Seq, length: int) -> "Channel":
        """A channel that starts as the first `length` items; what is cached of these is shared, the rest is pending."""
        return Channel(seq, self.items[:length], min(self.cached, length))

    def shorten(self, length: int) -> None:
        """Roll back to the first `length` items."""
        del self.items[length:]
        self.cached = min(self.cached, length)

    def forget_last(self) -> None:
        """Take the last item out of the cache, to feed it again."""
        self.cached = min(self.cached, len(self.items) - 1)

    def replace_tail(self, start: int, tail: Sequence[Token]) -> None:
        """Make the items from `start` on `tail`, keeping what is cached up to the first id that differs."""
        same = start
        for old, new in zip(self.items[start:], tail, strict=False):
            if old != new:
                break
            same += 1
        self.items[same:] = tail[same - start :]
        self.cached = min(self.cached, same)

    def feed(self, tokens: tuple[Token, ...]) -> None:
        """`tokens` are on their way, to land behind the cached items."""
        assert self.fed is None, "a channel has one forward pass under way at most"
        assert self.num_surplus == 0, "surplus is rolled back before anything is fed"
        self.fed = tokens

    def land(self) -> None:
        """The tokens on their way are in the cache; those that `items` no longer has become surplus."""
        assert self.fed is not None, "nothing was under way"
        start, fed, self.fed = self.kv_length, self.fed, None
        self.kv_length = start + len(fed)
        if self.cached < start:  # rolled back meanwhile to before what was fed
            return
        for old, new in zip(self.items[start:], fed, strict=False):
            if old != new:
                break
            self.cached += 1
