"""Events as lines of text, for pipes, logs and replays."""

from typing import TextIO

from duologue.cli.terminal.text import counted, shortened, visible
from duologue.core import events as e
from duologue.text.words import words_of

LENGTH_LIMIT = "the answer reached its length limit"
_LONGEST = 400  # characters of an utterance that are printed
_COMMANDS = ("stop", "resume", "respond")


def latency_ms(event: e.Decided) -> float:
    """Milliseconds from the arrival of the words to the decision."""
    return (event.at - event.heard_at) * 1000.0


def remark(event: e.Event) -> str:
    """What an event says to the user, in a few words; empty if nothing."""
    match event:
        case e.Suspended(unheard=unheard):
            return f"cut; {counted(len(words_of(unheard)), 'word')} unheard"
        case e.Resumed(exact=exact):
            return "resumed" if exact else "resumed in a new turn"
        case e.TakenBack() | e.Withdrawn():
            return "the answer was withdrawn; none of it was heard"
        case e.Dropped(reason="patience"):
            return "dropped: never finished"
        case e.Dropped(reason="no words" | "echo" as reason):
            return f"dropped: {reason}"
        case e.Refused(what=what, reason=reason):
            return f"{what} refused: {reason}" if what in _COMMANDS else f"refused: {reason}"
        case e.Failed(reason=reason, unanswered=unanswered):
            return f"no answer: {reason}" if unanswered else f"the answer broke off: {reason}"
        case e.Noticed(text=text):
            return text
        case e.Trimmed(turns_dropped=dropped):
            return f"dropped the oldest {counted(dropped, 'turn')} to make room"
        case e.Edited(history=history):
            return f"the history was replaced by {counted(len(history), 'turn')}"
        case _:
            return ""


class EventPrinter:
    """Prints one line per fact, and answers as they grow.

    Args:
        out: where to; None prints nothing.
        has_times: each line begins with its time, and partials are printed too.
        is_paced: words are printed when they are heard instead of when they are said.
    """

    def __init__(self, out: TextIO | None, *, has_times: bool, is_paced: bool = False) -> None:
        self._out = out
        self._has_times = has_times
        self._is_paced = is_paced
        self._texts: dict[int, str] = {}  # by answer
        self._shown: dict[int, int] = {}  # characters printed, by answer
        self._too_long: set[int] = set()  # answers that reached their length limit
        self._withdrawn: e.Withdrawn | None = None  # printed with the next event: "go on" withdraws its own answer
        self._is_open = False  # whether a line of an answer is unfinished

    def tell(self, event: e.Event) -> None:
        """Print an event, if it is worth a line."""
        if self._withdrawn is not None and not isinstance(event, e.Resumed):
            self._remark(self._withdrawn.at, remark(self._withdrawn))
        self._withdrawn = event if isinstance(event, e.Withdrawn) else None
        match event:
            case e.Said(at, answer=answer, start=start, text=text):
                self._texts[answer] = self._texts.get(answer, "")[:start] + text
                if not self._is_paced:
                    self._write(at, text)
            case e.Heard(at, answer=answer, position=position) if self._is_paced:
                self._write(at, self._texts[answer][self._shown.get(answer, 0) : position])
                self._shown[answer] = position
            case e.Received(at, text=text, final=final) if text.strip() and (final or self._has_times):
                words = visible(shortened(text, _LONGEST))
                timed = f"{at:7.2f}  user       {_indented(words)}{'' if final else ' …'}"
                self._line(timed if self._has_times else f"> {words}")
            case e.Decided(at, decision=decision):
                latency = "" if self._has_times else f", {latency_ms(event):.0f} ms"
                self._remark(at, f"{decision.state} {decision.p:.2f}{latency}")
            case e.Finished(answer=answer, reason="length"):
                self._too_long.add(answer)
            case e.Committed(at, answer=answer):  # not earlier: the last words follow the end of generation
                self.end_line()
                self._remark(at, LENGTH_LIMIT if answer in self._too_long else "")
            case e.Withdrawn():
                pass  # see above
            case _:
                self._remark(event.at, remark(event))

    def remark(self, text: str) -> None:
        """Print a line that is no event."""
        self._line(f"  [{visible(text)}]")

    def end(self) -> None:
        """Print what is still held back, and finish the line."""
        if self._withdrawn is not None:
            self._remark(self._withdrawn.at, remark(self._withdrawn))
        self.end_line()

    def end_line(self) -> None:
        """Finish the line of an answer."""
        if self._is_open:
            self._print("\n")  # also flushed: a reader of the pipe waits for the line
            self._is_open = False

    def _write(self, at: float, text: str) -> None:
        text = visible(text)
        if self._has_times:
            if not self._is_open and (text := text.lstrip()):  # the line before it is a break already
                text = f"{at:7.2f}  assistant  {text}"
            text = _indented(text)
        if text:
            self._print(text)
            self._is_open = True

    def _remark(self, at: float, text: str) -> None:
        if text:
            self._line(f"{at:7.2f}             [{visible(text)}]" if self._has_times else f"  [{visible(text)}]")

    def _line(self, text: str) -> None:
        self.end_line()
        self._print(text + "\n")

    def _print(self, text: str) -> None:
        if self._out is not None:
            print(text, end="", flush=True, file=self._out)


def _indented(text: str) -> str:
    """Text whose further lines begin where its first one does, behind the time and the speaker."""
    return text.replace("\n", "\n" + " " * 20)
