"""Progress of long work on standard error: a bar per stage, removed when the work ends."""

import sys
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
        """The same in counts."""
        self(what, done / max(1, total))


@contextmanager
def progress(title: str) -> Iterator[Stage]:
    """Show `title` and the stages of the work until the block ends. A terminal is left as it was.

    If standard error is not a terminal, each stage is one line.
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


class _Lines(Stage):
    def __init__(self, title: str) -> None:
        self._stages: set[str] = set()
        print(f"{title} …", file=sys.stderr, flush=True)

    def __call__(self, what: str, share: float | None = None) -> None:
        stage = what.partition(":")[0]
        if stage not in self._stages:
            self._stages.add(stage)
            print(f"  {visible(stage)}", file=sys.stderr, flush=True)


class _Bars(Stage):
    def __init__(self, bars: "Progress", title: str) -> None:
        self._bars = bars
        self._title = bars.add_task(title, total=None)
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, share: float | None = None) -> None:
        stage = what.partition(":")[0]
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(visible(what), total=None if share is None else 1.0)
        self._bars.update(self._tasks[stage], completed=share, description=f"  {visible(what)}")
