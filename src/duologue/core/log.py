"""What has happened since somebody last asked, and what time it is. The parts of a session share one."""

from duologue.core.events import Event


class Log:
    """Collects events; `now` is the session's time in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[Event] = []

    def add(self, event: Event) -> None:
        """It happened."""
        self._events.append(event)

    def drain(self) -> list[Event]:
        """All since the last call, in order."""
        events, self._events = self._events, []
        return events
