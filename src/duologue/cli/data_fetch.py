"""`duologue data fetch`: fetches public corpora as sources, from the Hugging Face hub and from repositories."""

import argparse
from pathlib import Path

from duologue.cli.command import Command, Option
from duologue.cli.progress import progress
from duologue.data.hub import SOURCES, HubSource, fetch
from duologue.data.repositories import REPOSITORIES, RepositorySource, fetch_files

_CORPORA: dict[str, HubSource | RepositorySource] = {**SOURCES, **REPOSITORIES}
_LIST = "\n".join(
    f"  {name:22} {source.folder:11} {source.license:29} {source.repo}" for name, source in sorted(_CORPORA.items())
)
_EPILOG = f"""\
corpora, with their kind, licence and origin:
{_LIST}

gigaspeech, ultrachat and voiceassistant are on the Hugging Face hub, the others in repositories on GitHub. Checksums of
files from repositories are kept in DIR/SOURCES.json, and a file that has changed since is refused.

examples:
  duologue data fetch voiceassistant --out corpora --limit 50000
  duologue data fetch slurp --out corpora
"""

COMMAND = Command(
    "fetch public corpora as sources",
    "Save a public corpus as a source.",
    options=(
        Option("name", choices=sorted(_CORPORA), metavar="NAME", help="the corpus"),
        Option("--out", type=Path, required=True, metavar="DIR", help="folder of sources to write to"),
        Option("--limit", type=int, default=50_000, metavar="N", help="maximum number of rows (default 50000)"),
        Option("--repo", metavar="REPO", help="another copy of the corpus, at the same host or in a folder"),
        Option("--revision", metavar="REV", help="commit, tag or branch of the dataset (default: the newest)"),
    ),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Fetch a source."""
    with progress(f"Fetching {args.name}") as stage:
        path = (fetch if args.name in SOURCES else fetch_files)(
            args.name,
            args.out,
            args.limit,
            repo=args.repo,
            revision=args.revision,
            on_row=lambda row: stage.count("rows", row, args.limit),
        )
    print(f"The source is in {path}.")
    return 0
