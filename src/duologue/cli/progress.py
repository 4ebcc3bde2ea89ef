"""Progress of long work on standard error: bars that are removed when the work ends; in a pipe, a line now and then."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from duologue.cli.terminal.text import visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Stage:
    """Is told which stage the work has reached. This one shows nothing."""

    def __call__(self, what: str, share: float | None = None) -> None:
        """The work is at `what`; `share` of it (0 … 1) is done, if that is known.

        Figures may follow a colon, as in "epoch 2: loss 0.41"; the stage is what comes before it.
        """

    def count(self, what: str, done: int, total: int) -> None:
        """The same in counts; a `total` of 0 is not known."""
        self(what, done / total if total else None)


@contextmanager
def progress(title: str) -> Iterator[Stage]:
    """Show `title` and the stages of the work until the block ends. A terminal is left as it was.

    If standard error is not a terminal, each stage is a line, and a long one is told again every `QUIET_S`.
    """
    if sys.stderr is None:
        yield Stage()
    elif not sys.stderr.isatty():
        yield _Lines(title)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
        with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bars:
            yield _Bars(bars, title)


QUIET_S = 20.0
"""Seconds between two lines on the same stage."""


class _Lines(Stage):
    def __init__(self, title: str) -> None:
        self._told: dict[str, float] = {}  # when each stage was told last
        print(f"{title} …", file=sys.stderr, flush=True)

    def __call__(self, what: str, share: float | None = None) -> None:
        stage, now = what.partition(":")[0], time.monotonic()
        if stage not in self._told:
            self._tell(visible(stage))
        elif now - self._told[stage] >= QUIET_S:
            self._tell(visible(what) if share is None else f"{visible(what)}, {share:.0%}")
        else:
            return
        self._told[stage] = now

    def _tell(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)


class _Bars(Stage):
    def __init__(self, bars: "Progress", title: str) -> None:
        self._bars = bars
        self._title = bars.add_task(title, total=None)
        self._tasks: dict[str, TaskID] = {}
        self._shares: dict[str, float] = {}  # of each stage that are done

    def __call__(self, what: str, share: float | None = None) -> None:
        stage = what.partition(":")[0]
        if stage in self._tasks and share is not None and share < self._shares.get(stage, 0.0):
            self._bars.update(self._tasks.pop(stage), completed=1.0)  # it begins anew, with a bar that does not go back
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(visible(what), total=None if share is None else 1.0)
        self._shares[stage] = share or 0.0
        self._bars.update(self._tasks[stage], completed=share, description=f"  {visible(what)}")
