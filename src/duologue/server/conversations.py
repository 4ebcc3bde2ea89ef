"""All conversations of a server: admitting, finding and closing them."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from duologue.core.trace import Sink
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.errors import ContextOverflow, EngineFull, TemplateError
from duologue.models.model import Model
from duologue.server.config import ServerConfig
from duologue.server.conversation import Conversation
from duologue.server.record import Recorded, Recorder, read_record, record_path
from duologue.server.settings import ConversationSettings
from duologue.server.voice import Voices
from duologue.types import Role, Turn

_SWEEP_S = 1.0
log = logging.getLogger("duologue.server")


class Conversations:
    """Opens, finds and closes conversations on one engine.

    `sink` takes the events and passes of all of them. While `is_draining`, no new ones are admitted.
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
        self._folder = Path(config.record) if config.record else None

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Conversation]:
        return iter(tuple(self._open.values()))

    def open(
        self, settings: ConversationSettings, history: tuple[Turn, ...] = (), *, keeps_record: bool = True
    ) -> Conversation:
        """Open a conversation. If there is no room, the one whose client has been away for longest is closed.

        Raises:
            EngineFull: there is no room, or the server is shutting down.
            ContextOverflow, TemplateError: the model cannot take the history or the system prompt.
        """
        name, model = secrets.token_urlsafe(18), self.model.name
        handle = self._admit(settings, history)
        recorder = None
        if keeps_record:
            recorder = self._recorder(
                lambda folder: Recorder.open_new(
                    folder, name, model=model, settings=settings.as_json(), history=history
                )
            )
        return self._add(name, settings, handle, recorder)

    def find(self, name: str) -> Conversation | None:
        """The conversation of that name, whether it is open or has a record; None if there is none.

        Raises:
            BadData: its record is damaged.
            EngineFull, ContextOverflow: see `open`.
            UsageError: this cannot be a name.
        """
        if (found := self._open.get(name)) is not None:
            return found
        if self._folder is None or not record_path(self._folder, name).is_file():
            return None
        return self._take_up(read_record(record_path(self._folder, name)))

    async def sweep(self) -> None:
        """Close, for ever, the conversations to which nobody came back."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            before = self.engine.now() - self.config.keep
            for talk in self:
                if talk.detached_at is not None and talk.detached_at < before:
                    talk.close("abandoned")

    async def drain(self) -> None:
        """Admit no new ones; return when all answers have been heard, or the time for that is over."""
        self.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain):
                while any(talk.owner is not None and talk.is_speaking for talk in self):
                    await asyncio.sleep(0.05)
        for talk in self:
            talk.close("shutdown")

    def _admit(self, settings: ConversationSettings, history: tuple[Turn, ...], now: float = 0.0) -> Handle:
        if self.is_draining:
            self.num_refused += 1
            raise EngineFull("the server is shutting down; connect again in a moment")
        session = settings.session(self.model, self.config, history)
        session.advance(now)
        while True:
            try:
                if len(self._open) >= self.config.max_sessions:
                    raise EngineFull(f"all {self.config.max_sessions} places are taken; try again later")
                return self.engine.open(session, words_per_second=settings.words_per_second, sink=self._sink)
            except EngineFull:
                away = [talk for talk in self if talk.detached_at is not None]
                if not away:
                    self.num_refused += 1
                    raise
                min(away, key=lambda talk: talk.detached_at or 0.0).close("given up for others")

    def _add(
        self, name: str, settings: ConversationSettings, handle: Handle, recorder: Recorder | None
    ) -> Conversation:
        talk = Conversation(name, settings, handle, recorder=recorder, closed=lambda: self._open.pop(name, None))
        self._open[name] = talk
        log.info("opened", extra={"session": name[:6], "open": len(self._open)})
        return talk

    def _recorder(self, make: Callable[[Path], Recorder]) -> Recorder | None:
        """A recorder, if records are kept and it can be made: a folder that cannot be written stops no conversation."""
        try:
            return None if self._folder is None else make(self._folder)
        except OSError as error:
            log.error("no record is kept", extra={"error": str(error)})
            return None

    def _take_up(self, recorded: Recorded) -> Conversation:
        settings, ledger = ConversationSettings.from_json(recorded.settings), recorded.ledger
        handle = self._admit(settings, (), recorded.events[-1].at if recorded.events else 0.0)
        recorder = self._recorder(lambda folder: Recorder.go_on(folder, recorded))
        talk = self._add(recorded.session, settings, handle, recorder)
        _go_on_from(talk.handle, ledger.history)
        for words in ledger.unanswered.values():
            talk.handle.hear(words.text, utterance=words.utterance, final=words.final)
        return talk


def _go_on_from(handle: Handle, history: list[Turn]) -> None:
    """Set the history. If it leaves no room for a turn, the oldest exchanges are left out."""
    if not history:
        return
    while True:
        try:
            handle.edit(history)
            return
        except TemplateError:
            # a resumed answer is two turns of the assistant in the record, and the template requires one
            merged = _merged(history)
            if merged == history:
                raise
            history = merged
        except ContextOverflow:
            later = (i for i, turn in enumerate(history) if i and turn.role is Role.USER)
            history = history[next(later, len(history)) :]


def _merged(history: list[Turn]) -> list[Turn]:
    """`history` with successive turns of one side joined."""
    merged: list[Turn] = []
    for turn in history:
        if merged and merged[-1].role is turn.role:
            turn = Turn(turn.role, merged.pop().text + turn.text)
        merged.append(turn)
    return merged
