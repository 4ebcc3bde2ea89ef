"""Turns speech probabilities of frames into the begin and end of speech. Counts frames."""

from dataclasses import dataclass

from duologue.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Thresholds of speech detection."""

    begins_at: float = 0.5  # probability at which speech begins
    ends_below: float = 0.35  # probability below which speech ends
    num_frames: int = 1  # consecutive frames that begin speech; two take 20 to 30 ms longer, and suit rooms with clicks
    sure: float = 0.9  # one frame of this probability begins speech, too

    def __post_init__(self) -> None:
        if not 0 < self.ends_below <= self.begins_at <= 1 or self.num_frames < 1:
            raise UsageError("0 < ends_below <= begins_at <= 1 and num_frames >= 1 must hold")


class Segmenter:
    """Takes one probability per frame.

    `is_speech`: somebody is speaking. `num_quiet`: frames since the last speech.
    """

    def __init__(self, sensitivity: Sensitivity | None = None) -> None:
        self._how = sensitivity or Sensitivity()
        self._num_likely = 0
        self.is_speech = False
        self.num_quiet = 0

    def push(self, p: float) -> bool:
        """Add a frame with speech probability `p`. Returns whether speech begins with it."""
        how = self._how
        if self.is_speech:
            self.is_speech = p >= how.ends_below
            self._num_likely = 0
        else:
            self._num_likely = self._num_likely + 1 if p >= how.begins_at else 0
        begins = not self.is_speech and (self._num_likely >= how.num_frames or (p >= how.sure and self._num_likely > 0))
        self.is_speech = self.is_speech or begins
        self.num_quiet = 0 if self.is_speech else self.num_quiet + 1
        return begins
