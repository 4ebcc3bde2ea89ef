"""Gives the answers of conversations that a listener decides: asks an endpoint, and says what it answers.

The session remains in charge. After every change of it, the speaker compares what is being asked with the answer that
is running: it asks for the parts that are missing, and closes the request of an answer that was cut or taken back.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from duologue.core.answer import Answer
from duologue.core.session import Session
from duologue.engine.handle import Handle
from duologue.errors import DuologueError, RemoteError
from duologue.speakers.completion import open_client, parts
from duologue.speakers.endpoint import Endpoint, Question
from duologue.speakers.stream import Part

log = logging.getLogger("duologue.speakers")
logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every address


@dataclass(slots=True)
class Totals:
    """What a speaker has done so far. Tokens are the parts in which answers arrived."""

    requests: int = 0
    failures: int = 0  # answers that could not be given, or not all of them
    tokens: int = 0  # of answers
    tokens_thrown_away: int = 0  # of those, tokens of prepared answers of which nothing was heard


class RemoteSpeaker:
    """Answers in the conversations that are attached to it. Used in one event loop.

    Args:
        endpoint: what answers.
        system: the system prompt of conversations that have none of their own.
        early_tokens: an answer is prepared before it is certain that the user has finished. When so many tokens of
            such answers were thrown away in one turn, the next one is asked for only when it may be heard; 0: always.
    """

    def __init__(self, endpoint: Endpoint, *, early_tokens: int = 256, system: str | None = None) -> None:
        self.endpoint = endpoint
        self.system = system
        self.totals = Totals()
        self._early_tokens = early_tokens
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: httpx.AsyncClient | None = None

    def attach(self, handle: Handle) -> None:
        """Answer in the conversation of `handle` until it is closed."""
        conversation = _Conversation(handle, self)
        handle.watch(conversation.changed)

    async def aclose(self) -> None:
        """Close the connections. No conversation may be attached any more."""
        client, self._client = self._client, None
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if client is not None:
            await client.aclose()

    def ask(self, session: Session, *, notice: Callable[[str], None]) -> Any:
        """The parts of the running answer from where it is now: an asynchronous generator."""
        if self._client is None:
            self._client = open_client(self.endpoint)
        self.totals.requests += 1
        turns, begun = session.question
        body = Question(session.template.system, turns, begun).body(self.endpoint, session.config)
        if begun and not self.endpoint.continues:
            notice("the speaker cannot be given the beginning of an answer, so it is asked in words to go on")
        return parts(self._client, self.endpoint, body, notice=notice)

    def start(self, speaking: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `speaking`; `aclose` waits for its end."""
        task = asyncio.create_task(speaking, name="duologue-speaker")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def may_prepare(self, num_thrown_away: int) -> bool:
        """Whether an answer may be asked for before it can be heard, after so many tokens of this turn were wasted."""
        return num_thrown_away < self._early_tokens


class _Conversation:
    """One conversation: at most one request, which is that of the running answer."""

    def __init__(self, handle: Handle, speaker: RemoteSpeaker) -> None:
        self._handle = handle
        self._speaker = speaker
        self._answer: Answer | None = None  # that is being asked for
        self._task: asyncio.Task[None] | None = None
        self._num_tokens = 0  # of the request
        self._num_thrown_away = 0  # since something was heard last

    def changed(self) -> None:
        """Bring the request in line with the session."""
        wanted = _wanted(self._handle)
        before = self._answer
        if before is not None and before is not wanted:
            self._leave(before)
        if wanted is not None and wanted.is_released:
            self._num_thrown_away = 0
        may_ask = wanted is not None and (wanted.is_released or self._speaker.may_prepare(self._num_thrown_away))
        if wanted is not None and wanted is not self._answer and may_ask:
            self._answer, self._num_tokens = wanted, 0
            self._task = self._speaker.start(self._speak(wanted))

    def _leave(self, answer: Answer) -> None:
        """Close the request for `answer`, unless it has ended."""
        task, self._answer, self._task = self._task, None, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        if not answer.is_released and self._handle.session.running is not answer:
            self._speaker.totals.tokens_thrown_away += self._num_tokens
            self._num_thrown_away += max(1, self._num_tokens)

    async def _speak(self, answer: Answer) -> None:
        handle, totals = self._handle, self._speaker.totals
        try:
            session = handle.session
            assert isinstance(session, Session), "its answers come from elsewhere"
            notice = partial(self._notice, answer)
            async with aclosing(self._speaker.ask(session, notice=notice)) as answered:
                async for part in answered:
                    totals.tokens += 1
                    self._num_tokens += 1
                    say(handle, answer, part)
                    if self._answer is not answer:
                        return
        except RemoteError as error:
            self._fail(answer, str(error))
        except DuologueError:
            if handle.is_open:
                raise
        except Exception as error:
            log.exception("the speaker failed")
            self._fail(answer, f"the speaker failed: {type(error).__name__}")

    def _notice(self, answer: Answer, text: str) -> None:
        """Pass `text` on. The session also takes note of the time then, which may end the answer and its task."""
        self._handle.notice(text, answer=answer.id)
        if self._answer is not answer:
            raise asyncio.CancelledError

    def _fail(self, answer: Answer, reason: str) -> None:
        self._speaker.totals.failures += 1
        if self._handle.is_open:
            self._handle.fail_answer(reason, answer=answer.id)


def say(handle: Handle, answer: Answer, part: Part) -> None:
    """Pass `part` of `answer` on to the conversation."""
    if part.text:
        handle.say(part.text, answer=answer.id)
    if part.reason is not None and not answer.finished:
        handle.finish(answer=answer.id, reason=part.reason)


class SteppedSpeaker:
    """The same for one conversation on a virtual clock: the caller fetches the parts of answers one by one.

    Args:
        say: passes a part of an answer on to the conversation.
    """

    def __init__(self, speaker: RemoteSpeaker, *, say: Callable[[Handle, Answer, Part], None] = say) -> None:
        self._speaker = speaker
        self._say = say
        self._loop = asyncio.new_event_loop()
        self._answer: Answer | None = None
        self._parts: Any = None

    def step(self, handle: Handle) -> bool:
        """Say the next part of the running answer, if any of it is still to come. Returns whether it did."""
        wanted = _wanted(handle)
        if wanted is not self._answer:
            self._leave()
        if wanted is None:
            return False
        if self._parts is None:
            session = handle.session
            assert isinstance(session, Session), "its answers come from elsewhere"
            self._answer = wanted
            self._parts = self._speaker.ask(session, notice=partial(handle.notice, answer=wanted.id))
        try:
            part = self._loop.run_until_complete(anext(self._parts))
        except RemoteError as error:
            handle.fail_answer(str(error), answer=wanted.id)
        else:
            self._speaker.totals.tokens += 1
            self._say(handle, wanted, part)
        return True

    def close(self) -> None:
        """Close the request and the connections."""
        self._leave()
        self._loop.run_until_complete(self._speaker.aclose())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _leave(self) -> None:
        before, self._parts, self._answer = self._parts, None, None
        if before is not None:
            self._loop.run_until_complete(before.aclose())


def _wanted(handle: Handle) -> Answer | None:
    """The running answer of a conversation, if it is not complete."""
    running = handle.session.running if handle.is_open else None
    return running if running is not None and not running.finished else None
