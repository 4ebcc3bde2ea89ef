"""One conversation on a server, which outlives its connection for a while."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from typing import Any, Protocol

from duologue.core.events import Edited, Event, Received, Said, as_dict
from duologue.core.session import Session
from duologue.engine.handle import Handle
from duologue.errors import DuologueError, EngineError
from duologue.server.settings import ConversationSettings
from duologue.server.store import Recorder, RecordLost, Standing

MOST_KEPT = 4096  # events kept for clients that reconnect or read slowly
MOST_BYTES = 1 << 20  # of these events
TAKEN_OVER = "another server took it over"
_EVENT_BYTES = 200  # of an event, in addition to its texts
log = logging.getLogger("duologue.server")


class EventsLost(EngineError):
    """Events were requested that are no longer kept: the reader was too slow, or away for too long."""


class EventLog:
    """The newest events with their numbers, from 1, for any number of readers, each at its own speed.

    `first` is the number of earlier events. At most `most` events of `most_bytes` in all are kept.
    """

    def __init__(self, first: int = 0, *, most: int = MOST_KEPT, most_bytes: int = MOST_BYTES) -> None:
        self.first = self.newest = first
        self.ended: str | None = None  # why there will be no more events
        self.most = most
        self.num_bytes = 0  # approximately
        self._most_bytes = most_bytes
        self._kept: deque[tuple[Event, int]] = deque()  # with their sizes
        self._changed = asyncio.Event()

    def add(self, event: Event) -> None:
        """Append an event."""
        size = _size(event)
        self._kept.append((event, size))
        self.num_bytes += size
        self.newest += 1
        while len(self._kept) > self.most or (self.num_bytes > self._most_bytes and len(self._kept) > 1):
            self.num_bytes -= self._kept.popleft()[1]
        self._tell()

    def end(self, reason: str) -> None:
        """End the log: there will be no more events."""
        if self.ended is None:
            self.ended = reason
            self._tell()

    def has(self, number: int) -> bool:
        """Whether all events after `number` are still kept."""
        return self.newest - len(self._kept) <= number <= self.newest

    async def after(self, number: int) -> AsyncIterator[tuple[int, Event]]:
        """Yield the events after `number` with their numbers as they arrive, until the log ends.

        Raises:
            EventsLost: some are no longer kept.
        """
        while True:
            while number < self.newest:
                if not self.has(number):
                    raise EventsLost(f"events after {number} are no longer kept")
                number += 1
                yield number, self._kept[number - self.newest - 1][0]
            if self.ended is not None:
                return
            await self.changed()

    async def changed(self) -> None:
        """Wait for another event, or for the end."""
        await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Owner(Protocol):
    """The connection that a conversation is attached to."""

    def replaced(self) -> None:
        """Called when another connection has taken over the conversation."""


class Conversation:
    """A session that is open on the engine, its events, and the connection that it is attached to.

    `id` is a secret between the server and its client; `client` says whose it is. Commands go to `handle`.
    """

    def __init__(
        self,
        name: str,
        client: str,
        settings: ConversationSettings,
        handle: Handle,
        *,
        recorder: Recorder | None,
        closed: Callable[[], object],
        most_bytes: int = MOST_BYTES,
        logs_text: bool = False,
    ) -> None:
        self.id = name
        self.client = client
        self.settings = settings
        self.handle = handle
        first = recorder.num_events if recorder is not None else 0
        self.events = EventLog(first, most_bytes=min(most_bytes, MOST_BYTES))
        self.owner: Owner | None = None
        self.taken = 0  # highest id of the client's messages whose consequences are recorded, which it may forget
        self._begun = 0  # highest id of those that were begun; repeated messages are ignored
        self.order = asyncio.Lock()  # held while a message is carried out, some of which take a while
        self._done: deque[tuple[int, int]] = deque()  # ids of those carried out, and the last event before their end
        self.is_new = True  # no connection since it was opened, or resumed from its record
        self.detached_at: float | None = None  # engine's time at which it lost its connection
        self._recorder = recorder
        self._logs_text = logs_text
        self._closed = closed
        self._task = asyncio.create_task(self._follow(), name=f"duologue-conversation-{name[:6]}")

    @property
    def is_open(self) -> bool:
        """Whether it accepts commands."""
        return self.events.ended is None

    @property
    def session(self) -> Session:
        """The session; read only."""
        assert isinstance(self.handle.session, Session), "conversations of the server have one"
        return self.handle.session

    @property
    def has_record(self) -> bool:
        """Whether a server can go on with it later."""
        return self._recorder is not None

    @property
    def is_speaking(self) -> bool:
        """Whether an answer is running."""
        return self.is_open and self.handle.session.running is not None

    def attach(self, owner: Owner) -> None:
        """Attach the conversation to `owner`, and notify the previous owner."""
        before, self.owner, self.detached_at = self.owner, owner, None
        self.is_new = False
        if before is not None and before is not owner:
            before.replaced()
        self.handle.pause(False)

    def detach(self, owner: Owner, now: float) -> None:
        """Detach the conversation from `owner`, which was disconnected. Until it is attached, nothing is heard."""
        if self.owner is owner and self.is_open:
            self.owner, self.detached_at = None, now
            self.handle.pause(True)

    def begin_message(self, number: int) -> bool:
        """Begin to carry out message `number` of the client. Returns whether it is new; ids increase."""
        is_new = number > self._begun
        self._begun = max(self._begun, number)
        return is_new

    def end_message(self, number: int) -> None:
        """Message `number` was carried out. It counts as taken when the events that it caused are recorded.

        After the end they never are, and the client sends it again to the server that goes on.
        """
        if self.is_open:
            self._done.append((number, self.events.first + self.handle.num_told))
            self.taken = self._taken_with(self.events.newest)

    def go_on(self, taken: int) -> None:
        """Continue a conversation whose record has the consequences of messages up to `taken`."""
        self.taken = self._begun = taken

    async def renew(self) -> None:
        """Renew the right to write the record. The conversation ends if another server wants it or has it."""
        if self._recorder is None:
            return
        standing = await self._recorder.renew()
        if standing is not Standing.HELD:
            self.close(TAKEN_OVER)

    def snapshot(self) -> dict[str, Any]:
        """The current state, for a client that does not know the events."""
        session = self.handle.session
        running = session.running
        answer = None
        if running is not None and running.is_released:
            answer = {"answer": running.id, "text": running.text[: running.num_said], "heard": running.num_heard}
        is_unheard = running is not None and not running.num_heard and running.user_text is not None
        return {
            "history": [{"role": str(turn.role), "text": turn.text} for turn in session.history],
            "running": answer,
            "asked": {"answer": running.id, "text": running.user_text} if running is not None and is_unheard else None,
            "input": session.input_text,
        }

    async def settled(self) -> None:
        """Wait until what was begun is carried out and recorded, so that `snapshot` and `taken` agree with `events`."""
        async with self.order:
            while self.is_open and self.events.newest < self.events.first + self.handle.num_told:
                await self.events.changed()

    def close(self, reason: str) -> None:
        """End the conversation: free what it holds on the engine, and give readers the reason."""
        if not self.is_open:
            return
        self.events.end(reason)
        self.owner = None
        log.info("closed", extra={"session": self.id[:6], "reason": reason, "events": self.events.newest})
        self.handle.close()
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        self._closed()

    async def _follow(self) -> None:
        try:
            async for event in self.handle.events():
                if not await self._record(event):
                    return
                if self._logs_text and isinstance(event, Received | Said):
                    log.info("text", extra={"session": self.id[:6], "event": as_dict(event)})
                self.events.add(event)
        except RecordLost:
            self.close(TAKEN_OVER)
        except DuologueError as error:
            log.error("a conversation failed", extra={"session": self.id[:6], "error": str(error)})
            self.close(f"failed: {error}")
        else:
            self.close("closed")

    async def _record(self, event: Event) -> bool:
        """Whether the client may be told of `event`. What the next server does not know has not happened."""
        if not self.is_open:
            return False
        taken, recorder = self._taken_with(self.events.newest + 1), self._recorder
        if recorder is not None:
            try:
                await recorder(event, taken=taken)
            except OSError as error:  # for instance, the disk is full; the conversation continues without its record
                more = {"session": self.id[:6], "error": str(error)}
                log.error("a record cannot be written; it ends here", extra=more)
                recorder.stop()
        if self.is_open:  # it was not closed meanwhile
            self.taken = max(self.taken, taken)
        return self.is_open

    def _taken_with(self, newest: int) -> int:
        """`taken` once event `newest` is recorded."""
        taken = self.taken
        while self._done and self._done[0][1] <= newest:
            taken = self._done.popleft()[0]
        return taken


def _size(event: Event) -> int:
    """Approximate size of an event in bytes."""
    texts = [turn.text for turn in event.history] if isinstance(event, Edited) else []
    texts += [value for item in fields(event) if isinstance(value := getattr(event, item.name), str)]
    return _EVENT_BYTES + sum(map(len, texts))
