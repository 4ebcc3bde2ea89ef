"""Estimates how much of an answer has been heard, assuming that it is spoken at a constant rate."""

from duologue.core.base_session import BaseSession
from duologue.core.events import Event
from duologue.errors import UsageError
from duologue.text.words import DENSITY, is_unspaced

CHARACTERS_PER_WORD = 6.0
STEP_S = 0.05  # how often the heard position is updated


class PlaybackClock:
    """The listener's position in the answers of `session`, which must use `SessionConfig(heard="reported")`.

    Raises:
        UsageError: the rate is not positive, or the session counts text as heard when it is shown.
    """

    def __init__(self, session: BaseSession, words_per_second: float) -> None:
        if not 0 < words_per_second < float("inf"):
            raise UsageError(
                f"words_per_second is {words_per_second} and must be positive and finite; with None, the caller "
                "reports what was heard"
            )
        if session.config.heard == "shown":
            raise UsageError('words_per_second requires SessionConfig(heard="reported")')
        self._session = session
        self._rate = words_per_second * CHARACTERS_PER_WORD
        self._hearing: tuple[int, float] | None = None  # the answer being heard, and the position in characters
        self._now = session.now
        self.is_paused = False  # nobody is listening

    @property
    def is_hearing(self) -> bool:
        """Whether the position can advance: an answer is released, and playback is not paused."""
        running = self._session.running
        return running is not None and running.is_released and not self.is_paused

    def advance(self) -> list[Event]:
        """Move the position to the session's present time and report it to the session."""
        elapsed, self._now = self._session.now - self._now, self._session.now
        running = self._session.running
        if running is None or not self.is_hearing:
            self._hearing = None
            return []
        answer, position = self._hearing or (-1, 0.0)
        if answer != running.id:  # it starts or resumes now, so earlier time does not count
            answer, position, elapsed = running.id, float(running.num_heard), 0.0
        step = elapsed * self._rate
        if is_unspaced(running.text[int(position) : int(position + step) + 1]):
            step /= DENSITY
        position = min(position + step, float(running.num_said))  # never ahead of what was said
        self._hearing = (answer, position)
        return self._session.heard(int(position), answer=answer)
