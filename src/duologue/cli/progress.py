"""What takes longer than a second says so: one line on standard error that is rewritten while it lasts."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from duologue.cli.terminal.cells import fitted, visible

_PERIOD_S = 0.5


class Stage(Protocol):
    """Told what is being done, and which share of it is done (0 … 1) where that is known."""

    def __call__(self, what: str, share: float | None = None) -> None: ...


@contextmanager
def progress(title: str, *, columns: int = 78) -> Iterator[Stage]:
    """Show `title`, the stage and the seconds until the block ends; on a terminal nothing of it stays.

    Where standard error is no terminal, each stage is one line.
    """
    stream = sys.stderr
    if stream is None:
        yield lambda what, share=None: None
    elif not stream.isatty():
        yield _Lines(title, stream)
    else:
        line = _Line(title, stream, columns)
        thread = threading.Thread(target=line.run, name="duologue-progress", daemon=True)
        thread.start()
        try:
            yield line
        finally:
            line.end()
            thread.join()


class _Lines:
    def __init__(self, title: str, stream: TextIO) -> None:
        self._stream = stream
        self._last = ""
        print(f"{title} …", file=stream, flush=True)

    def __call__(self, what: str, share: float | None = None) -> None:
        if what != self._last:
            self._last = what
            print(f"  {visible(what)}", file=self._stream, flush=True)


class _Line:
    def __init__(self, title: str, stream: TextIO, columns: int) -> None:
        self._title = title
        self._stream = stream
        self._columns = columns
        self._stage = ""
        self._began = time.monotonic()
        self._ended = threading.Event()

    def __call__(self, what: str, share: float | None = None) -> None:
        self._stage = f": {visible(what)}" + ("" if share is None else f" {share:.0%}")

    def run(self) -> None:
        """Rewrite the line until the end, then wipe it away."""
        while True:
            seconds = time.monotonic() - self._began
            text = f"{self._title}{self._stage} …" + (f" {seconds:.0f} s" if seconds >= 1 else "")
            print("\r" + fitted(text, self._columns), end="", file=self._stream, flush=True)
            if self._ended.wait(_PERIOD_S):
                break
        print("\r" + " " * self._columns + "\r", end="", file=self._stream, flush=True)

    def end(self) -> None:
        """The block is over."""
        self._ended.set()
