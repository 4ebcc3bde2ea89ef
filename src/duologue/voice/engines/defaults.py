"""Loads the default engines, which need no hub and no account."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from duologue.errors import MissingDependency, UsageError
from duologue.voice.engines.espeak import EspeakSynthesiser
from duologue.voice.engines.interfaces import Recogniser, SpeechDetector, Synthesiser
from duologue.voice.engines.piper import PiperSynthesiser
from duologue.voice.engines.silero import SileroDetector
from duologue.voice.engines.whisper import WhisperRecogniser


@dataclass(frozen=True, slots=True)
class Engines:
    """Engines that conversations share. `detector` creates one per conversation, since it has state."""

    recogniser: Recogniser
    synthesiser: Synthesiser
    detector: Callable[[], SpeechDetector] = SileroDetector

    async def aclose(self) -> None:
        """Release the engines."""
        await self.recogniser.aclose()
        await self.synthesiser.aclose()


async def load_engines(
    *,
    recogniser: str | None = None,
    revision: str | None = None,
    voice: str = "auto",
    threads: int = 2,
    language: str = "en",
    progress: Callable[[str], None] = lambda stage: None,
) -> Engines:
    """Load the engines and warm them up.

    Args:
        recogniser: a faster-whisper model; None: whisper-base, from pip packages.
        revision: the commit, tag or branch of the recogniser to download; None: the newest.
        voice: "piper", "espeak", a Piper `.onnx` file, or "auto": Piper if it is installed, else espeak-ng.
        threads: CPU threads of the recogniser.
        language: of the speaker, as a Whisper language code.
        progress: receives the stages.

    Raises:
        MissingDependency: an engine is not installed; the message says how to install it.
        EngineError: a program does not start.
    """
    progress("starting the detector of speech")
    SileroDetector()  # fails early if something is missing
    synthesiser = _synthesiser(voice)
    progress("reading the recogniser")
    heard = await asyncio.to_thread(
        WhisperRecogniser, recogniser, revision=revision, threads=threads, language=language
    )
    if isinstance(synthesiser, PiperSynthesiser):
        progress("starting the voice")
        await synthesiser.speak("Hello.")  # starts the program, so that the first clause does not wait
    progress("trying the recogniser")
    await heard.warm_up()
    return Engines(heard, synthesiser)


def _synthesiser(voice: str) -> PiperSynthesiser | EspeakSynthesiser:
    if voice == "espeak":
        return EspeakSynthesiser()
    if voice not in ("auto", "piper"):
        path = Path(voice)
        if not path.is_file():
            raise UsageError(f"no voice {voice!r}; choose auto, piper, espeak or a Piper .onnx file")
        return PiperSynthesiser(path)
    try:
        return PiperSynthesiser()
    except MissingDependency as error:
        if voice == "piper":
            raise
        try:
            return EspeakSynthesiser()
        except MissingDependency as other:
            raise MissingDependency(f"no synthesiser is installed: {error}; or: {other}") from other
