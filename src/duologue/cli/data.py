"""`duologue data`: from sources to labelled samples, and from the hub to sources."""

import argparse
from pathlib import Path
from typing import Any

from duologue.cli.bars import bars
from duologue.errors import MissingDependency, UsageError
from duologue.models.catalogue import DEFAULT, find

_DATA = """\
`duologue data TASK --help` explains a task.

examples:
  duologue data fetch voiceassistant --out corpora         a dataset of the hub, as a source
  duologue data build duologue --sources corpora --out samples
"""

_BUILD = """\
DIR has folders of JSONL files, plain or gzipped, one object a line:
  queries/      {"id", "text", "kind": "assistant_query"}          said to an assistant
  background/   {"id", "text", "doc"}                              said to others
  dialogues/    {"id", "turns": [{"role", "text"}, ...]}           user and assistant in turn
  hard/         stop_commands.jsonl and other cases                optional

recipes:
  duologue      four states, alone, in a dialogue and over a running answer; only cuts that are clearly unfinished
  paper         the mix of the DUO paper: queries whole or cut at a random word, talk to others, no context

OUT gets train.jsonl, dev.jsonl (other documents of the same sources), test.jsonl (whole sources that the first two do
not have) and report.md, which says how far labels can be guessed without understanding anything.

example:
  duologue data build duologue --sources corpora --out samples
"""

_FETCH = """\
example:
  duologue data fetch voiceassistant --out corpora --limit 50000
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "data",
        help="make samples to train on and to test with",
        description="From human-made corpora to labelled samples: what was said, and whether to answer it.",
        epilog=_DATA,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", required=True)
    _add_build(tasks)
    _add_fetch(tasks)


def _add_build(tasks: Any) -> None:
    from duologue.data.recipes import RECIPES

    build = tasks.add_parser(
        "build",
        help="labelled samples from a folder of sources",
        description="Make labelled samples from a folder of sources.",
        epilog=_BUILD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("recipe", choices=sorted(RECIPES))
    build.add_argument("--sources", type=Path, required=True, metavar="DIR", help="folder of JSONL sources")
    build.add_argument("--out", type=Path, required=True, metavar="OUT", help="where the samples go")
    build.add_argument("--samples", type=int, metavar="N", help="to train on (default: the recipe's)")
    build.add_argument("--dev", type=int, metavar="N", help="to stop early and to set thresholds by")
    build.add_argument("--test", type=int, metavar="N", help="size of a test group; 0: no test")
    build.add_argument("--unseen", nargs="+", metavar="SOURCE", help="sources to test on and never train on")
    build.add_argument(
        "--cuts-by",
        default=DEFAULT,
        metavar="MODEL",
        help="a model that says where a request may end, so that cuts which are complete in themselves are left out; "
        f'"rules": without one (default {DEFAULT}; the recipe "paper" needs none)',
    )
    build.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible server that reads the background lines")
    build.add_argument("--judge-model", metavar="NAME", help="its model")
    build.add_argument("--judge-key-env", metavar="VARIABLE", help="environment variable that holds its key")
    build.add_argument("--seed", type=int, default=0)
    build.set_defaults(run=run_build)


def _add_fetch(tasks: Any) -> None:
    from duologue.data.hub import SOURCES

    fetch = tasks.add_parser(
        "fetch",
        help="sources from the Hugging Face hub",
        description="Write a dataset of the hub as a source.",
        epilog=_FETCH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fetch.add_argument("name", choices=sorted(SOURCES))
    fetch.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of sources to add to")
    fetch.add_argument("--limit", type=int, default=50_000, metavar="N", help="rows at most (default 50000)")
    fetch.add_argument("--repo", metavar="REPO", help="a copy of the dataset, on the hub or in a folder")
    fetch.set_defaults(run=run_fetch)


def run_build(args: argparse.Namespace) -> int:
    """Build a folder of samples and print the report. Returns the exit status."""
    from dataclasses import replace

    from duologue.data.corpus import source_files
    from duologue.data.folder import FolderBuilder
    from duologue.data.judge import Judge
    from duologue.data.recipes import RECIPES

    if not args.sources.is_dir():
        raise UsageError(f"--sources {args.sources} is no folder; see `duologue data build --help` for what it holds")
    if (args.judge_url is None) != (args.judge_model is None):
        raise UsageError("--judge-url and --judge-model go together")
    given = {"num_samples": args.samples, "num_dev": args.dev, "num_test": args.test, "seed": args.seed}
    recipe = replace(RECIPES[args.recipe], **{name: value for name, value in given.items() if value is not None})
    if args.unseen is not None:
        there = {name for sources in source_files(args.sources).values() for name in sources}
        if missing := sorted(set(args.unseen) - there):
            raise UsageError(f"--unseen {' '.join(missing)}: no such source; there are {', '.join(sorted(there))}")
        recipe = replace(recipe, unseen=frozenset(args.unseen))
    judge = None
    if args.judge_url is not None:
        verdicts = args.out / "verdicts.jsonl"
        judge = Judge(args.judge_url, args.judge_model, cache=verdicts, api_key_env=args.judge_key_env)
    ends = None if args.cuts_by == "rules" or recipe.cuts == "random" else _model_ends(args.cuts_by)
    made_by = {"cuts_by": None if ends is None else args.cuts_by, "judge": args.judge_model}
    with bars() as progress:
        FolderBuilder(
            args.sources, args.out, recipe, ends=ends, judge=judge, made_by=made_by, progress=progress
        ).build()
    print((args.out / "report.md").read_text(encoding="utf-8"))
    print(f"the samples are in {args.out}; train on them with: duologue train alora --data {args.out} --out DIR")
    return 0


def run_fetch(args: argparse.Namespace) -> int:
    """Fetch a source. Returns the exit status."""
    from duologue.data.hub import fetch

    with bars() as progress:
        path = fetch(
            args.name, args.out, args.limit, repo=args.repo, on_row=lambda row: progress(args.name, row, args.limit)
        )
    print(f"the source is in {path}")
    return 0


def _model_ends(name: str) -> Any:
    source = find(name)
    try:
        from duologue.backends.torch.loading import read_model
        from duologue.backends.torch.tokenizer import HfTokenizer
        from duologue.training.end_of_turn import EndOfTurnModel
    except ImportError as error:
        raise MissingDependency(
            f"a model that judges cuts needs {error.name}; install it with: pip install 'duologue[train]', or give "
            "--cuts-by rules"
        ) from error
    model, tokenizer = read_model(source.location)
    return EndOfTurnModel(model, HfTokenizer(tokenizer))
