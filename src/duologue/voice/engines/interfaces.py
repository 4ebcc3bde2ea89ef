"""What the voice needs from others: who detects speech, who recognises words, who speaks. Small, to be replaced."""

from dataclasses import dataclass
from typing import Protocol

from duologue.voice.sound import Samples


class SpeechDetector(Protocol):
    """Tells speech from other sound, frame by frame. It has a memory: one conversation, one detector."""

    frame: int
    """Samples that it takes at a time, at 16 kHz."""

    def __call__(self, samples: Samples) -> float:
        """How probable it is that somebody speaks in these `frame` samples."""
        ...


class Recognition(Protocol):
    """The words of one utterance, while it grows."""

    async def hear(self, samples: Samples, *, last: bool = False) -> str:
        """`samples`, at 16 kHz, come behind those before. Returns all words so far, which may revise earlier ones.

        Raises:
            EngineError: it could not; what was heard is kept, and more can be heard.
        """
        ...


class Recogniser(Protocol):
    """Turns speech into words, for any number of utterances."""

    def begin(self) -> Recognition:
        """A new utterance."""
        ...

    async def aclose(self) -> None:
        """Free what it holds."""
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """When sample `sample` has been played, the text up to character `position` has been heard."""

    sample: int
    position: int


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """Spoken text. `marks` grow, one a word; the last one ends the text."""

    samples: Samples
    rate: int
    marks: tuple[Mark, ...]


class Synthesiser(Protocol):
    """Speaks."""

    async def speak(self, text: str) -> Speech:
        """`text`, a clause or so, as sound. Cancelling it is allowed.

        Raises:
            EngineError: it could not.
        """
        ...

    async def aclose(self) -> None:
        """Free what it holds, end the programs it started."""
        ...
