"""All conversations of a server: admits, finds and closes them."""

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Iterator
from typing import Any

from duologue.core.session import Session
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.engine.trace import Sink
from duologue.errors import EngineError, EngineFull
from duologue.models.model import Model
from duologue.server.config import ServerConfig
from duologue.server.conversation import Conversation
from duologue.server.long_texts import PER_TURN, LongTexts
from duologue.server.resuming import fit
from duologue.server.settings import ConversationSettings
from duologue.server.store import Recorder, RecordStore
from duologue.server.voice import Voices
from duologue.types import Turn

ROUTE_LENGTH = 8  # characters at the beginning of a name, by which a fleet routes connections
_SWEEP_S = 1.0
_MOST_BYTES = 1 << 25  # of the events kept for all conversations
log = logging.getLogger("duologue.server")


class Conversations:
    """Opens, finds and closes conversations on one engine.

    `sink` receives the events and passes of all of them. While `is_draining`, no new ones are admitted.
    """

    def __init__(
        self,
        model: Model,
        engine: Engine,
        config: ServerConfig,
        *,
        sink: Sink,
        voices: Voices | None = None,
        store: RecordStore | None = None,
    ) -> None:
        self.model = model
        self.voices = voices  # None: no conversation has a voice
        self.engine = engine
        self.config = config
        self.long_texts = LongTexts()
        self.is_draining = False
        self.num_refused = 0
        self._sink = sink
        self._open: dict[str, Conversation] = {}
        self._resuming: dict[str, asyncio.Task[Conversation]] = {}
        self._opening: list[str] = []  # clients of those that are admitted, but not yet in `_open`
        self._store = store  # None: no records are kept

    def __len__(self) -> int:
        return len(self._open)

    @property
    def most_turns(self) -> int:
        """Maximum number of turns in a history. More would certainly not fit into a context."""
        return self.model.max_length // 2

    def __iter__(self) -> Iterator[Conversation]:
        return iter(tuple(self._open.values()))

    async def open(
        self,
        settings: ConversationSettings,
        history: tuple[Turn, ...] = (),
        *,
        client: str,
        keeps_record: bool = True,
        route: str = "",
        **more: Any,
    ) -> Conversation:
        """Open a conversation of `client`. If there is no room, the one disconnected longest is closed: of all, or if
        the client has as many as it may, of its own.

        `route` is the beginning of its name, if that is possible.
        `more` are further fields of the session's configuration.

        Raises:
            EngineFull: there is no room, or the server is shutting down.
            ContextOverflow, TemplateError: the model cannot take the history or the system prompt.
        """
        size = sum(len(turn.text) + PER_TURN for turn in history) + len(settings.system or "")
        run = self.long_texts.run
        session = await run(client, size, settings.session, self.model, self.config, history, **more)
        name = _new_name(route)
        handle = self._admit(settings, session, client)
        recorder = None
        self._opening.append(client)
        try:
            if keeps_record and self._store is not None:
                row = settings.as_json()
                recorder = await self._store.create(name, model=self.model.name, settings=row, history=history)
        except OSError as error:  # the conversation continues even if the store cannot be written
            log.error("no record is kept", extra={"error": str(error)})
        except BaseException:
            handle.close()
            raise
        finally:
            self._opening.remove(client)
        if self.is_draining:  # meanwhile
            handle.close()
            if recorder is not None:
                recorder.close()
            self._refuse_while_draining()
        return self._add(name, client, settings, handle, recorder)

    async def find(self, name: str, client: str) -> Conversation | None:
        """The conversation of that name, if it is open or has a record, which `client` resumes; otherwise None.

        Raises:
            BadData: its record is damaged.
            EngineFull: there is no room, or another server holds it.
            ContextOverflow: see `open`.
            UsageError: this is not a valid name.
        """
        if (found := self._open.get(name)) is not None or self._store is None:
            return found
        try:
            if not await self._store.has(name):
                return None
        except OSError as error:
            raise EngineError(f"the record cannot be read: {error}") from error
        if (found := self._open.get(name)) is not None:  # resumed meanwhile
            return found
        if name not in self._resuming:
            task = self._resume(self._store, name, client)
            self._resuming[name] = asyncio.create_task(task, name="duologue-resume")
            self._resuming[name].add_done_callback(lambda task: self._resumed(name, task))
        return await asyncio.shield(self._resuming[name])  # other callers may wait for it, too

    def _resumed(self, name: str, task: asyncio.Task[Conversation]) -> None:
        del self._resuming[name]
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; nobody may wait any more

    async def _resume(self, store: RecordStore, name: str, client: str) -> Conversation:
        try:
            state, recorder = await store.resume(name)
        except OSError as error:
            raise EngineError(f"the record cannot be written: {error}") from error
        conversation = None
        try:
            settings = ConversationSettings.from_json(state.settings)
            run, size = self.long_texts.run, len(settings.system or "")
            session = await run(client, size, settings.session, self.model, self.config)
            size = sum(len(turn.text) + PER_TURN for turn in state.history)
            turns, laid_out = await run(client, size, fit, session, state.history)
            session.advance(state.now)
            handle = self._admit(settings, session, client)
            conversation = self._add(name, client, settings, handle, recorder)
            conversation.go_on(state.taken)
            conversation.detached_at = self.engine.now()  # until somebody attaches
            if turns:
                conversation.handle.edit(turns, laid_out=laid_out)
            for words in state.unanswered:
                conversation.handle.hear(words.text, utterance=words.utterance, final=words.final)
            return conversation
        except BaseException:
            if conversation is not None:
                conversation.close("failed")
            else:
                recorder.close()
            raise

    async def sweep(self) -> None:
        """Forever: close conversations to which no client has returned, and renew the leases of the others."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._close_abandoned(self.engine.now() - self.config.keep)
            await self._renew_leases()

    def _close_abandoned(self, before: float) -> None:
        for conversation in self:
            if conversation.detached_at is not None and conversation.detached_at < before:
                conversation.close("abandoned")

    async def _renew_leases(self) -> None:
        for conversation in self:
            await conversation.renew()

    async def drain(self) -> None:
        """Stop admitting conversations; return when all answers have been heard, or after the time limit.

        A conversation with a record, which another server can go on with, is closed as soon as nothing is being said.
        """
        self.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain):
                while any(conversation.detached_at is None and conversation.is_speaking for conversation in self):
                    for conversation in self:
                        if conversation.has_record and not conversation.is_speaking:
                            conversation.close("shutdown")
                    await asyncio.sleep(0.05)
        for conversation in self:
            conversation.close("shutdown")

    async def aclose(self) -> None:
        """Close all conversations and the store of their records."""
        self.is_draining = True
        for conversation in self:
            conversation.close("shutdown")
        if self._store is not None:
            await self._store.aclose()

    def _admit(self, settings: ConversationSettings, session: Session, client: str) -> Handle:
        self._refuse_while_draining()
        while True:
            rivals = list(self)
            try:
                own = [conversation for conversation in rivals if conversation.client == client]
                num_own = len(own) + self._opening.count(client)
                if 0 < self.config.max_per_client <= num_own:
                    rivals = own
                    raise EngineFull(f"this client has as many conversations as it may, {num_own}; end one first")
                if len(self._open) + len(self._opening) >= self.config.max_sessions:
                    raise EngineFull(f"all {self.config.max_sessions} slots are taken; try again later")
                return self.engine.open(session, words_per_second=settings.words_per_second, sink=self._sink)
            except EngineFull:
                away = [conversation for conversation in rivals if conversation.detached_at is not None]
                if not away:
                    self.num_refused += 1
                    raise
                min(away, key=lambda conversation: conversation.detached_at or 0.0).close("given up for others")

    def _refuse_while_draining(self) -> None:
        if self.is_draining:
            self.num_refused += 1
            raise EngineFull("the server is shutting down; connect again in a moment")

    def _add(
        self, name: str, client: str, settings: ConversationSettings, handle: Handle, recorder: Recorder | None
    ) -> Conversation:
        conversation = Conversation(
            name,
            client,
            settings,
            handle,
            recorder=recorder,
            closed=lambda: self._open.pop(name, None),
            most_bytes=_MOST_BYTES // self.config.max_sessions,
            logs_text=self.config.log_text,
        )
        self._open[name] = conversation
        log.info("opened", extra={"session": name[:6], "open": len(self._open)})
        return conversation


def _new_name(route: str) -> str:
    """A name that cannot be guessed. What comes after its route is secret."""
    begin = route if re.fullmatch(rf"[A-Za-z0-9_-]{{{ROUTE_LENGTH}}}", route) else secrets.token_urlsafe(6)
    return begin + secrets.token_urlsafe(18)
