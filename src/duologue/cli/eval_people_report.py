"""`duologue eval people report`: what people think."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from duologue.cli.command import Command, Option
from duologue.cli.options import make_folder, write_result

_EPILOG = """\
For each criterion: wins, ties and losses of the first system, its score with a 95 % interval, the sign test, and
Krippendorff's alpha. docs/people.md says what they mean. Judges have tables and figures of their own.

examples:
  duologue eval people report study
  duologue eval people report study --json
  duologue eval people report study --out report      result.json, report.md, people.png, people.svg
"""

COMMAND = Command(
    "say what people think",
    "Report the ballots of a study: tables, and the papers' figures.",
    options=(
        Option("study", type=Path, metavar="STUDY", help="the study's folder"),
        Option("--seed", type=int, default=0, metavar="N", help="seed of the intervals (default 0)"),
        Option("--json", action="store_true", help="one JSON object instead of tables"),
        Option("--out", type=Path, metavar="DIR", help="write result.json, report.md and the figures there"),
    ),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Count and draw."""
    from duologue.evaluation.people.report import report, tables
    from duologue.evaluation.people.study import Study

    result = report(Study.read(args.study), seed=args.seed)
    if args.out is not None:
        make_folder(args.out)
        write_result(args.out, result, partial(_write, args.out, result))
    print(json.dumps(result, ensure_ascii=False) if args.json else tables(result))
    return 0


def _write(folder: Path, result: dict[str, Any]) -> None:
    from duologue.evaluation.people.report import draw, tables

    (folder / "report.md").write_text(tables(result) + "\n", encoding="utf-8")
    draw(result, folder)
