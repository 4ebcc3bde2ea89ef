"""Records in Redis, for servers that share no folder. A record is a list of lines.

Its fence is a number that grows by one whenever a server acquires the lease. Redis runs each script alone, and each
write is refused unless the fence still has the number of its writer, so a server that stood still cannot write again.
"""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from typing import Any

from duologue.errors import MissingDependency, UsageError
from duologue.server.resuming import read_state
from duologue.server.store import (
    LEASE_S,
    RecordedState,
    Recorder,
    RecordHeld,
    RecordLost,
    RecordStore,
    Standing,
    checked_name,
    header,
)
from duologue.types import Turn

_LINES = 1000  # read at a time
_KEYS = ("lines", "fence", "lease", "wish")  # of a record, in the order in which scripts get them
_ACQUIRE = """
if redis.call("EXISTS", KEYS[3]) == 1 then return 0 end
local fence = redis.call("INCR", KEYS[2])
redis.call("EXPIRE", KEYS[2], ARGV[2])
redis.call("SET", KEYS[3], fence, "PX", ARGV[1])
redis.call("DEL", KEYS[4])
return fence
"""
_APPEND = """
if redis.call("GET", KEYS[2]) ~= ARGV[1] then return 0 end
local ahead = redis.call("LLEN", KEYS[1]) - tonumber(ARGV[2])
if ahead < 0 then return -1 end
if ahead == 0 then redis.call("RPUSH", KEYS[1], ARGV[3]) end
redis.call("EXPIRE", KEYS[1], ARGV[4])
redis.call("EXPIRE", KEYS[2], ARGV[4])
return 1
"""
"""The number of lines before this one makes it safe to repeat a call whose answer was lost."""
_RENEW = """
if redis.call("GET", KEYS[2]) ~= ARGV[1] then return "LOST" end
redis.call("EXPIRE", KEYS[1], ARGV[3])
redis.call("EXPIRE", KEYS[2], ARGV[3])
redis.call("SET", KEYS[3], ARGV[1], "PX", ARGV[2])
return redis.call("EXISTS", KEYS[4]) == 1 and "WANTED" or "HELD"
"""
_RELEASE = """
if redis.call("GET", KEYS[2]) == ARGV[1] then redis.call("DEL", KEYS[3]) end
"""


class RedisRecorder(Recorder):
    """Writes a list of lines, whose lease it holds under the number `fence`."""

    def __init__(
        self, store: "RedisStore", name: str, fence: int, *, num_lines: int, num_events: int, size: int
    ) -> None:
        super().__init__(num_events=num_events, size=size)
        self.fence = fence
        self._store = store
        self._name = name
        self._num_lines = num_lines
        self._is_writing = True

    async def renew(self) -> Standing:
        """See `Recorder.renew`."""
        try:
            found = await self._store.call(_RENEW, self._name, self.fence, *self._store.times)
        except OSError:
            return Standing.HELD  # Redis is temporarily unavailable
        standing = Standing[found.decode()]
        return Standing.HELD if standing is Standing.WANTED and not self._is_writing else standing

    def stop(self) -> None:
        """See `Recorder.stop`."""
        self._is_writing = False

    def close(self) -> None:
        """See `Recorder.close`."""
        self.stop()
        self._store.release(self._name, self.fence)

    async def _append(self, line: bytes) -> None:
        if not self._is_writing:
            return
        found = await self._store.call(_APPEND, self._name, self.fence, self._num_lines, line, self._store.times[1])
        if not found:
            raise RecordLost("another server took it over")
        if found < 0:
            raise OSError("Redis: lines of the record are gone")
        self._num_lines += 1


class RedisStore(RecordStore):
    """The Redis server at `url`. Records expire `expiry_s` seconds after their last event."""

    def __init__(self, url: str, expiry_s: float) -> None:
        try:
            from redis.asyncio import Redis
            from redis.exceptions import RedisError
        except ImportError as error:
            raise MissingDependency(
                'records in Redis need an additional package: pip install "duologue[redis]"'
            ) from error
        self._error: type[Exception] = RedisError
        try:
            self._redis = Redis.from_url(url)
        except ValueError as error:
            raise UsageError(f"{url} is not the address of a Redis server: {error}") from error
        self._releasing: set[asyncio.Task[None]] = set()
        self.times = (round(LEASE_S * 1000), math.ceil(expiry_s + 2 * LEASE_S))  # of leases, in ms; of records, in s

    async def create(self, name: str, *, model: str, settings: dict[str, Any], history: Sequence[Turn]) -> Recorder:
        """See `RecordStore.create`."""
        recorder = RedisRecorder(self, name, await self._acquire(name), num_lines=0, num_events=0, size=0)
        try:
            await recorder._append(recorder._line(header(name, model, settings, history)))
        except BaseException:
            recorder.close()
            raise
        return recorder

    async def has(self, name: str) -> bool:
        """See `RecordStore.has`."""
        (lines, *_) = _keys(checked_name(name))
        return bool(await self._translated(self._redis.exists(lines)))

    async def aclose(self) -> None:
        """See `RecordStore.aclose`."""
        await asyncio.gather(*self._releasing)
        await self._redis.aclose()

    async def call(self, script: str, name: str, *args: Any) -> Any:
        """Run a script on the keys of a record. Raises `OSError`."""
        return await self._translated(self._redis.eval(script, len(_KEYS), *_keys(name), *args))

    async def _translated(self, call: Any) -> Any:
        """What `call` returns, with the errors of Redis as `OSError`."""
        try:
            return await call
        except self._error as error:
            raise OSError(f"Redis: {error}") from error

    def release(self, name: str, fence: int) -> None:
        """Release a lease soon."""
        task = asyncio.create_task(self._release(name, fence), name="duologue-release")
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _release(self, name: str, fence: int) -> None:
        with contextlib.suppress(OSError):  # it expires
            await self.call(_RELEASE, name, fence)

    async def _acquire(self, name: str) -> int:
        fence = await self.call(_ACQUIRE, name, *self.times)
        if not fence:
            raise RecordHeld(f"another server holds this conversation; try again in {LEASE_S:.0f} seconds")
        return int(fence)

    async def _take(self, name: str) -> tuple[RecordedState, Recorder]:
        fence = await self._acquire(name)
        try:
            lines = await self._lines(name)
            state = await asyncio.to_thread(read_state, name, lines, f"the record {name[:6]}…")
        except BaseException:
            self.release(name, fence)
            raise
        more = {"num_events": state.num_events, "size": state.size}
        return state, RedisRecorder(self, name, fence, num_lines=len(lines), **more)

    async def _lines(self, name: str) -> list[bytes]:
        found: list[bytes] = []
        while part := await self._translated(self._redis.lrange(_keys(name)[0], len(found), len(found) + _LINES - 1)):
            found += part
        return found

    async def _ask(self, name: str, is_wanted: bool) -> None:
        wish = _keys(name)[3]
        await self._translated(self._redis.set(wish, 1, ex=round(LEASE_S)) if is_wanted else self._redis.delete(wish))


def _keys(name: str) -> list[str]:
    # Braces: a cluster keeps all keys of a record on one node.
    return [f"duologue:{{{name}}}:{key}" for key in _KEYS]
