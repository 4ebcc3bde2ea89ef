"""Synthesises answers clause by clause, shortly before they are played."""

import asyncio
from collections import deque
from collections.abc import Callable

from duologue.errors import DuologueError
from duologue.voice.clauses import Clause, Clauses
from duologue.voice.engines.interfaces import Mark, Speech, Synthesiser
from duologue.voice.marks import trimmed
from duologue.voice.player import Piece, Player
from duologue.voice.sound import resampled, silence

_AHEAD_S = 4.0  # of sound to play; no more is synthesised meanwhile, since it may be cut
_MOST_FINISHED = 64  # answers remembered as finished; a session keeps fewer that can be resumed
_LOW_S = 0.5  # of sound to play; with less, a few words are synthesised instead of a whole clause
_LETTERS_PER_S = 15.0  # of speech
_MARGIN = 0.7  # share of the available time that synthesis may take
_BEHIND_S = {".": 0.25, "!": 0.25, "?": 0.25, "…": 0.25, ":": 0.2, ";": 0.2, ",": 0.12}
_BEHIND_S |= {"。": 0.25, "！": 0.25, "？": 0.25, "：": 0.2, "；": 0.2, "，": 0.12, "、": 0.08}
_BEFORE_S = 0.03
_UNSPOKEN = str.maketrans(dict.fromkeys("*#_`~|<>[]{}\\", " "))  # markup, replaced one for one by spaces


class AnswerSynthesis:
    """Synthesises one answer at a time.

    `is_interrupted`: the user is speaking, and the decision is still open. Meanwhile an answer does not start playing.
    """

    def __init__(self, synthesiser: Synthesiser, player: Player, note: Callable[..., None]) -> None:
        self.is_interrupted = False
        self._synthesiser = synthesiser
        self._player = player
        self._note = note
        self._answer: int | None = None
        self._clauses = Clauses()
        self._finished: deque[int] = deque(maxlen=_MOST_FINISHED)
        self._wake = asyncio.Event()
        self._epoch = 0  # clauses of earlier epochs are not played
        self._is_synthesising = False
        self._has_begun = False  # whether playback of the answer has begun
        self._effort = 0.3  # recent synthesis time per second of speech

    @property
    def is_busy(self) -> bool:
        """Whether there is text that the player has not received as sound."""
        return self._is_synthesising or self._clauses.has_text

    @property
    def is_under_way(self) -> bool:
        """Whether playback of an answer has begun and is not complete."""
        return self._has_begun and (self._player.is_playing or self.is_busy or self._answer not in self._finished)

    def say(self, answer: int, start: int, text: str) -> None:
        """Add text of `answer` from character `start` on."""
        if answer != self._answer:
            self._answer, self._clauses, self._has_begun = answer, Clauses(), False
        self._clauses.add(start, text)
        self._clauses.is_finished = answer in self._finished
        self._wake.set()

    def finish(self, answer: int) -> None:
        """`answer` is complete. Parts of it may still be spoken, or spoken again."""
        self._finished.append(answer)
        if answer == self._answer:
            self._clauses.is_finished = True
            self._wake.set()

    def forget(self) -> None:
        """The answer was cut: fall silent and discard the rest."""
        self._epoch += 1
        self._answer, self._clauses, self._has_begun = None, Clauses(), False
        self._player.cut()

    def feed(self) -> None:
        """Update after time has passed."""
        self._player.is_held = self.is_interrupted and not self._has_begun
        self._has_begun = self._has_begun or self._player.is_playing
        if self._clauses.has_text and self._player.seconds_left < _AHEAD_S:
            self._wake.set()

    async def run(self) -> None:
        """Synthesise pending clauses, forever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (clause := self._next()) is not None:
                await self._synthesise(clause)

    def _next(self) -> Clause | None:
        left = self._player.seconds_left
        if self._answer is None or left >= _AHEAD_S:
            return None
        in_time = int(left / self._effort * _LETTERS_PER_S * _MARGIN)
        return self._clauses.next(buffer_low=self._has_begun and left < _LOW_S, most=in_time)

    async def _synthesise(self, clause: Clause) -> None:
        answer, epoch, loop = self._answer, self._epoch, asyncio.get_running_loop()
        assert answer is not None, "clauses belong to an answer"
        self._is_synthesising, before = True, loop.time()
        try:
            speech = await self._spoken(clause.text)
        except DuologueError as error:  # the clause is lost, but the conversation continues
            self._note("synthesiser_failed", message=str(error), text=clause.text)
            speech = Speech(silence(self._player.rate // 2), self._player.rate, ())
        finally:
            self._is_synthesising = False
        if epoch != self._epoch:
            return
        samples = resampled(speech.samples, speech.rate, self._player.rate)
        took, seconds = round(loop.time() - before, 4), round(len(samples) / self._player.rate, 4)
        if seconds > 0:
            self._effort += (min(2.0, took / seconds) - self._effort) / 4
        self._note("synthesised", answer=answer, start=clause.start, text=clause.text, took=took, seconds=seconds)
        scale = self._player.rate / speech.rate
        marks = [Mark(min(int(m.sample * scale), len(samples)), clause.start + m.position) for m in speech.marks]
        marks = [mark for mark in marks if mark.position < clause.end]
        self._player.add(Piece(answer, samples, (*marks, Mark(len(samples), clause.end))))

    async def _spoken(self, text: str) -> Speech:
        plain = text.translate(_UNSPOKEN)
        if not any(c.isalnum() for c in plain):
            return Speech(silence(0), self._player.rate, ())
        speech = await self._synthesiser.speak(plain)
        end = plain.rstrip()[-1:]
        return trimmed(speech, before=_BEFORE_S, behind=_BEHIND_S.get(end, 0.03))
