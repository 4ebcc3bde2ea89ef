"""`duologue bench cost`: six kinds of sessions hold the same conversations on the same weights."""

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path

from duologue.cli.command import Command, Option, whole
from duologue.cli.options import MODEL, load_model
from duologue.cli.progress import progress
from duologue.errors import UsageError

_EPILOG = """\
cdm            channel division (Duologue): new words join the forward pass of the answer's next token
sequential     two channels, one after the other
tdm            time division: every two seconds a slice of the user's words, then up to ten tokens or <idle>
tdm_skip_idle  the same; pairs in which neither side spoke are removed
turns          waits for the end of the user's turn, and does not listen while it answers
vad            any sound stops the answer, and silence starts one

Every pass is computed. Its tokens and decisions are then replaced by those of the script.

examples:
  duologue bench cost
  duologue bench cost --json | tail -1                 {"sessions": {"cdm": {"passes", "overlap_passes", …}, …}}
  duologue bench cost --backend torch --picture cost.png
"""


COMMAND = Command(
    "passes, time and memory of six kinds of sessions",
    "Hold the same scripted conversations in six kinds of sessions, and count what each costs.",
    options=(
        Option("--json", action="store_true", help="print one JSON object; tables go to standard error"),
        Option("--picture", type=Path, metavar="FILE", help="also draw the figures into FILE (PNG; needs matplotlib)"),
        Option(
            "--conversations",
            type=whole(least=1, most=1000),
            default=2,
            metavar="N",
            help="number of conversations (default 2)",
        ),
        Option(
            "--exchanges",
            type=whole(least=1, most=1000),
            default=6,
            metavar="N",
            help="questions per conversation (default 6)",
        ),
        Option("--seed", type=int, default=0, metavar="N", help="random seed of order and timing (default 0)"),
    ),
    groups={"model": MODEL},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Measure, print and draw."""
    from duologue.evaluation.cost import measure
    from duologue.evaluation.cost_report import draw, tables

    if args.picture is not None and not args.picture.parent.is_dir():
        raise UsageError(f"--picture {args.picture}: the folder {args.picture.parent} does not exist; create it first")
    with closing(load_model(args)) as model, progress("Running conversations") as stage:
        result = measure(
            model, conversations=args.conversations, exchanges=args.exchanges, seed=args.seed, progress=stage
        )
    print(tables(result["sessions"]), file=sys.stderr if args.json else sys.stdout)
    if args.picture is not None:
        try:
            draw(result["sessions"], args.picture)
        except OSError as error:
            raise UsageError(f"--picture {args.picture} cannot be written: {error.strerror}") from error
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0
