"""One spoken utterance: its sound, its words so far, and the last decision on them."""

import asyncio
from collections.abc import Sequence

import numpy as np

from duologue.types import InputState
from duologue.voice.engines.interfaces import Recognition
from duologue.voice.sound import RATE, Samples, silence

_SURE = 3  # decisions in a row to ignore words that are still growing


class Hearing:
    """An utterance that grows while the user speaks. Positions are samples from its beginning, at 16 kHz."""

    def __init__(self, name: str, recognition: Recognition, begun: Sequence[Samples], at: float) -> None:
        self.name = name
        self.recognition = recognition
        self.at = at  # seconds on the input's clock when speech was detected
        self.text = ""
        self.state: InputState | None = None  # the decision on `text`
        self._num_ignored = 0  # consecutive decisions to ignore it, up to the last one
        self.is_dropped = False  # its words were dropped, as they were then
        self.is_recognising = False  # the samples returned by `take`
        self.is_ending = False  # speech has ended; its last words are being recognised
        self.over = asyncio.Event()  # all its words are known and were passed on
        self._waiting = list(begun)  # samples for the recogniser
        self.num_samples = self._begun = sum(map(len, begun))
        self.voiced_to = self.num_samples  # the end of its last speech
        self.num_recognised = 0  # samples that `text` covers

    def add(self, samples: Samples, *, is_speech: bool) -> None:
        """Append samples."""
        self._waiting.append(samples)
        self.num_samples += len(samples)
        if is_speech:
            self.voiced_to = self.num_samples

    def take(self) -> Samples:
        """Return the samples that the recogniser has not had, `[n]`, and count them as passed on."""
        samples = np.concatenate(self._waiting) if self._waiting else silence(0)
        self._waiting.clear()
        return samples

    @property
    def is_covered(self) -> bool:
        """Whether `text` covers everything that was spoken."""
        return self.num_recognised >= self.voiced_to

    @property
    def new_s(self) -> float:
        """Seconds of sound that the recogniser has not had."""
        return sum(map(len, self._waiting)) / RATE

    @property
    def spoken_s(self) -> float:
        """Seconds from the detection of speech to its last speech."""
        return (self.voiced_to - self._begun) / RATE

    @property
    def is_surely_ignored(self) -> bool:
        """Whether its words can be disregarded. While it grows, the last word may be incomplete or misrecognised, so
        that several decisions in a row are needed.
        """
        return self.is_dropped and (self.is_ending or self._num_ignored == 0 or self._num_ignored >= _SURE)

    def judged(self, text: str, state: InputState) -> None:
        """Record the decision `state` on `text`, which may begin with the words of earlier utterances."""
        if self.text and text.endswith(self.text):
            self.state = state
            self._num_ignored = self._num_ignored + 1 if state is InputState.IGNORE else 0
