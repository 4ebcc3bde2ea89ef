"""Progress bars of long work: one per stage, on standard error, gone when it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from duologue.data.progress import Progress, silent


@contextmanager
def bars() -> Iterator[Progress]:
    """Bars where there is a terminal and `rich`, otherwise silence."""
    try:
        from rich.progress import Progress as Bar
    except ImportError:
        yield silent
        return
    if sys.stderr is None or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console

    with Bar(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, int] = {}

        def show(what: str, done: int, total: int) -> None:
            stage = what.partition(":")[0]
            if stage not in tasks:
                tasks[stage] = bar.add_task(what, total=total)
            bar.update(tasks[stage], completed=done, total=total, description=what)  # type: ignore[arg-type]

        yield show
