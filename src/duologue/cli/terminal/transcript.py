"""What the full-screen chat shows: two columns side by side, so that overlaps are visible.

Takes events and returns styled lines. Knows nothing of terminals.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain, repeat, zip_longest
from typing import TypeAlias

from duologue.cli.terminal.cells import Fragment, Line, drawn, padded, spans_of, wrapped
from duologue.cli.terminal.lines import LENGTH_LIMIT, latency_ms, remark
from duologue.cli.terminal.text import counted, shortened, visible
from duologue.core.events import (
    Committed,
    Decided,
    Dropped,
    Event,
    Failed,
    Finished,
    Heard,
    Held,
    Noticed,
    Promoted,
    Received,
    Refused,
    Resumed,
    Said,
    Suspended,
    TakenBack,
    Trimmed,
    Withdrawn,
)
from duologue.text.words import words_of

_GAP = "  │ "
_TIME = 7
_NARROW = 60  # columns; narrower screens have no room for times
_LONGEST = 600  # characters shown of an utterance
_AHEAD = 5  # lines of an answer shown before they are heard; limited so that heard text stays on the screen
_AHEAD_CUT = 2  # the same for an answer that was cut off

_Key: TypeAlias = tuple[object, ...]


@dataclass(slots=True)
class _Words:
    """An utterance, in the left column."""

    text: str = ""
    final: bool = True  # the next words begin another one
    verdict: str = ""  # the decision, such as "ignore 0.97, 35 ms"
    style: str = "user"
    is_settled: bool = False  # dropped: no more words are expected


@dataclass(slots=True)
class _Speech:
    """An answer, in the right column."""

    text: str = ""
    heard: int = 0
    is_cut: bool = False
    is_gone: bool = False  # withdrawn before anything was heard


@dataclass(slots=True)
class _Row:
    """What happened at one time: words, and the part of an answer that was heard from then on."""

    at: float
    words: _Words | None = None
    speech: _Speech | None = None
    start: int = 0  # of the part, in characters of the answer
    end: int | None = None  # None: the part is still growing
    note: str = ""
    cached: tuple[_Key, list[Line]] = field(default_factory=lambda: ((), []))

    def key(self, width: int) -> _Key:
        """Everything that its lines depend on."""
        words, speech = self.words, self.speech
        return (
            width,
            None if words is None else (words.text, words.final, words.verdict, words.style, words.is_settled),
            None if speech is None else (len(speech.text), speech.heard, speech.is_cut, speech.is_gone),
            self.start,
            self.end,
        )


class Transcript:
    """A conversation as rows in order of time."""

    def __init__(self) -> None:
        self.last_decision: Decided | None = None
        self._rows: list[_Row] = []
        self._words: defaultdict[str, _Words] = defaultdict(_Words)
        self._answers: defaultdict[int, _Speech] = defaultdict(_Speech)
        self._running: _Speech | None = None
        self._too_long: set[int] = set()  # answers that met their length limit

    def tell(self, event: Event) -> None:
        """Add an event."""
        match event:
            case Received(at, utterance, text, final) if text.strip():
                self._hear(at, utterance, text, final)
            case Decided(utterance=utterance, decision=decision):
                self.last_decision = event
                verdict = f"{decision.state} {decision.p:.2f}, {latency_ms(event):.0f} ms"
                self._judge(utterance, verdict, decision.state.value)
            case Held(utterance=utterance, deferred=True):
                self._judge(utterance, "answered later", "incomplete")
            case Dropped(utterance=utterance):
                if verdict := remark(event):
                    self._judge(utterance, verdict, "ignore")
                self._words[utterance].is_settled = True
            case Refused() | Trimmed() | Noticed():
                self.note(event.at, remark(event))
            case Failed():
                self.note(event.at, remark(event))
                self._follow(event)
            case _:
                self._follow(event)

    def note(self, at: float, text: str) -> None:
        """Add a remark on a line of its own, unless it repeats the last one."""
        if not self._rows or self._rows[-1].note != text:
            self._rows.append(_Row(at, note=text))

    def lines(self, width: int, height: int, *, back: int = 0) -> list[Line]:
        """The newest `height` lines, oldest first; with `back`, those that many lines further up."""
        out: list[Line] = []
        for row in reversed(self._rows):
            out = self._lines_of(row, width) + out
            if len(out) >= height + back:
                break
        end = max(min(height, len(out)), len(out) - back)
        return out[max(0, end - height) : end]

    def text(self, width: int) -> str:
        """The whole conversation without styles."""
        lines = (line for row in self._rows for line in self._lines_of(row, width))
        return "\n".join("".join(text for _, text in line).rstrip() for line in lines)

    # ------------------------------------------------------------------ events of answers

    def _follow(self, event: Event) -> None:
        match event:
            case Promoted(answer=answer):
                self._running = self._answers[answer] = _Speech()
                self._part(event.at, self._running, 0)
            case Said(answer=answer, start=start, text=text):
                speech = self._answers[answer]
                speech.text = speech.text[:start] + visible(text)
                if speech is not self._running:
                    self._running = speech
                    self._part(event.at, speech, start)
            case Heard(answer=answer, position=position):
                self._answers[answer].heard = position
            case Suspended(answer=answer):
                self._answers[answer].is_cut = True
                self._running = None
            case Resumed(answer=answer):
                self._running = speech = self._answers[answer]
                speech.is_cut = speech.is_gone = False
                self._part(event.at, speech, speech.heard)
            case TakenBack(answer=answer) | Withdrawn(answer=answer) | Failed(answer=answer, unanswered=True):
                self._answers[answer].is_gone = True
                self._running = None
            case Finished(answer=answer, reason="length"):
                self._too_long.add(answer)
            case Committed(answer=answer):
                self._running = None
                if answer in self._too_long:  # not earlier: it may be heard long after generation ended
                    self.note(event.at, LENGTH_LIMIT)
            case _:
                pass

    def _part(self, at: float, speech: _Speech, start: int, *, row: _Row | None = None) -> None:
        """Show the rest of `speech`, from `start` on, beside what happens next."""
        for other in self._rows:
            if other.speech is speech and other.end is None:
                other.end = max(start, other.start)
        last = self._rows[-1] if self._rows else None
        if row is None and last is not None and last.words is not None and _is_free(last):
            row = last
        if row is None:
            row = _Row(at)
            self._rows.append(row)
        row.speech, row.start, row.end = speech, start, None

    # ------------------------------------------------------------------ events of utterances

    def _hear(self, at: float, utterance: str, text: str, final: bool) -> None:
        words = self._words[utterance]
        if words.final:
            words = self._words[utterance] = _Words()
            self._rows.append(_Row(at, words))
            running = self._running
            if running is not None and not running.is_cut:
                self._part(at, running, running.heard, row=self._rows[-1])
        words.text, words.final, words.is_settled = visible(shortened(text, _LONGEST)), final, False

    def _judge(self, utterance: str, verdict: str, style: str) -> None:
        words = self._words[utterance]
        words.verdict, words.style = verdict, style

    # ------------------------------------------------------------------ lines

    def _lines_of(self, row: _Row, width: int) -> list[Line]:
        key = row.key(width)
        if row.cached[0] != key:
            row.cached = key, self._render(row, width)
        return row.cached[1]

    def _render(self, row: _Row, width: int) -> list[Line]:
        time_width = _TIME if width >= _NARROW else 0
        time = f"{row.at:6.1f} "[:time_width]
        if row.note:
            note = wrapped(row.note, max(1, width - time_width))
            return [[("class:note", (time if i == 0 else " " * time_width) + line)] for i, line in enumerate(note)]
        room = max(2, width - time_width - len(_GAP))
        left_width = max(1, room * 2 // 5)
        left = self._left(row.words, left_width) if row.words else []
        right = self._right(row, max(1, room - left_width)) if row.speech and not row.speech.is_gone else []
        blank: Line = []
        times = chain([time], repeat(" " * time_width))
        return [
            [("class:time", shown), *padded(words, left_width), ("class:gap", _GAP), *speech]
            for shown, (words, speech) in zip(times, zip_longest(left, right, fillvalue=blank), strict=False)
        ]

    def _left(self, words: _Words, width: int) -> list[Line]:
        text = words.text if words.final or words.is_settled else words.text + " …"
        lines: list[Line] = [[(f"class:{words.style}", part)] for part in wrapped(text, width)]
        if words.verdict:
            style = f"class:{words.style} class:verdict"
            lines += [[(style, part)] for part in wrapped(words.verdict, max(1, width - 2), indent="  ")]
        return lines

    def _right(self, row: _Row, width: int) -> list[Line]:
        speech = row.speech
        assert speech is not None
        end = len(speech.text) if row.end is None else row.end
        unheard = "class:cut" if speech.is_cut else "class:unheard"
        spans = spans_of(speech.text[:end], row.start, width)
        first_unheard = next((i for i, (_, stop) in enumerate(spans) if stop > speech.heard), len(spans))
        shown = spans[: first_unheard + (_AHEAD_CUT if speech.is_cut else _AHEAD)]
        lines: list[Line] = []
        for begin, stop in shown:
            border = max(begin, min(stop, speech.heard))
            heard, rest = drawn(speech.text[begin:border]), drawn(speech.text[border:stop])
            parts: list[Fragment] = [("class:heard", heard), (unheard, rest)]
            lines.append([part for part in parts if part[1]])
        if speech.is_cut and row.end is None:
            num = len(words_of(speech.text[speech.heard :]))
            lines += [[("class:note", part)] for part in wrapped(f"— cut here, {counted(num, 'word')} unheard", width)]
        elif len(shown) < len(spans):
            num = len(words_of(speech.text[shown[-1][1] : end]))
            lines += [[(unheard, part)] for part in wrapped(f"… {counted(num, 'word')} ahead", width)]
        return lines


def _is_free(row: _Row) -> bool:
    """Whether an answer can be shown beside the words: no other is, or only a part that was never heard."""
    speech = row.speech
    if speech is None or speech.is_gone:
        return True
    end = len(speech.text) if row.end is None else row.end
    return end <= row.start and not speech.is_cut
