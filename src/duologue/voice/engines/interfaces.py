"""The protocols that engines implement: speech detection, recognition and synthesis."""

from dataclasses import dataclass
from typing import Protocol

from duologue.hearing.evidence import Features
from duologue.voice.sound import Samples


class SpeechDetector(Protocol):
    """Distinguishes speech from other sound, frame by frame. It has state: use one per conversation."""

    frame: int
    """Samples per frame, at 16 kHz."""

    def __call__(self, samples: Samples) -> float:
        """The probability of speech in a frame, `[frame]`."""
        ...


class Recognition(Protocol):
    """Recognises one utterance while it grows."""

    @property
    def features(self) -> Features | None:
        """What the sound given so far tells beyond its words, [K, F]. None: this recogniser does not say."""
        return None

    async def hear(self, samples: Samples, *, last: bool = False) -> str:
        """Add `samples`, `[n]` at 16 kHz. Returns all words so far, which may revise earlier ones.

        Raises:
            EngineError: recognition failed; the samples are kept, and more can be added.
        """
        ...


class Recogniser(Protocol):
    """Recognises any number of utterances."""

    def begin(self) -> Recognition:
        """Begin an utterance."""
        ...

    async def aclose(self) -> None:
        """Release resources."""
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """Once sample `sample` has been played, the text up to character `position` has been heard."""

    sample: int
    position: int


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """Synthesised text: `samples`, `[n]`, with one mark per word in ascending order; the last one ends the text."""

    samples: Samples
    rate: int
    marks: tuple[Mark, ...]


class Synthesiser(Protocol):
    """Turns text into speech."""

    async def speak(self, text: str) -> Speech:
        """Synthesise `text`, about a clause. May be cancelled.

        Raises:
            EngineError: synthesis failed.
        """
        ...

    async def aclose(self) -> None:
        """Release resources, including processes."""
        ...
