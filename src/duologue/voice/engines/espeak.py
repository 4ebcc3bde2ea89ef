"""Synthesis with espeak-ng, a program of Linux distributions (GPL, hence run as a separate process)."""

import asyncio
import io
import shutil
import wave

from duologue.errors import EngineError, MissingDependency
from duologue.voice.engines.interfaces import Speech
from duologue.voice.marks import estimated
from duologue.voice.sound import from_pcm16


class EspeakSynthesiser:
    """Starts the program for each text, which takes a few hundredths of a second.

    Raises:
        MissingDependency: espeak-ng is not installed.
    """

    def __init__(self, voice: str = "en-us", *, words_per_minute: int = 165) -> None:
        program = shutil.which("espeak-ng")
        if program is None:
            raise MissingDependency("espeak-ng is not installed; it is a package of your distribution")
        self._command = (program, "-v", voice, "-s", str(words_per_minute), "--stdin", "--stdout")

    async def speak(self, text: str) -> Speech:
        """See `Synthesiser`."""
        try:
            program = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise EngineError(f"espeak-ng does not start: {error}") from error
        out, trouble = await program.communicate(text.encode())
        if program.returncode:
            raise EngineError(f"espeak-ng failed: {trouble.decode(errors='replace').strip()[:200]}")
        with wave.open(io.BytesIO(out), "rb") as file:  # its header has no length
            rate = file.getframerate()
        return estimated(text, from_pcm16(out[44 : 44 + (len(out) - 44) // 2 * 2]), rate)

    async def aclose(self) -> None:
        """Nothing to release."""
