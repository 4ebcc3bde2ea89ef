"""The engines that are there: a detector, a recogniser and a voice that need no hub and no account."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from duologue.errors import MissingDependency, UsageError
from duologue.voice.engines.espeak import EspeakSynthesiser
from duologue.voice.engines.interfaces import Recogniser, SpeechDetector, Synthesiser
from duologue.voice.engines.piper import PiperSynthesiser
from duologue.voice.engines.silero import SileroDetector
from duologue.voice.engines.whisper import WhisperRecogniser

VoiceName = Literal["auto", "piper", "espeak"]


@dataclass(frozen=True, slots=True)
class Engines:
    """What any number of conversations share. `detector` makes one for a conversation: it remembers what it heard."""

    recogniser: Recogniser
    synthesiser: Synthesiser
    detector: Callable[[], SpeechDetector] = SileroDetector

    async def aclose(self) -> None:
        """Free both."""
        await self.recogniser.aclose()
        await self.synthesiser.aclose()


async def load_engines(
    *, recogniser: str | None = None, voice: str = "auto", threads: int = 2, language: str = "en"
) -> Engines:
    """The engines, ready.

    Args:
        recogniser: a model of faster-whisper; None: whisper-base, from pip packages.
        voice: "piper", "espeak", an `.onnx` file of Piper's, or "auto": Piper where it is installed, else espeak-ng.
        threads: of the CPU, for the recogniser.
        language: of the speaker, as Whisper names it.

    Raises:
        MissingDependency: something is not installed; the message says what, and how to install it.
        EngineError: a program does not start.
    """
    SileroDetector()  # what is missing is said before anything takes time
    synthesiser = _synthesiser(voice)
    heard = await asyncio.to_thread(WhisperRecogniser, recogniser, threads=threads, language=language)
    if isinstance(synthesiser, PiperSynthesiser):
        await synthesiser.start()
    await heard.warm_up()
    return Engines(heard, synthesiser)


def _synthesiser(voice: str) -> PiperSynthesiser | EspeakSynthesiser:
    if voice == "espeak":
        return EspeakSynthesiser()
    if voice not in ("auto", "piper"):
        path = Path(voice)
        if not path.is_file():
            raise UsageError(f"no voice {voice!r}: give auto, piper, espeak, or an .onnx file of Piper's")
        return PiperSynthesiser(path)
    try:
        return PiperSynthesiser()
    except MissingDependency as error:
        if voice == "piper":
            raise
        try:
            return EspeakSynthesiser()
        except MissingDependency as other:
            raise MissingDependency(f"there is no voice to speak with: {error}; or {other}") from other
