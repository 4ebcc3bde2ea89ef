"""A conversation in real time: one session on an engine of its own."""

from collections.abc import AsyncIterator, Callable, Sequence

from duologue.core.backend import Backend
from duologue.core.events import Event
from duologue.core.session import Session
from duologue.core.trace import Sink
from duologue.core.transitions import Floor
from duologue.engine.engine import BatchEngine, Handle
from duologue.engine.playback_clock import CHARACTERS_PER_WORD as CHARACTERS_PER_WORD
from duologue.engine.playback_clock import Pace
from duologue.errors import UsageError
from duologue.types import Turn


class Live:
    """Runs a session until it is closed; commands and events are those of `Handle`.

    `words_per_second` and `sink` are as in `BatchEngine.open`. `clock` gives seconds that never go back; by default it
    is the event loop's.

    Raises:
        UsageError: `words_per_second` is not positive, or the session takes for heard what is shown.
    """

    def __init__(
        self,
        backend: Backend,
        session: Session,
        *,
        words_per_second: float | None = None,
        sink: Sink | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if words_per_second is not None:
            Pace(session, words_per_second)  # what is wrong with it is said here
        self.session = session
        self._rate = words_per_second
        self._sink = sink
        self._engine = BatchEngine(backend, clock=clock)
        self._handle: Handle | None = None

    async def __aenter__(self) -> "Live":
        await self._engine.__aenter__()
        self._handle = self._engine.open(self.session, words_per_second=self._rate, sink=self._sink)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let the pass under way end, free everything, stop the worker. Can be called more than once.

        Raises:
            EngineError: the backend could not free what the session held, and had not failed before.
        """
        await self._engine.aclose()

    @property
    def floor(self) -> Floor:
        """Who has the floor."""
        return self.session.floor

    @property
    def is_listening(self) -> bool:
        """Whether there are words that have been neither answered nor dropped."""
        return self.session.input_text is not None

    @property
    def is_protected(self) -> bool:
        """See `Handle.is_protected`."""
        return self._opened.is_protected

    def events(self) -> AsyncIterator[Event]:
        """See `Handle.events`."""
        return self._opened.events()

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> None:
        """See `Session.hear`. Like all commands, it raises `UsageError` when the conversation is not open.

        Raises:
            EngineError: the backend has failed; the conversation is over.
        """
        self._opened.hear(text, utterance=utterance, final=final)

    def heard(self, position: int, *, answer: int | None = None) -> None:
        """See `Session.heard`; for who plays the answers. Not together with `words_per_second`."""
        self._opened.heard(position, answer=answer)

    def edit(self, history: Sequence[Turn]) -> None:
        """See `Session.edit`."""
        self._opened.edit(history)

    def respond(self) -> None:
        """See `Session.respond`."""
        self._opened.respond()

    def stop(self) -> None:
        """See `Session.stop`."""
        self._opened.stop()

    def resume(self) -> None:
        """See `Session.resume`."""
        self._opened.resume()

    @property
    def _opened(self) -> Handle:
        if self._handle is None:
            raise UsageError("the conversation is not open; talk to it inside `async with Live(...) as live:`")
        return self._handle
