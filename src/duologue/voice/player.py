"""Plays clauses one after another: more quietly while the user speaks, and silently when paused or cut.

Knows samples, and the position in the answer that each of them ends; not where the samples go.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from duologue.voice.engines.interfaces import Mark
from duologue.voice.sound import Samples, gain, silence

DUCK_DB = -12.0
_DUCK_S = 0.03  # fade from full volume to ducked
_BACK_S = 0.2  # fade back; slow, since nobody waits for it
_EDGE_S = 0.004  # fade at both ends of a clause, to avoid clicks
_CUT_S = 0.02  # fade-out at a cut or a pause
_RISE_S = 0.03  # fade-in after a pause; short, since a word begins there
_WORD_S = 1.0  # longer than any word


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A clause as sound at the player's rate. `marks` map samples to positions in `answer`, in ascending order."""

    answer: int
    samples: Samples
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Position:
    """`answer` has been heard up to character `position`."""

    answer: int
    position: int


class _Fader:
    """A volume that moves between 1 and `low`, within `down` samples, and back within `up` samples."""

    def __init__(self, low: float, *, down: float, up: float) -> None:
        self._low = low
        self._down, self._up = (1.0 - low) / down, (1.0 - low) / up
        self.volume = 1.0
        self.is_lowered = False  # whether the volume is `low` or moves there

    @property
    def _wanted(self) -> float:
        return self._low if self.is_lowered else 1.0

    def jump(self) -> None:
        """Reach the target at once."""
        self.volume = self._wanted

    @property
    def num_left(self) -> int:
        """Samples until the target is reached."""
        way = self._wanted - self.volume
        return math.ceil(abs(way) / self._step)

    def next(self, count: int) -> Samples:
        """The volume of the next `count` samples, `[count]`."""
        if self.volume == self._wanted or not count:
            return np.full(count, self.volume, np.float32)
        way = self._wanted - self.volume
        steps = np.minimum(np.arange(1, count + 1) * self._step, abs(way))
        volumes = self.volume + math.copysign(1.0, way) * steps
        self.volume = self._wanted if count >= self.num_left else float(volumes[-1])
        return np.asarray(volumes, np.float32)

    @property
    def _step(self) -> float:
        return self._down if self._wanted < self.volume else self._up


class Player:
    """Returns samples at `rate`, as many as requested; silence if it has none.

    `num_out` counts all samples returned. `is_held` prevents it from starting, without losing anything. A cut `fades`,
    unless the receiver drops unplayed samples at a cut; a fade would then follow the cut.
    """

    def __init__(self, rate: int, *, fades: bool = True) -> None:
        self.rate = rate
        self._fades = fades
        self.num_out = 0
        self.is_held = False
        self._pieces: deque[Piece] = deque()
        self._at = 0  # position in the first piece
        self._mark = 0  # index of its next mark
        self._tail = silence(0)  # fade-out of a clause that was cut
        self._loudness = _Fader(gain(DUCK_DB), down=_DUCK_S * rate, up=_BACK_S * rate)
        self._presence = _Fader(0.0, down=_CUT_S * rate, up=_RISE_S * rate)

    @property
    def is_ducked(self) -> bool:
        """Whether the volume is lowered."""
        return self._loudness.is_lowered

    @property
    def is_paused(self) -> bool:
        """Whether playback is interrupted and will continue later."""
        return self._presence.is_lowered

    @property
    def is_subdued(self) -> bool:
        """Whether it is ducked or paused."""
        return self.is_ducked or self.is_paused

    @property
    def is_playing(self) -> bool:
        """Whether there is sound to play and it is not held; paused or not."""
        return bool(self._pieces) and not self.is_held

    @property
    def seconds_left(self) -> float:
        """Seconds of sound left to play."""
        return (sum(len(piece.samples) for piece in self._pieces) - self._at) / self.rate

    def add(self, piece: Piece) -> None:
        """Append a clause."""
        samples = piece.samples.copy()
        count = min(int(_EDGE_S * self.rate), len(samples) // 2)
        if count:
            ramp = np.linspace(0.0, 1.0, count, dtype=np.float32)
            samples[:count] *= ramp
            samples[-count:] *= ramp[::-1]
        self._pieces.append(Piece(piece.answer, samples, piece.marks))

    def duck(self, is_ducked: bool) -> None:
        """Lower the volume by 12 dB, or restore it."""
        self._loudness.is_lowered = is_ducked

    def pause(self, is_paused: bool) -> None:
        """Fall silent, or continue from the beginning of the word in which playback fell silent."""
        self._presence.is_lowered = is_paused
        if not is_paused and self._presence.volume == 0.0:
            self._loudness.jump()
            self._at = self._word_at()

    def _word_at(self) -> int:
        """The beginning of the word that is being played, which is the end of the word before."""
        if not self._pieces or not self._mark:
            return max(0, self._at - int(_WORD_S * self.rate))
        ended = self._pieces[0].marks[self._mark - 1].sample
        return max(ended, self._at - int(_WORD_S * self.rate))

    def cut(self) -> None:
        """Fall silent and discard everything. New clauses play at full volume."""
        if self.is_playing and self._fades:
            rest = self._pieces[0].samples[self._at : self._at + int(_CUT_S * self.rate)]
            fade = np.cos(np.linspace(0.0, math.pi / 2, len(rest), dtype=np.float32)) ** 2
            volume = np.float32(self._loudness.volume * self._presence.volume)
            self._tail = (rest * fade * volume).astype(np.float32)
        self._pieces.clear()
        self._at = self._mark = 0
        for fader in (self._loudness, self._presence):
            fader.is_lowered = False
            fader.jump()

    def pull(self, count: int) -> tuple[Samples, list[Position]]:
        """The next `count` samples, `[count]`, and the positions that will have been heard after them, in order."""
        out, filled = silence(count), 0
        heard: list[Position] = []
        if len(self._tail):
            filled = min(count, len(self._tail))
            out[:filled], self._tail = self._tail[:filled], self._tail[filled:]
        first = filled
        end = min(count, first + self._presence.num_left) if self.is_paused else count
        while filled < end and self.is_playing:
            piece = self._pieces[0]
            size = min(end - filled, len(piece.samples) - self._at)
            out[filled : filled + size] = piece.samples[self._at : self._at + size]
            self._at, filled = self._at + size, filled + size
            while self._mark < len(piece.marks) and piece.marks[self._mark].sample <= self._at:
                heard.append(Position(piece.answer, piece.marks[self._mark].position))
                self._mark += 1
            if self._at == len(piece.samples):
                self._pieces.popleft()
                self._at = self._mark = 0
        out[first:] *= self._loudness.next(count - first) * self._presence.next(count - first)
        self.num_out += count
        return out, heard
