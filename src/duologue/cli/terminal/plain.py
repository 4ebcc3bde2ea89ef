"""The chat without a screen: lines in, lines out, for pipes, logs and simple terminals."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from codecs import getincrementaldecoder
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from duologue.cli.terminal.commands import About, Commands
from duologue.cli.terminal.lines import EventPrinter
from duologue.core.transitions import Floor
from duologue.errors import UsageError

if TYPE_CHECKING:
    from duologue.client import Talk
    from duologue.engine.handle import Handle

_ONE_GO_S = 0.2  # lines closer together than this were not typed in response to an answer
_POLL_S = 0.05


class Plain:
    """One conversation over standard input and output."""

    def __init__(self, talk: "Handle | Talk", *, is_paced: bool, commands: Commands | None = None) -> None:
        """`is_paced`: words are printed when they are heard instead of when they are said."""
        self._talk = talk
        self._commands = commands or Commands(talk, About("plain"))
        self._is_paced = is_paced

    async def run(self, source: TextIO | None, out: TextIO | None) -> None:
        """Talk until `source` ends and everything has been said. None stands for a closed stream.

        Raises:
            EngineError: the backend failed.
            BrokenPipeError: the reader of `out` is gone.
        """
        printer = EventPrinter(out, has_times=False, is_paced=self._is_paced)
        printing = asyncio.create_task(self._print(printer))
        reading = asyncio.create_task(self._read(source, printer))
        if source is not None and source.isatty():
            self._stop_on_interrupt(reading)
        try:
            await asyncio.wait((printing, reading), return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            await self._talk.aclose()
            results = await asyncio.gather(printing, reading, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        printer.end()

    def _stop_on_interrupt(self, reading: "asyncio.Task[None]") -> None:
        """Let Ctrl-C stop a running answer, and only in silence end the chat."""

        def interrupt() -> None:
            if self._talk.floor is Floor.SILENT:
                reading.cancel()
            else:
                self._talk.stop()

        # Not in a thread, nor on Windows: there, Ctrl-C ends the program.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)

    async def _read(self, source: TextIO | None, printer: EventPrinter) -> None:
        lines: asyncio.Queue[tuple[str, bool] | None] = asyncio.Queue()
        _start_reader(source, lines)
        number = 0
        while (item := await lines.get()) is not None:
            line, is_backlog = item
            if not line.strip():
                continue
            if is_backlog:
                await self._silence()
            if self._commands.knows(line):
                self._run(line, printer)
                if self._commands.is_over:
                    return
                continue
            self._talk.hear(line.strip(), utterance=f"line-{number}", final=True)
            number += 1
        await self._silence()

    def _run(self, line: str, printer: EventPrinter) -> None:
        try:
            note = self._commands.run(line)
        except UsageError as error:
            note = str(error)
        for part in (note or "").splitlines():
            printer.remark(part)

    async def _silence(self) -> None:
        """Wait until everything has been answered."""
        while self._talk.floor is not Floor.SILENT or self._talk.is_listening:
            await asyncio.sleep(_POLL_S)

    async def _print(self, printer: EventPrinter) -> None:
        async for event in self._talk.events():
            self._commands.tell(event)
            printer.tell(event)


def _start_reader(source: TextIO | None, lines: "asyncio.Queue[tuple[str, bool] | None]") -> None:
    """Put lines into the queue as they arrive, each with whether it arrived together with the one before; then None.

    The thread is a daemon: a read from a terminal cannot be interrupted, and the program must be able to end.
    """
    if source is None:
        lines.put_nowait(None)
        return
    fd, loop = os.dup(source.fileno()), asyncio.get_running_loop()

    def put(item: tuple[str, bool] | None) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, item)

    threading.Thread(target=_read, args=(fd, put), name="duologue-stdin", daemon=True).start()


def _read(fd: int, put: Callable[[tuple[str, bool] | None], None]) -> None:
    # From the file descriptor: Python's own reader holds a lock that blocks the end of the program.
    decoder = getincrementaldecoder("utf-8")("replace")
    rest, last_at = "", float("-inf")
    with contextlib.suppress(RuntimeError):  # the loop is closed
        with contextlib.suppress(OSError):  # the terminal was hung up, which is the same as its end
            while data := os.read(fd, 1 << 16):
                *complete, rest = (rest + decoder.decode(data)).split("\n")
                for line in complete:
                    now = time.monotonic()
                    put((line, now - last_at < _ONE_GO_S))
                    last_at = now
            if rest:
                put((rest, time.monotonic() - last_at < _ONE_GO_S))
        put(None)
    os.close(fd)
