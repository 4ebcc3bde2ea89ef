"""One utterance by voice: its sound, its words so far, and what is thought of them."""

import asyncio
from collections.abc import Sequence

import numpy as np

from duologue.types import InputState
from duologue.voice.engines.interfaces import Recognition
from duologue.voice.sound import RATE, Samples, silence

_SURE = 3  # judgements in a row that words are for somebody else, while more of them come


class Hearing:
    """Grows while somebody speaks. Counts samples from its beginning, at 16 kHz."""

    def __init__(self, name: str, recognition: Recognition, begun: Sequence[Samples], at: float) -> None:
        self.name = name
        self.recognition = recognition
        self.at = at  # seconds on the clock of the input at which speech was detected
        self.text = ""
        self.state: InputState | None = None  # what is thought of `text`
        self._num_ignored = 0  # judgements in a row, the last one included, that this is for somebody else
        self.is_dropped = False  # its words were given up, as they were then
        self.is_recognising = False  # what was taken of it
        self.is_ending = False  # nobody speaks any more; its last words are being recognised
        self.over = asyncio.Event()  # all its words are known, and were told
        self._waiting = list(begun)  # what the recogniser does not have yet
        self.num_samples = self._begun = sum(map(len, begun))
        self.voiced_to = self.num_samples  # where the last speech in it ends
        self.num_recognised = 0  # samples that `text` stands for

    def add(self, samples: Samples, *, is_speech: bool) -> None:
        """It goes on."""
        self._waiting.append(samples)
        self.num_samples += len(samples)
        if is_speech:
            self.voiced_to = self.num_samples

    def take(self) -> Samples:
        """What the recogniser does not have yet; it has it now."""
        samples = np.concatenate(self._waiting) if self._waiting else silence(0)
        self._waiting.clear()
        return samples

    @property
    def is_covered(self) -> bool:
        """Whether `text` stands for all that was spoken."""
        return self.num_recognised >= self.voiced_to

    @property
    def new_s(self) -> float:
        """Seconds of it that the recogniser does not have yet."""
        return sum(map(len, self._waiting)) / RATE

    @property
    def spoken_s(self) -> float:
        """Seconds from where speech was detected in it to the last speech in it."""
        return (self.voiced_to - self._begun) / RATE

    @property
    def is_surely_ignored(self) -> bool:
        """Whether nothing comes of its words. While it grows, the last of them may be half a word, or misheard, so that
        they are for somebody else has to be judged more than once.
        """
        return self.is_dropped and (self.is_ending or self._num_ignored == 0 or self._num_ignored >= _SURE)

    def judged(self, text: str, state: InputState) -> None:
        """The model thinks `state` of `text`, which may have other words in front."""
        if self.text and text.endswith(self.text):
            self.state = state
            self._num_ignored = self._num_ignored + 1 if state is InputState.IGNORE else 0
