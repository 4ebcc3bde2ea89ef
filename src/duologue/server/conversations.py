"""All conversations of a server: admits, finds and closes them."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from duologue.core.session import Session
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.engine.trace import Sink
from duologue.errors import EngineError, EngineFull
from duologue.models.model import Model
from duologue.server.config import ServerConfig
from duologue.server.conversation import Conversation
from duologue.server.lease import RENEWAL_S, Lease
from duologue.server.record import Recorder, is_private, record_path
from duologue.server.resuming import fit, read_state
from duologue.server.settings import ConversationSettings
from duologue.server.voice import Voices
from duologue.types import Turn

_SWEEP_S = 1.0
_LONG = 4000  # characters; tokenising them takes some milliseconds
PER_TURN = 20  # characters that take as long to tokenise as the markup of a turn
_MOST_BYTES = 1 << 25  # of the events kept for all conversations
P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("duologue.server")


class Conversations:
    """Opens, finds and closes conversations on one engine.

    `sink` receives the events and passes of all of them. While `is_draining`, no new ones are admitted.
    """

    def __init__(
        self, model: Model, engine: Engine, config: ServerConfig, *, sink: Sink, voices: Voices | None = None
    ) -> None:
        self.model = model
        self.voices = voices  # None: no conversation has a voice
        self.engine = engine
        self.config = config
        self.is_draining = False
        self.num_refused = 0
        self._sink = sink
        self._open: dict[str, Conversation] = {}
        self._resuming: dict[str, asyncio.Task[Conversation]] = {}
        self._folder = Path(config.record) if config.record else None
        if self._folder is not None and self._folder.is_dir() and not is_private(self._folder):
            log.warning(
                "other users can read the folder of records, and resume conversations; chmod 700",
                extra={"folder": str(self._folder)},
            )

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
        **more: Any,
    ) -> Conversation:
        """Open a conversation of `client`. If there is no room, the one disconnected longest is closed: of all, or if
        the client has as many as it may, of its own.

        `more` are further fields of the session's configuration.

        Raises:
            EngineFull: there is no room, or the server is shutting down.
            ContextOverflow, TemplateError: the model cannot take the history or the system prompt.
        """
        size = sum(len(turn.text) + PER_TURN for turn in history) + len(settings.system or "")
        session = await off_loop(size, settings.session, self.model, self.config, history, **more)
        handle = self._admit(settings, session, client)
        name, recorder = secrets.token_urlsafe(18), None
        if keeps_record and self._folder is not None:
            model, row = self.model.name, settings.as_json()
            try:
                recorder = Recorder.open_new(self._folder, name, model=model, settings=row, history=history)
            except OSError as error:  # the conversation continues even if the folder is not writable
                log.error("no record is kept", extra={"error": str(error)})
        return self._add(name, client, settings, handle, recorder)

    async def find(self, name: str, client: str) -> Conversation | None:
        """The conversation of that name, if it is open or has a record, which `client` resumes; otherwise None.

        Raises:
            BadData: its record is damaged.
            EngineFull: there is no room, or another server holds it.
            ContextOverflow: see `open`.
            UsageError: this is not a valid name.
        """
        if (found := self._open.get(name)) is not None or self._folder is None:
            return found
        path = record_path(self._folder, name)
        if not path.is_file() or path.stat().st_mtime < time.time() - self.config.record_expiry:
            return None
        if name not in self._resuming:
            self._resuming[name] = asyncio.create_task(self._resume(path, client), name="duologue-resume")
            self._resuming[name].add_done_callback(lambda task: self._resumed(name, task))
        return await asyncio.shield(self._resuming[name])  # other callers may wait for it, too

    def _resumed(self, name: str, task: asyncio.Task[Conversation]) -> None:
        del self._resuming[name]
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; nobody may wait any more

    async def _resume(self, path: Path, client: str) -> Conversation:
        try:
            lease = await asyncio.to_thread(Lease.acquire, path)
        except OSError as error:
            raise EngineError(f"the record cannot be written: {error}") from error
        conversation, recorder = None, None
        try:
            state = await asyncio.to_thread(read_state, path)
            settings = ConversationSettings.from_json(state.settings)
            session = await off_loop(len(settings.system or ""), settings.session, self.model, self.config)
            turns, laid_out = await asyncio.to_thread(fit, session, state.history)
            recorder = await asyncio.to_thread(
                Recorder.go_on, path, lease, num_events=state.num_events, size=state.size
            )
            session.advance(state.now)
            handle = self._admit(settings, session, client)
            conversation = self._add(path.stem, client, settings, handle, recorder)
            conversation.detached_at = self.engine.now()  # until somebody attaches
            if turns:
                conversation.handle.edit(turns, laid_out=laid_out)
            for words in state.unanswered:
                conversation.handle.hear(words.text, utterance=words.utterance, final=words.final)
            return conversation
        except BaseException as error:
            if conversation is not None:
                conversation.close("failed")
            elif recorder is not None:
                recorder.stop()
            lease.release()
            if isinstance(error, OSError):
                raise EngineError(f"the record cannot be written: {error}") from error
            raise

    async def sweep(self) -> None:
        """Forever: close conversations to which no client has returned, and renew the leases of the others."""
        renewed_at = self.engine.now()
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._close_abandoned(self.engine.now() - self.config.keep)
            if self.engine.now() >= renewed_at + RENEWAL_S:
                renewed_at = self.engine.now()
                await self._renew_leases()

    def _close_abandoned(self, before: float) -> None:
        for conversation in self:
            if conversation.detached_at is not None and conversation.detached_at < before:
                conversation.close("abandoned")

    async def _renew_leases(self) -> None:
        leases = {conversation.id: conversation.lease for conversation in self if conversation.lease is not None}
        for name, lease in leases.items():
            if not await asyncio.to_thread(lease.renew) and (conversation := self._open.get(name)) is not None:
                conversation.close("another server took it over")

    async def drain(self) -> None:
        """Stop admitting conversations; return when all answers have been heard, or after the time limit."""
        self.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain):
                while any(conversation.owner is not None and conversation.is_speaking for conversation in self):
                    await asyncio.sleep(0.05)
        for conversation in self:
            conversation.close("shutdown")

    def _admit(self, settings: ConversationSettings, session: Session, client: str) -> Handle:
        if self.is_draining:
            self.num_refused += 1
            raise EngineFull("the server is shutting down; connect again in a moment")
        while True:
            rivals = list(self)
            try:
                own = [conversation for conversation in rivals if conversation.client == client]
                if 0 < self.config.max_per_client <= len(own):
                    rivals = own
                    raise EngineFull(f"this client has as many conversations as it may, {len(own)}; end one first")
                if len(self._open) >= self.config.max_sessions:
                    raise EngineFull(f"all {self.config.max_sessions} slots are taken; try again later")
                return self.engine.open(session, words_per_second=settings.words_per_second, sink=self._sink)
            except EngineFull:
                away = [conversation for conversation in rivals if conversation.detached_at is not None]
                if not away:
                    self.num_refused += 1
                    raise
                min(away, key=lambda conversation: conversation.detached_at or 0.0).close("given up for others")

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


async def off_loop(size: int, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run `call`, in a thread if `size`, the number of characters to tokenise, is large."""
    return call(*args, **options) if size < _LONG else await asyncio.to_thread(call, *args, **options)
