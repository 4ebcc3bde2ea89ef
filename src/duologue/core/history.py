"""The history of a session, reconstructed from its events: for clients and records, which do not have the session."""

from collections.abc import Sequence
from dataclasses import dataclass

from duologue.core import events as e
from duologue.core.transitions import Floor
from duologue.types import Role, Turn


@dataclass(slots=True)
class _Told:
    """An answer, as far as the events describe it."""

    id: int
    asked: str | None  # the user's turn; None: the assistant spoke without being asked
    num_turns: int  # of the history before its turn
    text: str = ""
    num_heard: int = 0
    utterance: str = "user"  # that ended the user's turn

    @property
    def turns(self) -> list[Turn]:
        said = Turn(Role.ASSISTANT, self.text[: self.num_heard])
        return [said] if self.asked is None else [Turn(Role.USER, self.asked), said]


class Ledger:
    """Takes the events of a session in order; `history` always equals `Session.history`.

    It starts from the `history` that the conversation began with. Its memory grows with the history only.
    """

    def __init__(self, history: Sequence[Turn] = ()) -> None:
        self.unanswered: dict[str, e.Received] = {}  # by utterance: words that were neither answered nor dropped
        self._turns = list(history)
        self._running: _Told | None = None
        self._cut: dict[int, _Told] = {}

    @property
    def history(self) -> list[Turn]:
        """What was said to the assistant, and what was heard of it."""
        running = self._running
        return self._turns + (running.turns if running is not None and running.num_heard else [])

    @property
    def unheard(self) -> e.Received | None:
        """The user's turn of a running answer that nothing has been heard of; `history` does not have it yet."""
        running = self._running
        if running is None or running.num_heard or running.asked is None:
            return None
        return e.Received(0.0, running.utterance, running.asked, True)

    @property
    def floor(self) -> Floor:
        """Who has the floor, as `Session.floor`."""
        if self._running is None:
            return Floor.SILENT
        return Floor.SPEAKING if self._running.num_heard else Floor.PREPARED

    def __call__(self, event: e.Event) -> None:
        """Process `event`."""
        match event:
            case e.Received():
                self._receive(event)
            case e.Dropped(utterance=utterance):
                self.unanswered.pop(utterance, None)
            case e.Promoted(text=text, answer=answer, utterance=utterance):
                self._running = _Told(answer, text, len(self._turns), utterance=utterance)
                self.unanswered.clear()
            case e.Released(answer=answer):
                self._release(answer)
            case e.Said(answer=answer, start=start, text=text):
                told = self._release(answer)
                told.text = told.text[:start] + text
            case e.Heard(answer=answer, position=position):
                self._release(answer).num_heard = position
            case e.Committed(answer=answer, text=text):
                told = self._release(answer)
                told.text, told.num_heard = text, len(text)
                self._close()
            case e.Suspended(answer=answer):
                self._cut[answer] = self._release(answer)
                self._close()
            case e.Resumed():
                self._resume(event)
            case e.TakenBack() | e.Withdrawn():
                self._running = None
            case e.Failed(answer=answer, unanswered=True):
                self._turns += self._release(answer).turns[:-1]
                self._running = None
            case e.Trimmed(turns_dropped=dropped):
                del self._turns[:dropped]
                self._cut.clear()
            case e.Edited(history=history):
                self._turns, self._running = list(history), None
                self._cut.clear()
                self.unanswered.clear()

    def _receive(self, event: e.Received) -> None:
        """Words, the onset of speech, or the end of words that were answered already."""
        self.unanswered.pop(event.utterance, None)
        is_answered = self._running is not None and self._running.asked == event.text
        if event.text and not is_answered:
            self.unanswered[event.utterance] = event

    def _release(self, answer: int) -> _Told:
        """The running answer. Without words promoted to it, it answers the user's turn that ends the history."""
        if self._running is None or self._running.id != answer:
            last = self._turns[-1] if self._turns else None
            asked = self._turns.pop().text if last is not None and last.role is Role.USER else None
            self._running = _Told(answer, asked, len(self._turns))
        return self._running

    def _close(self) -> None:
        assert self._running is not None, "it was told"
        self._turns += self._running.turns
        self._running = None

    def _resume(self, event: e.Resumed) -> None:
        cut = self._cut.pop(event.suspended, None)
        if event.exact and cut is not None:
            del self._turns[cut.num_turns :]
            self._running = cut
        elif self._running is None or self._running.id != event.answer:
            asked = self._running.asked if self._running is not None else None  # words such as "go on"
            self._running = _Told(event.answer, asked, len(self._turns))
