"""What an event loop did for too long."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LIMIT_S = 0.020


@contextmanager
def watchdog(limit_s: float = LIMIT_S) -> Iterator[list[tuple[float, str]]]:
    """Collects callbacks of a server that took longer: seconds, and which. Those of a client in the same loop are left
    out. Only the thread's own processor time counts, so that the result does not depend on what else the machine does.
    """
    found: list[tuple[float, str]] = []
    original = asyncio.Handle._run

    def run(handle: asyncio.Handle) -> None:
        name = _name(handle)  # before: afterwards, the callback may be gone
        begin = time.thread_time()
        original(handle)
        took = time.thread_time() - begin
        if took > limit_s and ("duologue" in name or "uvicorn" in name or "run_asgi" in name):
            found.append((round(took, 4), name))

    asyncio.Handle._run = run  # type: ignore[method-assign]
    try:
        yield found
    finally:
        asyncio.Handle._run = original  # type: ignore[method-assign]


def _name(handle: Any) -> str:
    owner = getattr(handle._callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return f"task {owner.get_name()}: {owner.get_coro()!r}"
    if isinstance(owner, asyncio.Transport):
        return f"transport of {type(owner.get_protocol()).__module__}: {handle._callback!r}"
    return repr(handle._callback)
