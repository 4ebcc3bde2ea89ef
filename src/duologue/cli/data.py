"""`duologue data`: builds labelled samples from sources, and fetches sources from the hub."""

import argparse
from pathlib import Path
from typing import Any

from duologue.cli.progress import progress
from duologue.errors import MissingDependency, UsageError
from duologue.models.catalogue import DEFAULT, find

_DATA = """\
`duologue data TASK --help` describes a task.

examples:
  duologue data fetch voiceassistant --out corpora         fetch a dataset from the hub as a source
  duologue data build duologue --sources corpora --out samples
"""

_BUILD = """\
DIR contains folders of JSONL files, plain or gzipped, with one object per line:
  queries/      {"id", "text", "kind": "assistant_query"}          said to an assistant
  background/   {"id", "text", "doc"}                              said to others
  dialogues/    {"id", "turns": [{"role", "text"}, ...]}           user and assistant alternate
  hard/         stop_commands.jsonl and other cases                optional

recipes:
  duologue      four states: alone, in a dialogue and during an answer; only cuts that are clearly unfinished
  paper         the mix of the DUO paper: queries whole or cut at a random word, background speech, no context

OUT gets train.jsonl, dev.jsonl (other documents of the same sources), test.jsonl (whole sources that the other two do
not contain) and report.md, which shows how well labels can be guessed from surface features alone.

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
        help="build samples for training and evaluation",
        description="Build labelled samples from corpora: what was said, and whether to answer it.",
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
        help="build labelled samples from a folder of sources",
        description="Build labelled samples from a folder of sources.",
        epilog=_BUILD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("recipe", choices=sorted(RECIPES))
    build.add_argument("--sources", type=Path, required=True, metavar="DIR", help="folder of JSONL sources")
    build.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder to write the samples to")
    build.add_argument("--samples", type=int, metavar="N", help="number of training samples (default: the recipe's)")
    build.add_argument("--dev", type=int, metavar="N", help="number of samples for early stopping and thresholds")
    build.add_argument("--test", type=int, metavar="N", help="samples per test group; 0: no test set")
    build.add_argument("--unseen", nargs="+", metavar="SOURCE", help="sources for the test set only")
    build.add_argument(
        "--cuts-by",
        default=DEFAULT,
        metavar="MODEL",
        help="a model that detects complete requests, so that cuts which are complete are left out; "
        f'"rules": no model (default {DEFAULT}; the recipe "paper" uses none)',
    )
    build.add_argument(
        "--judge-url", metavar="URL", help="an OpenAI-compatible server that checks the background lines"
    )
    build.add_argument("--judge-model", metavar="NAME", help="the model of that server")
    build.add_argument(
        "--judge-key-env", metavar="VARIABLE", help="environment variable that holds the key of that server"
    )
    build.add_argument("--seed", type=int, default=0)
    build.set_defaults(run=run_build)


def _add_fetch(tasks: Any) -> None:
    from duologue.data.hub import SOURCES

    fetch = tasks.add_parser(
        "fetch",
        help="fetch sources from the Hugging Face hub",
        description="Save a dataset of the hub as a source.",
        epilog=_FETCH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fetch.add_argument("name", choices=sorted(SOURCES))
    fetch.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of sources to write to")
    fetch.add_argument("--limit", type=int, default=50_000, metavar="N", help="maximum number of rows (default 50000)")
    fetch.add_argument("--repo", metavar="REPO", help="another copy of the dataset, on the hub or in a folder")
    fetch.set_defaults(run=run_fetch)


def run_build(args: argparse.Namespace) -> int:
    """Build a folder of samples and print the report."""
    from dataclasses import replace

    from duologue.data.corpus import source_files
    from duologue.data.dataset import DatasetBuilder
    from duologue.data.judge import Judge
    from duologue.data.recipes import RECIPES

    if not args.sources.is_dir():
        raise UsageError(
            f"--sources {args.sources} is not a folder; `duologue data build --help` describes its contents"
        )
    if (args.judge_url is None) != (args.judge_model is None):
        raise UsageError("--judge-url and --judge-model must be given together")
    given = {"num_samples": args.samples, "num_dev": args.dev, "num_test": args.test, "seed": args.seed}
    recipe = replace(RECIPES[args.recipe], **{name: value for name, value in given.items() if value is not None})
    if args.unseen is not None:
        there = {name for sources in source_files(args.sources).values() for name in sources}
        if missing := sorted(set(args.unseen) - there):
            raise UsageError(f"--unseen {' '.join(missing)}: no such source; the folder has {', '.join(sorted(there))}")
        recipe = replace(recipe, unseen=frozenset(args.unseen))
    judge = None
    if args.judge_url is not None:
        cache = args.out / "verdicts.jsonl"
        judge = Judge(args.judge_url, args.judge_model, cache=cache, api_key_env=args.judge_key_env)
    end_of_turn = None if args.cuts_by == "rules" or recipe.cuts == "random" else _end_of_turn(args.cuts_by)
    made_by = {"cuts_by": None if end_of_turn is None else args.cuts_by, "judge": args.judge_model}
    with progress("Building samples") as stage:
        content = DatasetBuilder(
            args.sources,
            args.out,
            recipe,
            end_of_turn=end_of_turn,
            judge=judge,
            made_by=made_by,
            at_most=[split for split, number in (("train", args.samples), ("dev", args.dev)) if number is None],
            progress=stage.count,
        ).build()
    print((args.out / "report.md").read_text(encoding="utf-8"))
    for split, wanted in (("train", recipe.num_samples), ("dev", recipe.num_dev)):
        if (number := content[split]["num_samples"]) < wanted:
            print(f"The sources give only {number} different samples for {split}.jsonl, not the recipe's {wanted}.")
    print(f"The samples are in {args.out}. Train on them with: duologue train alora --data {args.out} --out DIR")
    return 0


def run_fetch(args: argparse.Namespace) -> int:
    """Fetch a source."""
    from duologue.data.hub import fetch

    with progress(f"Fetching {args.name}") as stage:
        path = fetch(
            args.name, args.out, args.limit, repo=args.repo, on_row=lambda row: stage.count("rows", row, args.limit)
        )
    print(f"The source is in {path}.")
    return 0


def _end_of_turn(name: str) -> Any:
    """The model that detects complete cuts."""
    source = find(name)
    try:
        from duologue.backends.torch.loading import read_model
        from duologue.backends.torch.tokenizer import HfTokenizer
        from duologue.training.end_of_turn import EndOfTurnModel
    except ImportError as error:
        raise MissingDependency(
            f"a model that judges cuts needs {error.name}; install it with: pip install 'duologue[train]', or use "
            "--cuts-by rules"
        ) from error
    model, tokenizer = read_model(source.location)
    return EndOfTurnModel(model, HfTokenizer(tokenizer))
