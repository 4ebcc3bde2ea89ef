"""One open session: its commands, its events, its time, and the sequences that it holds on the backend."""

import asyncio
import copy
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import ParamSpec

from duologue.core.backend import Sampling
from duologue.core.base_session import BaseSession
from duologue.core.events import Event
from duologue.core.policy import Policy
from duologue.core.prompt import Template
from duologue.core.session import Session
from duologue.core.transitions import Floor, Interruptible
from duologue.engine import playback_clock
from duologue.engine.playback_clock import PlaybackClock
from duologue.engine.sequence_map import SequenceMap
from duologue.engine.trace import Pass, Sink
from duologue.errors import DuologueError, UsageError
from duologue.types import Token, Turn, VirtualId

_P = ParamSpec("_P")


class Handle:
    """A session that is open on an engine; made by `Engine.open`.

    Commands are the session's own. They take effect and return at once; their consequences are read from `events` or
    `new_events`. Use a handle in the thread that drives the engine, which is the event loop's in asynchronous use.
    """

    def __init__(
        self,
        session: BaseSession,
        sequences: SequenceMap,
        playback: PlaybackClock | None,
        sink: Sink | None,
        *,
        clock: Callable[[], float],
        wake: Callable[[], None],
        leave: Callable[["Handle"], None],
    ) -> None:
        """`wake` tells the engine that there may be something to do, and `leave` that the handle is closed."""
        self.session = session  # read only
        self.sequences = sequences
        self.num_told = 0  # events recorded so far
        self.is_open = True
        self.last_fed = 0  # number of the last pass that fed anything of it
        self.waiting_since: int | None = None  # number of the pass since which not all of it could be fed
        self._clock = clock
        self._wake = wake
        self._leave = leave
        self._playback = playback
        self._sink = sink
        self._began = clock() - session.now
        self._events: deque[Event] = deque()  # not yet given out
        self._changed = asyncio.Event()
        self._failure: DuologueError | None = None
        self._watcher: Callable[[], None] | None = None

    # ------------------------------------------------------------------ events

    async def events(self) -> AsyncIterator[Event]:
        """Events as they happen, until the session is closed. Each is given out once.

        Raises:
            EngineError: the session failed and is over.
        """
        while True:
            for event in self.new_events():
                yield event
            if not self.is_open:
                return
            self._changed.clear()
            await self._changed.wait()

    def new_events(self) -> Iterator[Event]:
        """Events so far, without waiting. Each is given out once.

        Raises:
            EngineError: the session failed and is over.
        """
        while self._events:
            yield self._events.popleft()
        self._raise_failure()

    def record(self, record: Pass | Event) -> None:
        """Pass a record of the session to the sink, and an event also to the readers of events."""
        if self._sink is not None:
            self._sink(record)
        if self.is_open and not isinstance(record, Pass):
            self.num_told += 1
            self._events.append(record)
            self._changed.set()

    def report(self, events: Iterable[Event]) -> None:
        """Record events that the session returned."""
        events = tuple(events)
        for event in events:
            self.record(event)
        if events and self._watcher is not None:
            self._watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """From now on, call `watcher` after every change of the conversation that has events, and when it is closed."""
        self._watcher = watcher
        watcher()

    # ------------------------------------------------------------------ state

    @property
    def floor(self) -> Floor:
        """Who has the floor."""
        return self._duplex.floor

    @property
    def is_listening(self) -> bool:
        """Whether there are words that have been neither answered nor dropped."""
        return self.session.input_text is not None

    @property
    def is_protected(self) -> bool:
        """Whether the running answer may not be interrupted by words."""
        running = self.session.running
        return running is not None and running.interruptible is not Interruptible.YES

    # ------------------------------------------------------------------ commands

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> None:
        """See `Session.hear`. Like every command, it raises `UsageError` when the session is closed.

        Raises:
            EngineError: the session failed and is over.
        """
        self._command(self.session.hear, text, utterance=utterance, final=final)

    def hear_sound(self, evidence: Sequence[VirtualId], *, utterance: str = "user") -> None:
        """See `Session.hear_sound`."""
        self._command(self.session.hear_sound, evidence, utterance=utterance)

    def retract(self, utterance: str) -> None:
        """See `Session.retract`. Raises `UsageError` if this is not a duplex session."""
        self._command(self._duplex.retract, utterance)

    def heard(self, position: int, *, answer: int | None = None) -> None:
        """See `Session.heard`. For players of answers; not together with `words_per_second`."""
        if self._playback is not None:
            raise UsageError("with words_per_second, the clock decides what has been heard; use one of them")
        self._command(self.session.heard, position, answer=answer)

    def take_reports(self) -> None:
        """From now on, calls of `heard` report what has been heard, instead of the playback clock."""
        if self._playback is not None:
            self._playback.is_paused, self._playback = True, None

    def hear_out(self, position: int | None = None) -> None:
        """Count the running answer as heard up to `position` (None: all that was said), regardless of the clock."""
        running = self.session.running
        if running is not None:
            until = running.num_said if position is None else min(position, running.num_said)
            self._command(self.session.heard, until, answer=running.id)

    def edit(
        self, history: Sequence[Turn], *, template: Template | None = None, laid_out: Sequence[Token] | None = None
    ) -> None:
        """See `Session.edit`. Raises `UsageError` for more than a history if this is not a duplex session."""
        if template is None and laid_out is None:
            self._command(self.session.edit, history)
        else:
            self._command(self._duplex.edit, history, template=template, laid_out=laid_out)

    def respond(self) -> None:
        """See `Session.respond`."""
        self._command(self.session.respond)

    def stop(self) -> None:
        """See `Session.stop`."""
        self._command(self.session.stop)

    def resume(self) -> None:
        """See `Session.resume`."""
        self._command(self.session.resume)

    def say(self, text: str, *, answer: int) -> None:
        """See `Session.say`."""
        self._command(self._duplex.say, text, answer=answer)

    def finish(self, *, answer: int, reason: str = "stop") -> None:
        """See `Session.finish`."""
        self._command(self._duplex.finish, answer=answer, reason=reason)

    def fail_answer(self, reason: str, *, answer: int) -> None:
        """See `Session.fail`."""
        self._command(self._duplex.fail, reason, answer=answer)

    def notice(self, text: str, *, answer: int) -> None:
        """See `Session.notice`."""
        self._command(self._duplex.notice, text, answer=answer)

    def protect(self, interruptible: Interruptible) -> None:
        """See `Session.protect`. Raises `UsageError` if this is not a duplex session."""
        self._command(self._duplex.protect, interruptible)

    def sample(self, sampling: Sampling) -> None:
        """See `Session.sample`."""
        self._command(self._duplex.sample, sampling)

    def limit(self, max_answer: int) -> None:
        """See `Session.limit`. Raises `UsageError` if this is not a duplex session."""
        self._command(self._duplex.limit, max_answer)

    def adjust(self, policy: Policy) -> None:
        """See `Session.adjust`. Raises `UsageError` if this is not a duplex session."""
        self._command(self._duplex.adjust, policy)

    def pause(self, is_paused: bool) -> None:
        """Stop or continue the playback clock. Has no effect without `words_per_second`."""
        if self._playback is not None:
            self._playback.is_paused = is_paused
            self._wake()

    def close(self) -> None:
        """End the session at once. What it holds is freed now, or after the pass that is running."""
        if self.is_open:
            self.is_open = False
            self._changed.set()
            self._leave(self)
            if self._watcher is not None:
                self._watcher()

    async def aclose(self) -> None:
        """As `close`; a conversation on a server (`duologue.client.Talk`) has the same method."""
        self.close()

    # ------------------------------------------------------------------ for the engine

    def fail(self, failure: DuologueError) -> None:
        """Close the session because of `failure`, which readers of events and later commands receive."""
        if self.is_open:
            _release_frames(failure)
            self._failure = failure
            self.close()

    def _raise_failure(self) -> None:
        if self._failure is not None:  # a copy: the traceback of the original would refer to this handle
            raise copy.copy(self._failure) from self._failure.__cause__

    def advance(self, now: float) -> None:
        """Set the session's time to the engine's `now`, in seconds."""
        self.report(self.session.advance(max(self.session.now, now - self._began)))
        if self._playback is not None:
            self.report(self._playback.advance())

    def due(self, now: float) -> float | None:
        """The engine's time at which `advance` will change something; None if only words or commands will."""
        deadline = self.session.next_deadline
        due = None if deadline is None else deadline + self._began
        if self._playback is not None and self._playback.is_hearing:
            return now + playback_clock.STEP_S if due is None else min(due, now + playback_clock.STEP_S)
        return due

    @property
    def _duplex(self) -> Session:
        if not isinstance(self.session, Session):
            raise UsageError(f"a session of kind {type(self.session).__name__} does not support this command")
        return self.session

    def _command(self, command: Callable[_P, list[Event] | None], *args: _P.args, **more: _P.kwargs) -> None:
        self._raise_failure()
        if not self.is_open:
            raise UsageError("the session is closed; open another one with Engine.open")
        self.advance(self._clock())
        self.report(command(*args, **more) or ())
        self._wake()


def _release_frames(error: BaseException | None) -> None:
    """Turn the tracebacks of `error` and its causes into notes.

    Their frames refer to the handle that keeps the error. Such a cycle would keep a closed session in memory.
    """
    while error is not None:
        if error.__traceback__ is not None:
            error.add_note("".join(traceback.format_tb(error.__traceback__)))
            error.__traceback__ = None
        error = error.__cause__
