"""What the user hears: clauses one behind the other, quieter while somebody speaks, silent at once when it is cut.

Knows samples, and which character of an answer each of them ends; not where the samples go.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from duologue.voice.engines import Mark
from duologue.voice.sound import Samples, gain, silence

DUCK_DB = -12.0
_DUCK_S = 0.03  # from full to ducked
_BACK_S = 0.2  # and back: unhurried, since nobody waits for it
_EDGE_S = 0.004  # fade at both ends of a clause, against clicks
_CUT_S = 0.02  # fade of what is cut


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A clause as sound at the player's rate. `marks` say which character of `answer` is heard when; they grow."""

    answer: int
    samples: Samples
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Position:
    """The user has heard `answer` up to character `position`."""

    answer: int
    position: int


class Player:
    """Gives out samples at `rate`, as many as are asked for; silence where it has none.

    `num_out` counts all samples given out, `is_held` keeps it silent without losing anything.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.num_out = 0
        self.is_held = False
        self._pieces: deque[Piece] = deque()
        self._at = 0  # of the first piece
        self._mark = 0  # of its marks
        self._tail = silence(0)  # of what was cut
        self._gain = self._wanted = 1.0

    @property
    def is_ducked(self) -> bool:
        """Whether it plays more quietly."""
        return self._wanted < 1.0

    @property
    def is_playing(self) -> bool:
        """Whether there is anything to be heard now."""
        return bool(self._pieces) and not self.is_held

    @property
    def seconds_left(self) -> float:
        """How much there is to be played."""
        return (sum(len(piece.samples) for piece in self._pieces) - self._at) / self.rate

    def add(self, piece: Piece) -> None:
        """Play it behind what there is."""
        samples = piece.samples.copy()
        count = min(int(_EDGE_S * self.rate), len(samples) // 2)
        if count:
            ramp = np.linspace(0.0, 1.0, count, dtype=np.float32)
            samples[:count] *= ramp
            samples[-count:] *= ramp[::-1]
        self._pieces.append(Piece(piece.answer, samples, piece.marks))

    def duck(self, is_ducked: bool) -> None:
        """Play more quietly, by 12 dB, or as before."""
        self._wanted = gain(DUCK_DB) if is_ducked else 1.0

    def cut(self) -> None:
        """Fall silent; what has not been played is lost. Afterwards it plays at full volume."""
        if self._pieces and not self.is_held:
            rest = self._pieces[0].samples[self._at : self._at + int(_CUT_S * self.rate)]
            fade = np.cos(np.linspace(0.0, math.pi / 2, len(rest), dtype=np.float32)) ** 2
            self._tail = (rest * fade * np.float32(self._gain)).astype(np.float32)
        self._pieces.clear()
        self._at = self._mark = 0
        self._gain = self._wanted = 1.0

    def pull(self, count: int) -> tuple[Samples, list[Position]]:
        """The next `count` samples, and what the user has heard when they have been played, in order."""
        out, filled = silence(count), 0
        heard: list[Position] = []
        if len(self._tail):
            filled = min(count, len(self._tail))
            out[:filled], self._tail = self._tail[:filled], self._tail[filled:]
        first = filled
        while filled < count and self._pieces and not self.is_held:
            piece = self._pieces[0]
            size = min(count - filled, len(piece.samples) - self._at)
            out[filled : filled + size] = piece.samples[self._at : self._at + size]
            self._at, filled = self._at + size, filled + size
            while self._mark < len(piece.marks) and piece.marks[self._mark].sample <= self._at:
                heard.append(Position(piece.answer, piece.marks[self._mark].position))
                self._mark += 1
            if self._at == len(piece.samples):
                self._pieces.popleft()
                self._at = self._mark = 0
        out[first:] *= self._ramp(count - first)
        self.num_out += count
        return out, heard

    def _ramp(self, count: int) -> Samples:
        """Volume of the next `count` samples."""
        if self._gain == self._wanted or not count:
            return np.full(count, self._gain, np.float32)
        whole = 1.0 - gain(DUCK_DB)
        step = whole / ((_DUCK_S if self._wanted < self._gain else _BACK_S) * self.rate)
        way = np.minimum(np.arange(1, count + 1) * step, abs(self._wanted - self._gain))
        volumes = self._gain + math.copysign(1.0, self._wanted - self._gain) * way
        self._gain = float(volumes[-1])
        if abs(self._gain - self._wanted) < step:
            self._gain = self._wanted
        return np.asarray(volumes, np.float32)
