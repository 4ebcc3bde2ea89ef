"""`duologue data fetch`: fetches sources from the Hugging Face hub."""

import argparse
from pathlib import Path

from duologue.cli.command import Command, Option
from duologue.cli.progress import progress
from duologue.data.hub import SOURCES, fetch

_EPILOG = """\
example:
  duologue data fetch voiceassistant --out corpora --limit 50000
"""

COMMAND = Command(
    "fetch sources from the Hugging Face hub",
    "Save a dataset of the hub as a source.",
    options=(
        Option("name", choices=sorted(SOURCES)),
        Option("--out", type=Path, required=True, metavar="DIR", help="folder of sources to write to"),
        Option("--limit", type=int, default=50_000, metavar="N", help="maximum number of rows (default 50000)"),
        Option("--repo", metavar="REPO", help="another copy of the dataset, on the hub or in a folder"),
        Option("--revision", metavar="REV", help="commit, tag or branch of the dataset (default: the newest)"),
    ),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Fetch a source."""
    with progress(f"Fetching {args.name}") as stage:
        path = fetch(
            args.name,
            args.out,
            args.limit,
            repo=args.repo,
            revision=args.revision,
            on_row=lambda row: stage.count("rows", row, args.limit),
        )
    print(f"The source is in {path}.")
    return 0
