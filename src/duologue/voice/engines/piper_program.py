"""A program that synthesises with Piper. The package never imports it; it runs as a separate process.

Piper (`piper-tts`) is licensed under the GPL, version 3 or later; this package is not. They communicate through pipes.

standard input: one JSON object per line, {"text": …}
standard output: one line {"rate": 22050}; then for each text a line {"samples": n, "ends": […] or null}, followed by n
    little-endian 16-bit samples. `ends` are the samples at which words end, if the voice reports them.

    python piper_program.py VOICE.onnx
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

_SILENT = frozenset(" ^$_.,;:!?-'\"()")  # pauses and marks


def main(path: str) -> None:
    """Synthesise each text until standard input ends."""
    from piper import PiperVoice, SynthesisConfig

    try:
        voice = PiperVoice.load(path, include_alignments=True)
    except Exception:  # no alignments with this version of `onnx` or this voice
        voice = PiperVoice.load(path)
    how = SynthesisConfig(normalize_audio=False)
    say({"rate": voice.config.sample_rate})
    for line in sys.stdin.buffer:
        text = json.loads(line)["text"]
        chunks = list(voice.synthesize(text, how, include_alignments=True))
        audio = b"".join(chunk.audio_int16_bytes for chunk in chunks)
        say({"samples": len(audio) // 2, "ends": word_ends(chunks, len(text.split()))}, audio)


def word_ends(chunks: Sequence[Any], num_words: int) -> list[int] | None:
    """Samples at which words end; None if they are unknown, for instance when a number is spoken as several words."""
    ends: list[int] = []
    at = 0
    for chunk in chunks:
        if chunk.phoneme_alignments is None:
            return None
        begin, sound_to = at, None
        for item in chunk.phoneme_alignments:
            at += int(item.num_samples)
            if item.phoneme == " " and sound_to is not None:
                ends.append(sound_to)
                sound_to = None
            elif item.phoneme not in _SILENT:
                sound_to = at
        if sound_to is not None:
            ends.append(sound_to)
        at = begin + len(chunk.audio_int16_array)
    return ends if len(ends) == num_words else None


def say(head: dict[str, Any], data: bytes = b"") -> None:
    """Write a header line and its data."""
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
