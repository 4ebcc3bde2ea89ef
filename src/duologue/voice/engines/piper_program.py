"""A program that speaks with Piper. Nothing of the package imports it: it runs as a process of its own.

Piper (`piper-tts`) is licensed under the GPL, version 3 or later; this package is not. So the two meet over pipes.

standard input: one JSON text a line, {"text": …}
standard output: first {"rate": 22050} as a line; then for each text a line {"samples": n, "ends": […] or null}, with
    n little-endian 16-bit samples behind it. `ends` are the samples at which the words of the text end, if the voice
    tells.

    python piper_program.py VOICE.onnx
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

_SILENT = frozenset(" ^$_.,;:!?-'\"()")  # phonemes that are pauses, or none


def main(path: str) -> None:
    """Speak what comes until there is nothing more."""
    from piper import PiperVoice, SynthesisConfig

    try:
        voice = PiperVoice.load(path, include_alignments=True)
    except Exception:  # an `onnx` that does not fit this Python or this voice: without ends
        voice = PiperVoice.load(path)
    how = SynthesisConfig(normalize_audio=False)
    say({"rate": voice.config.sample_rate})
    for line in sys.stdin.buffer:
        text = json.loads(line)["text"]
        chunks = list(voice.synthesize(text, how, include_alignments=True))
        audio = b"".join(chunk.audio_int16_bytes for chunk in chunks)
        say({"samples": len(audio) // 2, "ends": word_ends(chunks, len(text.split()))}, audio)


def word_ends(chunks: Sequence[Any], num_words: int) -> list[int] | None:
    """Samples at which words end; None if that is not known. Numbers are said as several words, for instance."""
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
    """A line, and what belongs to it."""
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
