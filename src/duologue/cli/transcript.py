"""What a terminal shows of a conversation: two lanes side by side, so that an overlap can be seen.

Takes events, gives styled lines; knows nothing of terminals.
"""

import textwrap
from dataclasses import dataclass, field
from typing import TypeAlias

from duologue.core.events import (
    Decided,
    Dropped,
    Event,
    Finished,
    Heard,
    Held,
    Promoted,
    Received,
    Refused,
    Resumed,
    Said,
    Suspended,
    TakenBack,
    Withdrawn,
)

Fragment: TypeAlias = tuple[str, str]
"""Style class and text."""
Line: TypeAlias = list[Fragment]

_GAP = "  │ "
_TIME = 7


@dataclass(slots=True)
class _Words:
    """An utterance on the left."""

    text: str
    final: bool
    verdict: str = ""  # what was thought of it: "ignore 0.97"
    style: str = "user"


@dataclass(slots=True)
class _Speech:
    """An answer on the right."""

    text: str = ""
    heard: int = 0
    is_cut: bool = False
    is_gone: bool = False  # taken back before anything was heard


@dataclass(slots=True)
class _Row:
    """What happened at a time: words, and the part of an answer that was heard from then on."""

    at: float
    words: _Words | None = None
    speech: _Speech | None = None
    start: int = 0  # of the part, in characters of the answer
    end: int | None = None  # None: it goes on
    note: str = ""
    lines: list[Line] = field(default_factory=list)


class Transcript:
    """Rows in order of time."""

    def __init__(self) -> None:
        self.last_decision: Decided | None = None
        self._rows: list[_Row] = []
        self._words: dict[str, _Words] = {}
        self._answers: dict[int, _Speech] = {}
        self._running: _Speech | None = None

    def tell(self, event: Event) -> None:
        """Take an event."""
        match event:
            case Received(at, utterance, text, final) if text:
                self._hear(at, utterance, text, final)
            case Decided(utterance=utterance, decision=decision):
                self.last_decision = event
                self._judge(utterance, f"{decision.state} {decision.p:.2f}", decision.state.value)
            case Held(utterance=utterance, deferred=True):
                self._judge(utterance, "answered afterwards", "incomplete")
            case Dropped(utterance=utterance, reason="patience"):
                self._judge(utterance, "dropped: never finished", "ignore")
            case Promoted(answer=answer):
                self._running = self._answers[answer] = _Speech()
                self._part(event.at, self._running, 0)
            case Said(answer=answer, start=start, text=text):
                speech = self._answers.setdefault(answer, _Speech())
                speech.text = speech.text[:start] + text
                if speech is not self._running:
                    self._running = speech
                    self._part(event.at, speech, start)
            case Heard(answer=answer, position=position):
                self._answers[answer].heard = position
            case Suspended(answer=answer):
                self._answers[answer].is_cut = True
                self._running = None
            case Resumed(answer=answer):
                self._resume(event, self._answers.setdefault(answer, _Speech()))
            case TakenBack(answer=answer) | Withdrawn(answer=answer):
                self._answers[answer].is_gone = True
                self._running = None
            case Finished(answer=answer, reason="length"):
                self._rows.append(_Row(event.at, note="the answer met its length limit"))
            case Refused(reason=reason):
                self._rows.append(_Row(event.at, note=f"not done: {reason}"))
            case _:
                pass

    def lines(self, width: int, height: int) -> list[Line]:
        """The newest lines that fit, oldest first."""
        out: list[Line] = []
        for row in reversed(self._rows):
            out = self._render(row, width) + out
            if len(out) >= height:
                break
        return out[-height:]

    def _hear(self, at: float, utterance: str, text: str, final: bool) -> None:
        words = self._words.get(utterance)
        if words is None or words.final:
            words = self._words[utterance] = _Words(text, final)
            self._rows.append(_Row(at, words))
            running = self._running
            if running is not None and not running.is_cut:
                self._part(at, running, running.heard, row=self._rows[-1])
        words.text, words.final = text, final

    def _judge(self, utterance: str, verdict: str, style: str) -> None:
        words = self._words.get(utterance)
        if words is not None:
            words.verdict, words.style = verdict, style

    def _resume(self, event: Resumed, speech: _Speech) -> None:
        old = self._answers.get(event.suspended)
        if old is not None and event.exact:
            old.is_cut = False
            speech = old
        self._running = self._answers[event.answer] = speech
        self._part(event.at, speech, speech.heard)

    def _part(self, at: float, speech: _Speech, start: int, *, row: _Row | None = None) -> None:
        """From here on the speech stands beside what is new."""
        for other in self._rows:
            if other.speech is speech and other.end is None:
                other.end = max(start, other.start)
        last = self._rows[-1] if self._rows else None
        if row is None and last is not None and last.speech is None and last.words is not None:
            row = last
        if row is None:
            row = _Row(at)
            self._rows.append(row)
        row.speech, row.start = speech, start

    def _render(self, row: _Row, width: int) -> list[Line]:
        left_width = max(16, (width - _TIME - len(_GAP)) * 2 // 5)
        right_width = max(16, width - _TIME - len(_GAP) - left_width)
        if row.note:
            return [[("class:note", f"{row.at:6.1f} {row.note}"[:width])]]
        left = self._left(row.words, left_width) if row.words else []
        right = self._right(row, right_width) if row.speech and not row.speech.is_gone else []
        lines: list[Line] = []
        for i in range(max(len(left), len(right))):
            time = f"{row.at:6.1f} " if i == 0 else " " * _TIME
            line: Line = [("class:time", time)]
            line += _padded(left[i] if i < len(left) else [], left_width)
            line.append(("class:gap", _GAP))
            line += right[i] if i < len(right) else []
            lines.append(line)
        return lines

    def _left(self, words: _Words, width: int) -> list[Line]:
        text = words.text if words.final else words.text + " …"
        lines: list[Line] = [[(f"class:{words.style}", part)] for part in textwrap.wrap(text, width) or [""]]
        if words.verdict:
            lines.append([(f"class:{words.style} class:verdict", f"  {words.verdict}"[:width])])
        return lines

    def _right(self, row: _Row, width: int) -> list[Line]:
        speech = row.speech
        assert speech is not None
        end = len(speech.text) if row.end is None else row.end
        styles = [
            "class:heard" if i < speech.heard else "class:cut" if speech.is_cut else "class:unheard" for i in range(end)
        ]
        lines: list[Line] = []
        for begin, stop in _wrapped(speech.text[:end], row.start, width):
            line: Line = []
            for i in range(begin, stop):
                if line and line[-1][0] == styles[i]:
                    line[-1] = (styles[i], line[-1][1] + speech.text[i])
                else:
                    line.append((styles[i], speech.text[i]))
            lines.append(line)
        return lines


def _wrapped(text: str, start: int, width: int) -> list[tuple[int, int]]:
    """Begin and end of each line of `text` from `start` on: at spaces where there are some, at line breaks always."""
    spans: list[tuple[int, int]] = []
    while start < len(text):
        if text[start] in " \n":
            start += 1
            continue
        stop = text.find("\n", start, start + width + 1)
        if stop < 0:
            stop = min(len(text), start + width)
            if stop < len(text) and text[stop] != " ":
                space = text.rfind(" ", start, stop)
                stop = space if space > start else stop
        spans.append((start, stop))
        start = stop
    return spans


def _padded(line: Line, width: int) -> Line:
    used = sum(len(text) for _, text in line)
    return [*line, ("", " " * max(0, width - used))]
