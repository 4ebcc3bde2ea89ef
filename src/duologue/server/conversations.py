"""All conversations of a server: who is let in, who is found again, and who has been away for too long."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from duologue.core.trace import Sink
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.errors import ContextOverflow, EngineFull, TemplateError
from duologue.models.model import Model
from duologue.server.config import ServerConfig
from duologue.server.conversation import Conversation
from duologue.server.duplex.settings import Settings
from duologue.server.record import Recorded, Recorder, read_record, record_path
from duologue.types import Role, Turn

if TYPE_CHECKING:
    from duologue.server.duplex.voice import Voices

_SWEEP_S = 1.0
log = logging.getLogger("duologue.server")


class Conversations:
    """Opens, finds and closes conversations on one engine.

    `sink` takes the events and passes of all of them. `is_draining` says that no new ones are taken.
    """

    def __init__(
        self, model: Model, engine: Engine, config: ServerConfig, *, sink: Sink, voices: "Voices | None" = None
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

    def open(self, settings: Settings, history: tuple[Turn, ...] = (), *, keeps_record: bool = True) -> Conversation:
        """A new conversation. If there is no room, the one whose client has been away for longest has to go.

        Raises:
            EngineFull: there is no room, or the server is about to end.
            ContextOverflow, TemplateError: the model cannot take the history or the system prompt.
        """
        name = secrets.token_urlsafe(18)
        return self._admit(
            name, settings, history, self._new_recorder(name, settings, history) if keeps_record else None
        )

    def find(self, name: str) -> Conversation | None:
        """The conversation of that name: one that is open, or one that a record tells of; None if there is neither.

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
        """For ever: close what nobody came back to."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            before = self.engine.now() - self.config.keep
            for talk in self:
                if talk.detached_at is not None and talk.detached_at < before:
                    talk.close("abandoned")

    async def drain(self) -> None:
        """Take no new ones; end when all answers have been heard, or the time for that is over."""
        self.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain):
                while any(self._is_speaking(talk) for talk in self):
                    await asyncio.sleep(0.05)
        for talk in self:
            talk.close("shutdown")

    def _is_speaking(self, talk: Conversation) -> bool:
        return talk.owner is not None and talk.handle.session.running is not None

    def _admit(
        self,
        name: str,
        settings: Settings,
        history: tuple[Turn, ...],
        recorder: Callable[[], Recorder] | None,
        now: float = 0,
    ) -> Conversation:
        if self.is_draining:
            self.num_refused += 1
            raise EngineFull("the server is about to end; connect again in a moment")
        session = settings.session(self.model, self.config, history)
        if now:
            session.advance(now)
        while True:
            try:
                if len(self._open) >= self.config.max_sessions:
                    raise EngineFull(f"all {self.config.max_sessions} places are taken; try again later")
                handle = self.engine.open(session, words_per_second=settings.words_per_second, sink=self._sink)
                break
            except EngineFull:
                if not self._make_room():
                    self.num_refused += 1
                    raise
        talk = Conversation(name, settings, handle, recorder=_made(recorder), closed=self._forget)
        self._open[name] = talk
        log.info("opened", extra={"session": name[:6], "open": len(self._open)})
        return talk

    def _make_room(self) -> bool:
        away = [talk for talk in self if talk.detached_at is not None]
        if not away:
            return False
        min(away, key=lambda talk: talk.detached_at or 0.0).close("given up for others")
        return True

    def _forget(self, talk: Conversation) -> None:
        self._open.pop(talk.id, None)

    def _new_recorder(self, name: str, settings: Settings, history: tuple[Turn, ...]) -> Callable[[], Recorder] | None:
        folder = self._folder
        if folder is None:
            return None
        return lambda: Recorder.open_new(
            folder, name, model=self.model.name, settings=settings.as_json(), history=history
        )

    def _take_up(self, recorded: Recorded) -> Conversation:
        folder = self._folder
        assert folder is not None, "there was a record in it"
        settings, ledger = Settings.from_json(recorded.settings), recorded.ledger
        now = recorded.events[-1].at if recorded.events else 0.0
        talk = self._admit(recorded.session, settings, (), lambda: Recorder.go_on(folder, recorded), now)
        _go_on_from(talk.handle, ledger.history)
        for words in ledger.unanswered.values():
            talk.handle.hear(words.text, utterance=words.utterance, final=words.final)
        return talk


def _go_on_from(handle: Handle, history: list[Turn]) -> None:
    """Let `history` be what was said. If that leaves no room for a turn, the oldest exchanges are left out."""
    if not history:
        return
    while True:
        try:
            handle.edit(history)
            return
        except TemplateError:
            # an answer that was resumed is two turns of the assistant, and the template wants one
            merged = _merged(history)
            if merged == history:
                raise
            history = merged
        except ContextOverflow:
            later = (i for i, turn in enumerate(history) if i and turn.role is Role.USER)
            history = history[next(later, len(history)) :]


def _merged(history: list[Turn]) -> list[Turn]:
    """With the turns that one side had one after the other as one."""
    merged: list[Turn] = []
    for turn in history:
        if merged and merged[-1].role is turn.role:
            turn = Turn(turn.role, merged.pop().text + turn.text)
        merged.append(turn)
    return merged


def _made(recorder: Callable[[], Recorder] | None) -> Recorder | None:
    """The recorder, if it can be made: a folder that cannot be written must not keep anybody from talking."""
    try:
        return None if recorder is None else recorder()
    except OSError as error:
        log.error("no record is kept", extra={"error": str(error)})
        return None
