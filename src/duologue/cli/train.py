"""`duologue train`: from a folder of sources to an adapter folder."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duologue.catalogue import DEFAULT, find
from duologue.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from duologue.training.prefixes import Progress

_EPILOG = """\
DIR has folders of JSONL files, plain or gzipped, one object a line:
  queries/      {"id", "text", "kind": "assistant_query"}          said to an assistant
  background/   {"id", "text", "doc"}                              said to others
  dialogues/    {"id", "turns": [{"role", "text"}, ...]}           user and assistant in turn
  hard/         stop_commands.jsonl and other cases                optional

A run that was killed goes on when the same command is given again.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "train",
        help="train an adapter, on a CPU",
        description="Train what makes a model duplex. The base is frozen: nothing it says changes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=("rows",), help="rows: vectors of the probe and the states")
    parser.add_argument("-m", "--model", default=DEFAULT, help="a short name, a .gguf file, a folder or hub name")
    parser.add_argument("--sources", type=Path, required=True, metavar="DIR", help="folder of JSONL sources")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the adapter folder goes")
    parser.add_argument("--samples", type=int, default=8000, metavar="N", help="training samples (default 8000)")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="at most; ends early (default 12)")
    parser.add_argument("--lr", type=float, default=4e-3, help="learning rate (default 0.004)")
    parser.add_argument("--batch", type=int, default=48, metavar="N", help="samples a step (default 48)")
    parser.add_argument("--probes", type=int, default=1, metavar="N", help="probe tokens (default 1)")
    parser.add_argument("--unseen", nargs="+", metavar="SOURCE", help="sources to test on and never train on")
    parser.add_argument("--test", type=int, default=100, metavar="N", help="size of a test group; 0: no test")
    parser.add_argument("--start", type=Path, metavar="DIR", help="an adapter folder to begin from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "f32"), help="of the base (default bf16)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--memory-gb", type=float, default=8.0, metavar="GB", help="for cached prefixes (default 8)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, write the adapter and print the report. Returns the exit status."""
    try:
        import torch

        from duologue.adapters import Adapter
        from duologue.data.build import Recipe
        from duologue.training.job import Job, load_base, report_lines, run_rows
        from duologue.training.rows import RowsSettings
    except ImportError as error:
        raise MissingDependency(
            f"training needs {error.name}; install it with: pip install 'duologue[train]'"
        ) from error
    if not args.sources.is_dir():
        raise UsageError(f"--sources {args.sources} is no folder; see `duologue train --help` for what it holds")
    source = find(args.model)
    recipe = Recipe(num_samples=args.samples, seed=args.seed)
    if args.unseen is not None:
        recipe = replace(recipe, unseen=frozenset(args.unseen))
    job = Job(
        sources=args.sources,
        out=args.out,
        recipe=recipe,
        settings=RowsSettings(epochs=args.epochs, batch=args.batch, lr=args.lr, num_probes=args.probes, seed=args.seed),
        num_dev=max(50, min(800, args.samples // 4)),
        num_unseen=args.test,
        memory_gb=args.memory_gb,
        threads=args.threads,
        start=None if args.start is None else Adapter.load(args.start),
    )
    model, tokenizer = load_base(source, torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    with _progress() as progress:
        adapter = run_rows(job, model, tokenizer, name=source.name, progress=progress, say=_say)
    print("\n".join(report_lines(dict(adapter.facts))))
    print(f"the adapter is in {args.out}; use it with: duologue chat --model {args.model} --adapter {args.out}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _progress() -> Iterator["Progress"]:
    """A progress bar where there is a terminal and `rich`, otherwise silence."""
    from duologue.training.prefixes import silent

    try:
        from rich.progress import Progress as Bar
    except ImportError:
        yield silent
        return
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console

    with Bar(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show
