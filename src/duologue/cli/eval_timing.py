"""`duologue eval timing`: how long answers wait, and how often they begin while the speaker goes on."""

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from duologue.cli.command import Command, Option
from duologue.cli.options import EAGERNESS, MODEL, load_model, what_decides
from duologue.cli.progress import progress

_EPILOG = """\
FILE has one JSON object per line, plain or gzipped:
  {"text": "I am in Leeds.", "ends": false}              the words up to a joint of a turn, where the user goes on
  {"text": "I am in Leeds. Is it far?", "ends": true}    the words up to the end of a turn
  … "context": [{"role": "user", "text": "hi"}, …]       earlier turns, user and assistant alternating
  … "system": "You are terse."                           instead of the model's own system prompt

examples:
  duologue eval timing rows.jsonl
  duologue eval timing rows.jsonl --eagerness 0.5 --json
"""

COMMAND = Command(
    "how long answers wait, and how often they begin too early",
    "Compute the wait after the words of each row as a conversation does. At a joint, an answer is early if the wait "
    "is over before a pause of 0.6, 1.2 or 2.0 s. At the end of a turn, the wait is the delay. The time of a decision "
    "is not counted.",
    options=(
        Option("file", type=Path, metavar="FILE", help="rows that say whether the turn ends"),
        EAGERNESS,
        Option("--json", action="store_true", help="one JSON object; the table goes to standard error"),
    ),
    groups={"model": MODEL},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from duologue.evaluation.states import Decider
    from duologue.evaluation.timing import probabilities, read_timing, report
    from duologue.evaluation.timing_report import tables

    rows = read_timing(args.file)
    if rows.unread:
        print(f"note: {args.file}: unknown fields are ignored: {', '.join(rows.unread)}", file=sys.stderr)
    with closing(load_model(args)) as model, progress("Deciding") as stage:
        p_ends = probabilities(rows, model, progress=stage)
        policy = model.policy(eagerness=args.eagerness)
    result: dict[str, Any] = {**what_decides(args, Decider.of(model)), **report(rows.samples, p_ends, policy)}
    print(tables(result), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0
