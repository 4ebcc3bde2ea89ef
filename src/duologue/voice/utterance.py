"""One spoken utterance: its sound, its words so far, and the last decision on them."""

import asyncio
from dataclasses import dataclass, field

import numpy as np

from duologue.types import InputState
from duologue.voice.engines.interfaces import Recognition
from duologue.voice.sound import RATE, Samples, silence

_SURE = 3  # decisions in a row to ignore words that are still growing


@dataclass(slots=True, eq=False)
class SpokenUtterance:
    """An utterance that grows while the user speaks. Positions are samples from its beginning, at 16 kHz."""

    name: str
    recognition: Recognition
    pending: list[Samples]  # samples for the recogniser
    at: float  # seconds on the input's clock when speech was detected
    text: str = ""
    state: InputState | None = None  # the decision on `text`
    num_ignored: int = 0  # consecutive decisions to ignore it, up to the last one
    is_dropped: bool = False  # its words were dropped, as they were then
    is_recognising: bool = False  # the samples returned by `take`
    is_ending: bool = False  # speech has ended; its last words are being recognised
    over: asyncio.Event = field(default_factory=asyncio.Event)  # all its words are known and were passed on
    num_recognised: int = 0  # samples that `text` covers
    num_samples: int = field(init=False)
    voiced_to: int = field(init=False)  # the end of its last speech
    onset: int = field(init=False)  # where speech was detected

    def __post_init__(self) -> None:
        self.num_samples = self.voiced_to = self.onset = sum(map(len, self.pending))

    def add(self, samples: Samples, *, is_speech: bool) -> None:
        """Append samples."""
        self.pending.append(samples)
        self.num_samples += len(samples)
        if is_speech:
            self.voiced_to = self.num_samples

    def take(self) -> Samples:
        """Return the samples that the recogniser has not had, `[n]`, and count them as passed on."""
        samples = np.concatenate(self.pending) if self.pending else silence(0)
        self.pending.clear()
        return samples

    @property
    def is_covered(self) -> bool:
        """Whether `text` covers everything that was spoken."""
        return self.num_recognised >= self.voiced_to

    @property
    def new_s(self) -> float:
        """Seconds of sound that the recogniser has not had."""
        return sum(map(len, self.pending)) / RATE

    @property
    def spoken_s(self) -> float:
        """Seconds from the detection of speech to its last speech."""
        return (self.voiced_to - self.onset) / RATE

    @property
    def is_surely_ignored(self) -> bool:
        """Whether its words can be disregarded. While it grows, the last word may be incomplete or misrecognised, so
        that several decisions in a row are needed.
        """
        return self.is_dropped and (self.is_ending or self.num_ignored == 0 or self.num_ignored >= _SURE)

    def judged(self, text: str, state: InputState) -> None:
        """Record the decision `state` on `text`, which may begin with the words of earlier utterances, or lack those
        at the beginning of this one that are an echo or were answered.
        """
        if self.text and text and (text.endswith(self.text) or self.text.endswith(text)):
            self.state = state
            self.num_ignored = self.num_ignored + 1 if state is InputState.IGNORE else 0
