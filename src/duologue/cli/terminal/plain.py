"""The chat without a screen: lines in, lines out, for pipes, logs and simple terminals."""

import asyncio
import os
import threading
import time
from codecs import getincrementaldecoder
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from duologue.cli.terminal.cells import counted, shortened, visible
from duologue.cli.terminal.transcript import latency_ms
from duologue.core import events as e
from duologue.core.transitions import Floor

if TYPE_CHECKING:
    from duologue.client import Talk
    from duologue.engine.handle import Handle

_ONE_GO_S = 0.2  # lines that come closer together than this were not typed in answer to what was said
_POLL_S = 0.05
_LONGEST = 400  # characters of an utterance that are printed


class Plain:
    """One conversation over standard input and output."""

    def __init__(self, talk: "Handle | Talk", *, is_paced: bool) -> None:
        """`is_paced`: words are printed as they are heard, and not as they are said."""
        self._talk = talk
        self._is_paced = is_paced
        self._text: dict[int, str] = {}
        self._shown: dict[int, int] = {}  # characters printed of each answer
        self._too_long: set[int] = set()  # answers that met their length limit
        self._is_open = False  # whether a line of an answer is unfinished
        self._out: TextIO | None = None

    async def run(self, source: TextIO | None, out: TextIO | None) -> None:
        """Until `source` ends and everything has been said. None stands for a stream that is closed.

        Raises:
            EngineError: the backend failed.
            BrokenPipeError: nobody reads `out` any more.
        """
        self._out = out
        telling = asyncio.create_task(self._tell())
        talking = asyncio.create_task(self._read(source))
        try:
            await asyncio.wait((telling, talking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            talking.cancel()
            await self._talk.aclose()
            results = await asyncio.gather(telling, talking, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        self._line("")

    async def _read(self, source: TextIO | None) -> None:
        lines: asyncio.Queue[tuple[str, bool] | None] = asyncio.Queue()
        _start_reader(source, lines)
        number = 0
        while (item := await lines.get()) is not None:
            line, is_backlog = item
            if not line.strip():
                continue
            if is_backlog:
                await self._silence()
            self._talk.hear(line.strip(), utterance=f"line-{number}", final=True)
            number += 1
        await self._silence()

    async def _silence(self) -> None:
        """Until everything has been answered."""
        while self._talk.floor is not Floor.SILENT or self._talk.is_listening:
            await asyncio.sleep(_POLL_S)

    async def _tell(self) -> None:
        async for event in self._talk.events():
            self._print(event)

    def _print(self, event: e.Event) -> None:
        match event:
            case e.Said(answer=answer, start=start, text=text):
                self._text[answer] = self._text.get(answer, "")[:start] + text
                if not self._is_paced:
                    self._write(text)
            case e.Heard(answer=answer, position=position) if self._is_paced:
                self._write(self._text[answer][self._shown.get(answer, 0) : position])
                self._shown[answer] = position
            case e.Received(text=text, final=True):
                self._line(f"> {visible(shortened(text, _LONGEST))}")
            case e.Decided(decision=decision):
                self._line(f"  [{decision.state} {decision.p:.2f}, {latency_ms(event):.0f} ms]")
            case e.Suspended(unheard=unheard):
                self._line(f"  [cut; {counted(len(unheard.split()), 'word')} unheard]")
            case e.Resumed():
                self._line("  [goes on]")
            case e.Refused(reason=reason):
                self._line(f"  [not done: {reason}]")
            case e.Dropped(reason="patience"):
                self._line("  [dropped: never finished]")
            case e.Trimmed(turns_dropped=dropped):
                self._line(f"  [left out to make room: the oldest {counted(dropped, 'turn')}]")
            case e.Finished(answer=answer, reason="length"):
                self._too_long.add(answer)
            case e.Committed(answer=answer):  # not before: it may be heard much later than it was finished
                self._line("  [the answer met its length limit]" if answer in self._too_long else "")
            case _:
                pass

    def _write(self, text: str) -> None:
        if self._out is not None and text:
            print(visible(text), end="", flush=True, file=self._out)
            self._is_open = True

    def _line(self, text: str) -> None:
        if self._out is None:
            return
        if self._is_open:
            print(flush=True, file=self._out)  # whoever reads a pipe line by line waits for it
            self._is_open = False
        if text:
            print(text, flush=True, file=self._out)


def _start_reader(source: TextIO | None, lines: "asyncio.Queue[tuple[str, bool] | None]") -> None:
    """Put lines into the queue as they come, with whether they came together with the one before; then None.

    The thread is a daemon: nothing can wake a read from a terminal, and the program must be able to end.
    """
    loop = asyncio.get_running_loop()
    if source is None:
        lines.put_nowait(None)
        return
    fd = os.dup(source.fileno())

    def tell(item: tuple[str, bool] | None) -> bool:
        try:
            loop.call_soon_threadsafe(lines.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody listens any more
            return False
        return True

    threading.Thread(target=_read, args=(fd, tell), name="duologue-stdin", daemon=True).start()


def _read(fd: int, tell: Callable[[tuple[str, bool] | None], bool]) -> None:
    # By the file descriptor: Python's own reader holds a lock that would be missed when the program ends.
    decoder = getincrementaldecoder("utf-8")("replace")
    rest, last_at, is_open = "", float("-inf"), True
    try:
        while is_open and (data := os.read(fd, 1 << 16)):
            *complete, rest = (rest + decoder.decode(data)).split("\n")
            for line in complete:
                now = time.monotonic()
                is_open = is_open and tell((line, now - last_at < _ONE_GO_S))
                last_at = now
        if is_open and rest:
            tell((rest, time.monotonic() - last_at < _ONE_GO_S))
    except OSError:
        pass  # a terminal that was hung up: the same as its end
    finally:
        tell(None)
        os.close(fd)
