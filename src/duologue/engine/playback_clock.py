"""A listener who hears an answer at a constant rate, however fast it is generated."""

from duologue.core.events import Event
from duologue.core.session import BaseSession
from duologue.errors import UsageError

CHARACTERS_PER_WORD = 6.0
STEP_S = 0.05  # how often what has been heard is brought up to date


class Pace:
    """How far the user has got in the answers of `session`, which must report what is heard.

    Raises:
        UsageError: the rate is not positive, or the session takes for heard what is shown.
    """

    def __init__(self, session: BaseSession, words_per_second: float) -> None:
        if not 0 < words_per_second < float("inf"):
            raise UsageError(f"words_per_second {words_per_second} must be positive; None hears at once")
        if session.config.heard == "shown":
            raise UsageError('words_per_second goes with SessionConfig(heard="reported"), and only with that')
        self._session = session
        self._rate = words_per_second * CHARACTERS_PER_WORD
        self._hearing: tuple[int, float] | None = None  # the answer being heard, and up to where (characters)
        self._now = session.now
        self.is_paused = False  # nobody listens for the time being

    @property
    def is_hearing(self) -> bool:
        """Whether there is an answer that the user can hear on."""
        running = self._session.running
        return running is not None and running.is_released and not self.is_paused

    def hear_on(self) -> list[Event]:
        """The session's time has gone on, and so has the user."""
        elapsed, self._now = self._session.now - self._now, self._session.now
        running = self._session.running
        if running is None or not self.is_hearing:
            self._hearing = None
            return []
        answer, position = self._hearing or (-1, 0.0)
        if answer != running.id:
            # it begins, or goes on, now: time that passed before does not count
            answer, position, elapsed = running.id, float(running.num_heard), 0.0
        position = min(position + elapsed * self._rate, float(running.num_said))  # speech cannot run ahead
        self._hearing = (answer, position)
        return self._session.heard(int(position), answer=answer)
