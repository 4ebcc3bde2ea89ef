"""`duologue data build`: builds labelled samples from a folder of sources."""

import argparse
from pathlib import Path
from typing import Any

from duologue.cli.command import Command, Option, whole
from duologue.cli.progress import progress
from duologue.cli.terminal.text import counted
from duologue.data.recipes import LANGUAGES, RECIPES, STARTER
from duologue.errors import MissingDependency, UsageError
from duologue.models.catalogue import DEFAULT, find

_EPILOG = """\
DIR contains folders of JSONL files, plain or gzipped, with one object per line:
  queries/      {"id", "text", "kind": "assistant_query"}          said to an assistant, on its own
                {"id", "text", "kind": "assistant_turn", "before"} a turn of a dialogue, and what the assistant had said
  background/   {"id", "text", "doc"}                              said to others
  dialogues/    {"id", "turns": [{"role", "text"}, ...]}           user and assistant alternate
  hard/         stop_commands.jsonl and other cases                optional
Mandarin files are in subfolders of these: queries/zh, background/zh, ... Their sources are named zh/NAME.

recipes:
  duologue      four states: alone, in a dialogue and during an answer; only cuts that are clearly unfinished
  starter       the same from a small corpus that comes with the package (CC0): enough for a first adapter
  paper         the mix of the DUO paper: queries whole or cut at a random word, background speech, no context

OUT gets train.jsonl, dev.jsonl (sources or documents that are not trained on), test.jsonl (whole sources that the other
two do not contain), timing.jsonl (turns cut at their joints, for `duologue eval timing`) and report.md, which shows how
well labels can be guessed from surface features alone.

examples:
  duologue data build starter --out samples
  duologue data build duologue --sources corpora --out samples
  duologue data build duologue --sources corpora --languages en zh --out samples
"""

COMMAND = Command(
    "build labelled samples from a folder of sources",
    "Build labelled samples from a folder of sources.",
    options=(
        Option("recipe", choices=sorted(RECIPES)),
        Option(
            "--sources",
            type=Path,
            metavar="DIR",
            help="folder of JSONL sources; the recipe starter has its own, which comes with the package",
        ),
        Option("--out", type=Path, required=True, metavar="OUT", help="folder to write the samples to"),
        Option(
            "--samples", type=whole(least=1), metavar="N", help="number of training samples (default: the recipe's)"
        ),
        Option("--dev", type=int, metavar="N", help="number of samples for early stopping and thresholds"),
        Option("--test", type=int, metavar="N", help="samples per test group; 0: no test set"),
        Option(
            "--languages",
            nargs="+",
            choices=LANGUAGES,
            default=["en"],
            help="languages of the samples, in equal shares: en, zh (Mandarin); default en",
        ),
        Option("--unseen", nargs="+", metavar="SOURCE", help="sources for the test set only"),
        Option(
            "--cuts-by",
            default=DEFAULT,
            metavar="MODEL",
            help="the model that detects complete requests, so that cuts that are complete are left out; "
            f'"rules": no model (default {DEFAULT}; the recipe "paper" uses none)',
        ),
        Option("--cuts-by-revision", metavar="REV", help="commit, tag or branch of that model, if it is downloaded"),
        Option("--judge-url", metavar="URL", help="an OpenAI-compatible server that checks the background lines"),
        Option("--judge-model", metavar="NAME", help="the model of that server"),
        Option("--judge-key-env", metavar="VARIABLE", help="environment variable that holds the key of that server"),
        Option("--seed", type=int, default=0),
    ),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Build a folder of samples and say what is in it."""
    from dataclasses import replace

    from duologue.data.corpus import files_by_language
    from duologue.data.dataset import DatasetBuilder
    from duologue.data.device_directed import Judge

    if args.sources is None and args.recipe != "starter":
        raise UsageError("--sources DIR is missing: the folder of JSONL sources (only the recipe starter has its own)")
    sources = STARTER if args.sources is None else args.sources
    if not sources.is_dir():
        raise UsageError(f"--sources {sources} is not a folder; `duologue data build --help` describes its contents")
    if (args.judge_url is None) != (args.judge_model is None):
        raise UsageError("--judge-url and --judge-model must be given together")
    given = {"num_samples": args.samples, "num_dev": args.dev, "num_test": args.test, "seed": args.seed}
    recipe = replace(RECIPES[args.recipe], **{name: value for name, value in given.items() if value is not None})
    recipe = recipe.in_languages(args.languages)
    if args.unseen is not None:
        found = files_by_language(sources, recipe)
        there = {name for folders in found.values() for files in folders.values() for name in files}
        if missing := sorted(set(args.unseen) - there):
            raise UsageError(f"--unseen {' '.join(missing)}: no such source; the folder has {', '.join(sorted(there))}")
        recipe = replace(recipe, unseen=frozenset(args.unseen))
    judge = None
    if args.judge_url is not None:
        cache = args.out / "verdicts.jsonl"
        judge = Judge(args.judge_url, args.judge_model, cache=cache, api_key_env=args.judge_key_env)
    name, revision = args.cuts_by, args.cuts_by_revision
    end_of_turn = None if name == "rules" or recipe.cuts == "random" else _end_of_turn(name, revision)
    cuts_by = None if end_of_turn is None else name if revision is None else f"{name}@{revision}"
    made_by = {"cuts_by": cuts_by, "judge": args.judge_model}
    with progress("Building samples") as stage:
        content = DatasetBuilder(
            sources,
            args.out,
            recipe,
            end_of_turn=end_of_turn,
            judge=judge,
            made_by=made_by,
            at_most=[split for split, number in (("train", args.samples), ("dev", args.dev)) if number is None],
            progress=stage.count,
        ).build()
    for split in ("train", "dev", "test"):
        if split in content:
            states = ", ".join(f"{state} {number}" for state, number in content[split]["states"].items())
            print(f"{split}.jsonl: {counted(content[split]['num_samples'], 'sample')} ({states})")
    if (timing := args.out / "timing.jsonl").exists():
        with timing.open(encoding="utf-8") as lines:
            print(f"timing.jsonl: {counted(sum(1 for _ in lines), 'sample')} for `duologue eval timing`")
    print(f"{args.out / 'report.md'} says more about them, and how well labels can be guessed without a model.")
    for split, wanted in (("train", recipe.num_samples), ("dev", recipe.num_dev)):
        if (number := content[split]["num_samples"]) < wanted:
            print(f"The sources give only {number} different samples for {split}.jsonl, not the recipe's {wanted}.")
    print(f"The samples are in {args.out}. Train on them with: duologue train alora --data {args.out} --out DIR")
    return 0


def _end_of_turn(name: str, revision: str | None) -> Any:
    """The model that detects complete cuts."""
    source = find(name, revision)
    try:
        from duologue.backends.torch.loading import read_model
        from duologue.backends.torch.tokenizer import HfTokenizer
        from duologue.training.end_of_turn import EndOfTurnModel
    except ImportError as error:
        raise MissingDependency(
            f"a model that judges cuts needs {error.name}; install it with: pip install 'duologue[train]', or use "
            "--cuts-by rules"
        ) from error
    model, tokenizer = read_model(source.location, revision=source.revision, dtype="float32")
    return EndOfTurnModel(model, HfTokenizer(tokenizer))
