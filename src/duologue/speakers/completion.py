"""One answer from an endpoint over HTTP: asks, asks again if it was refused, and gives out the parts as they arrive."""

import asyncio
import email.utils
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

import httpx

from duologue.errors import RemoteError
from duologue.speakers.endpoint import KEY_VARIABLE, Endpoint
from duologue.speakers.stream import Part, StreamReader, message_of, read_whole

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that may be others the next time
_FIRST_WAIT_S = 0.5  # doubled with every retry, unless the endpoint says how long
_MOST_BYTES = 1 << 24  # of a body that is not streamed, or of an error


class _RefusedError(Exception):
    """The endpoint did not begin to answer, but may do so later."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s  # that it asks for


def open_client(endpoint: Endpoint) -> httpx.AsyncClient:
    """A client for requests to `endpoint`, to be closed by the caller. It follows no redirects: the key is in it."""
    headers = {"Accept": "text/event-stream", **({"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {})}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
    return httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(endpoint.most_silence), limits=limits)


async def parts(
    client: httpx.AsyncClient, endpoint: Endpoint, body: dict[str, Any], *, notice: Callable[[str], None]
) -> AsyncGenerator[Part, None]:
    """The parts of an answer. Closing this closes the request.

    A request that is refused before the first part is repeated after a while; `notice` is told so.

    Raises:
        RemoteError: there is no answer, or it broke off.
    """
    for retry in range(endpoint.most_retries + 1):
        try:
            async with aclosing(_ask(client, endpoint, body)) as answered:
                async for part in answered:
                    yield part
            return
        except _RefusedError as error:
            wait_s = _FIRST_WAIT_S * 2**retry if error.wait_s is None else error.wait_s
            if retry == endpoint.most_retries:
                raise RemoteError(f"{error}; asked {retry + 1} times") from None
            if wait_s > endpoint.most_wait:
                raise RemoteError(f"{error}; it asks to wait {wait_s:.0f} s") from None
            notice(f"{error}; asking again in {wait_s:.1f} s")
            await asyncio.sleep(wait_s)


async def _ask(client: httpx.AsyncClient, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part, None]:
    has_begun = False
    try:
        async with client.stream("POST", endpoint.address, json=body) as response:
            await _check(response, endpoint)
            async with aclosing(_read(response, endpoint)) as answered:
                async for part in answered:
                    has_begun = True
                    yield part
    except httpx.ReadTimeout:
        where = ", in the middle of the answer" if has_begun else ""
        raise RemoteError(f"the speaker was silent for {endpoint.most_silence:g} s{where}") from None
    except httpx.HTTPError as error:
        why = endpoint.hidden(str(error)) or type(error).__name__
        reason = f"the speaker at {endpoint.hidden(endpoint.address)} cannot be reached: {why}"
        raise (RemoteError if has_begun else _RefusedError)(reason) from None
    except RemoteError as error:
        raise RemoteError(endpoint.hidden(str(error))) from None


async def _check(response: httpx.Response, endpoint: Endpoint) -> None:
    """Raise unless the response is an answer."""
    status = response.status_code
    if status == 200:
        return
    said = endpoint.hidden(message_of(await _whole(response)))
    reason = f"the speaker answered with status {status}" + (f": {said}" if said else "")
    if status in _AGAIN:
        raise _RefusedError(reason, _retry_after(response.headers.get("retry-after")))
    if status in (401, 403):
        reason += f"; the key in {KEY_VARIABLE} is " + ("not accepted" if endpoint.key else "missing")
    if status == 404 or 300 <= status < 400:
        reason += "; check the address and the name of the model"
    raise RemoteError(reason)


async def _read(response: httpx.Response, endpoint: Endpoint) -> AsyncGenerator[Part, None]:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":  # an endpoint that cannot stream
        for part in read_whole(await _whole(response)):
            yield part
        return
    if kind != "text/event-stream":
        raise RemoteError(f"the speaker sends {kind or 'an unknown format'}, not a chat completion; check the address")
    reader, loop = StreamReader(), asyncio.get_running_loop()
    heard_at = loop.time()  # comments keep a stream alive, but they say nothing
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes())) as chunks:
        while (data := await _before(heard_at + endpoint.most_silence - loop.time(), chunks)) is not None:
            for part in reader.feed(data):
                heard_at = loop.time()
                yield part
            if reader.is_over:
                return
    for part in reader.close():
        yield part


async def _before(limit_s: float, chunks: AsyncIterator[bytes]) -> bytes | None:
    """The next of `chunks`, if it comes within `limit_s` seconds; None at their end."""
    try:
        async with asyncio.timeout(limit_s):  # `wait_for` of Python 3.11 loses a cut that comes together with data
            return await anext(chunks, None)
    except TimeoutError:
        raise httpx.ReadTimeout("nothing was said") from None


async def _whole(response: httpx.Response) -> bytes:
    body = bytearray()
    async for data in response.aiter_bytes():
        body += data
        if len(body) > _MOST_BYTES:
            raise RemoteError(f"the speaker sent more than {_MOST_BYTES} bytes at once")
    return bytes(body)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait, given as a number or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
