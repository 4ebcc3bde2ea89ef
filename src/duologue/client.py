"""A client of `/v1/duplex`: a conversation on a server, with the commands and events of a local one.

    async with await connect("http://127.0.0.1:8080") as talk:
        talk.hear("what is a cat", final=True)
        async for event in talk.events():
            ...

A lost connection is restored, and events continue after the last one received; commands given meanwhile are sent then.
Text that was given out is reported as heard, unless the settings say otherwise.
"""

import asyncio
import contextlib
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from websockets.asyncio import client as websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

from duologue.core.events import Event, Heard, Promoted, Refused, Said, from_dict
from duologue.core.history import Ledger
from duologue.core.transitions import Floor
from duologue.errors import BadData, RemoteError, UsageError
from duologue.types import Role, Turn

_MOST_WAITING = 1000  # messages that may wait for the server
_PATIENCE_S = 60.0  # how long reconnection is attempted
_ANSWER_S = 30.0  # within which a server says how a conversation stands; it may have to read a long record
_CLOSE_S = 2.0  # for the server to take leave
_FIRST_WAIT_S = 0.1
_SERVER_ERROR = 500  # and above: of a proxy while a server is replaced, or of a server that starts
_TAKEN_OVER = 4001  # close code: another connection has the conversation
_LONGEST_WAIT_S = 5.0
_ROUTE_LENGTH = 8  # of the beginning of a session's name, which is not secret: a fleet routes connections by it


@dataclass(frozen=True, slots=True)
class Missed(Event):
    """Some events were lost because the server no longer had them. The history is now `history`."""

    history: tuple[Turn, ...]


async def connect(
    url: str,
    *,
    token: str | None = None,
    session: str | None = None,
    history: Sequence[Turn] = (),
    settings: Mapping[str, Any] | None = None,
    retry: bool = True,
) -> "Talk":
    """Start a conversation on the server at `url`, or continue the one called `session`.

    Args:
        url: http, https, ws or wss; the default path is `/v1/duplex`.
        settings: see docs/protocol.md; by default `{"hearing": "reported"}`.
        retry: whether a lost connection is restored.

    Raises:
        RemoteError: the server cannot be reached, or refuses the conversation.
        UsageError: the URL is invalid.
    """
    start: dict[str, Any] = {"session": session} if session is not None else {}
    start["settings"] = {"hearing": "reported", **(settings or {})}
    start["history"] = [{"role": str(turn.role), "text": turn.text} for turn in history]
    talk = Talk(_address(url), {} if token is None else {"Authorization": f"Bearer {token}"}, start, retry=retry)
    await talk.open()
    return talk


class Talk:
    """A conversation on a server. Commands return at once; their consequences are read from `events`.

    `session` is its secret name on the server, with which it can be continued. `ledger` has its history.
    """

    def __init__(self, url: str, headers: dict[str, str], start: dict[str, Any], *, retry: bool) -> None:
        self.session = ""
        self.model = ""
        self.ledger = Ledger()
        self._url = url
        self._route = start.get("session", secrets.token_urlsafe())[:_ROUTE_LENGTH]
        self._headers = headers
        self._start = start
        self._retry = retry
        self._number = 0  # of the last event received
        self._at = 0.0
        self._reports = start["settings"].get("hearing") == "reported"
        self._outgoing: deque[dict[str, Any]] = deque()  # not yet acknowledged, in order
        self._num_sent = 0  # of those, on this connection
        self._num_said = 0
        self._wake = asyncio.Event()
        self._told: asyncio.Queue[Event | RemoteError | None] = asyncio.Queue()
        self._socket: websocket.ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    async def __aenter__(self) -> "Talk":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Connect; see `connect`."""
        socket = await self._connect()
        self._task = asyncio.create_task(self._run(socket), name="duologue-client")

    async def aclose(self, *, end: bool = True) -> None:
        """Disconnect. With `end` the conversation is over; otherwise the server keeps it for a while."""
        self._is_over = True
        if self._socket is not None:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    if end:
                        await self._socket.send(json.dumps({"type": "end"}))
                    await self._socket.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._told.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        """Events until the conversation is over. With hearing "reported", text counts as heard when the next event is
        requested.

        Raises:
            RemoteError: the connection was lost, or the server sent an invalid message.
        """
        while (event := await self._told.get()) is not None:
            if isinstance(event, RemoteError):
                self._told.put_nowait(event)  # later readers receive it, too
                raise event
            yield event
            if self._reports and isinstance(event, Said) and not self._is_over:
                self.heard(event.start + len(event.text), answer=event.answer)
        self._told.put_nowait(None)

    @property
    def floor(self) -> Floor:
        """Who has the floor, as of the last event."""
        return self.ledger.floor

    @property
    def is_listening(self) -> bool:
        """Whether there are words that have been neither answered nor dropped, including unsent ones."""
        return bool(self.ledger.unanswered) or any(message["type"] == "hear" for message in self._outgoing)

    @property
    def history(self) -> list[Turn]:
        """What the user said, and what was heard of the answers."""
        return self.ledger.history

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> None:
        """See `Session.hear`."""
        self._say({"type": "hear", "text": text, "utterance": utterance, "final": final})

    def heard(self, position: int, *, answer: int | None = None) -> None:
        """See `Session.heard`."""
        self._say({"type": "heard", "position": position, **({} if answer is None else {"answer": answer})})

    def respond(self) -> None:
        """See `Session.respond`."""
        self._say({"type": "respond"})

    def stop(self) -> None:
        """See `Session.stop`."""
        self._say({"type": "stop"})

    def resume(self) -> None:
        """See `Session.resume`."""
        self._say({"type": "resume"})

    def edit(self, history: Sequence[Turn]) -> None:
        """See `Session.edit`."""
        self._say({"type": "edit", "history": [{"role": str(turn.role), "text": turn.text} for turn in history]})

    def change(self, **settings: Any) -> None:
        """Change settings: `eagerness` or `interruptible`."""
        self._say({"type": "settings", **settings})

    def _say(self, message: dict[str, Any]) -> None:
        if self._is_over:
            raise UsageError("the conversation is over; connect again")
        if len(self._outgoing) >= _MOST_WAITING:
            raise RemoteError(f"the server has not acknowledged the last {_MOST_WAITING} messages")
        self._num_said += 1
        self._outgoing.append({**message, "id": self._num_said})
        self._wake.set()

    async def _run(self, socket: websocket.ClientConnection) -> None:
        """Exchange messages, and reconnect, until the conversation is over."""
        failure: RemoteError | None = None
        try:
            await self._exchange(socket)
            while self._retry and not self._is_over:
                await self._exchange(await self._connect_again())
        except RemoteError as error:
            failure = error
        except Exception as error:  # of what the server sent; whoever waits for events is told
            failure = RemoteError(f"the server sent something that cannot be read: {type(error).__name__}: {error}")
            failure.__cause__ = error
        self._is_over = True
        self._told.put_nowait(failure)

    async def _exchange(self, socket: websocket.ClientConnection) -> None:
        """Send and receive until the connection ends."""
        sending = asyncio.create_task(self._send(socket))
        try:
            async for data in socket:
                self._take(json.loads(data))
        except ConnectionClosed:
            pass
        finally:
            socket.transport.abort()  # unless it is closed
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if socket.protocol.close_code == _TAKEN_OVER:  # taking it back would go on for ever
            raise RemoteError("another connection has this conversation")

    async def _send(self, socket: websocket.ClientConnection) -> None:
        self._num_sent = 0
        with contextlib.suppress(ConnectionClosed):
            while True:
                while self._num_sent < len(self._outgoing):
                    message = self._outgoing[self._num_sent]
                    self._num_sent += 1
                    await socket.send(json.dumps(message))
                self._wake.clear()
                await self._wake.wait()

    def _forget(self, taken: int) -> None:
        """The server has acknowledged messages up to id `taken`."""
        while self._outgoing and self._outgoing[0]["id"] <= taken:
            self._outgoing.popleft()
            self._num_sent = max(0, self._num_sent - 1)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if isinstance(message.get("taken"), int):
            self._forget(message["taken"])
        if kind == "error":
            self._told.put_nowait(Refused(self._at, str(message.get("code")), str(message.get("message"))))
        elif kind == "closing":
            # After a shutdown the server may return and continue from its record.
            self._is_over = message.get("reason") != "shutdown"
        elif isinstance(number := message.get("number"), int):
            try:
                event = from_dict(message)
            except BadData as error:
                raise RemoteError(f"the server sent an invalid event: {error}") from error
            if event is not None:
                self._number, self._at = number, event.at
                self.ledger(event)
                self._told.put_nowait(event)

    async def _connect_again(self) -> websocket.ClientConnection:
        loop, wait = asyncio.get_running_loop(), _FIRST_WAIT_S
        until = loop.time() + _PATIENCE_S
        while True:
            try:
                return await self._connect()
            except _Refused:
                raise
            except RemoteError:
                if loop.time() + wait > until:
                    raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    async def _connect(self) -> websocket.ClientConnection:
        """A connection on which the conversation has started or continued."""
        start = dict(self._start)
        if self.session:
            start = {"session": self.session, "after": self._number}
        try:
            socket = await websocket.connect(
                _routed(self._url, self._route), additional_headers=self._headers, max_size=None, compression=None
            )
        except InvalidURI as error:
            raise UsageError(f"{self._url} is not the address of a server: {error}") from error
        except InvalidStatus as error:
            kind = RemoteError if error.response.status_code >= _SERVER_ERROR else _Refused
            raise kind(f"{self._url} refused the connection: {error}") from error
        except InvalidMessage as error:
            is_gone = isinstance(error.__cause__, EOFError)  # it ended before it answered: a server that is replaced
            raise (RemoteError if is_gone else _Refused)(f"{self._url} refused the connection: {error}") from error
        except InvalidHandshake as error:
            raise _Refused(f"{self._url} refused the connection: {error}") from error
        except (OSError, EOFError, TimeoutError) as error:
            raise RemoteError(f"{self._url} cannot be reached: {error}") from error
        try:
            self._begin(await self._started(socket, start))
        except BaseException:  # the server would keep the conversation for this connection
            socket.transport.abort()
            raise
        self._socket = socket
        return socket

    async def _started(self, socket: websocket.ClientConnection, start: dict[str, Any]) -> dict[str, Any]:
        """How the conversation stands, by the server."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                await socket.send(json.dumps({"type": "start", **start}))
                answer: dict[str, Any] = json.loads(await socket.recv())
        except TimeoutError as error:
            raise RemoteError(f"{self._url} did not answer within {_ANSWER_S:g} s") from error
        except (ConnectionClosed, ValueError) as error:
            raise RemoteError(f"{self._url} closed the connection: {error}") from error
        if answer.get("type") != "started":
            await socket.close()
            # A server that holds the record of a conversation, or a full one, may give way; a store may come back.
            kind = RemoteError if answer.get("code") in ("full", "failed") else _Refused
            raise kind(str(answer.get("message", answer)))
        return answer

    def _begin(self, answer: dict[str, Any]) -> None:
        history = tuple(Turn(Role(turn["role"]), turn["text"]) for turn in answer["history"])
        is_first = not self.session
        if is_first:
            self._num_said = answer["taken"]  # ids go on where those of an earlier client ended
        self._forget(answer["taken"])
        self.session, self.model, self._number = answer["session"], answer["model"], answer["number"]
        if is_first or answer["missed"]:
            self.ledger = _ledger(history, answer["running"], answer.get("asked"))
        if answer["missed"] and not is_first:
            self._told.put_nowait(Missed(self._at, history))


class _Refused(RemoteError):
    """The server refuses the conversation; trying again is useless."""


def _ledger(history: Sequence[Turn], running: Mapping[str, Any] | None, asked: Mapping[str, Any] | None) -> Ledger:
    """That of a conversation whose `history` ends with what has been heard of the `running` answer.

    `asked` is the turn of the user that an answer belongs to of which nothing has been heard.
    """
    is_heard = running is not None and running["heard"] > 0
    ledger = Ledger(history[:-1] if is_heard else history)
    if asked is not None:
        ledger(Promoted(0.0, "user", asked["text"], asked["answer"]))
    if running is not None:
        ledger(Said(0.0, running["answer"], 0, running["text"]))
    if running is not None and is_heard:
        ledger(Heard(0.0, running["answer"], running["heard"]))
    return ledger


def _routed(url: str, route: str) -> str:
    parts = urlsplit(url)
    query = "&".join(filter(None, (parts.query, urlencode({"route": route}))))
    return urlunsplit(parts._replace(query=query))


def _address(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.netloc:
        raise UsageError(f"{url!r} is not the address of a server; an example is http://127.0.0.1:8080")
    path = parts.path if parts.path not in ("", "/") else "/v1/duplex"
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))
