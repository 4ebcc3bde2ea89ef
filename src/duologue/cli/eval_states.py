"""`duologue eval states`: how well a model tells apart what to answer and what not to."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duologue.cli.command import Command, Option, whole
from duologue.cli.options import (
    MODEL,
    RAY,
    load_model,
    loader,
    make_folder,
    other_backend,
    spread,
    what_decides,
    write_result,
)
from duologue.cli.progress import Stage, progress
from duologue.errors import UsageError
from duologue.models.catalogue import find

if TYPE_CHECKING:
    from duologue.evaluation.labelled_rows import LabelledRows
    from duologue.evaluation.states import Decider, Judgement
    from duologue.models.model import Model

_EPILOG = """\
FILE has one JSON object per line, plain or gzipped:
  {"text": "what is the", "state": "incomplete", "source": "mine"}     the words so far, the right state, the origin
  … "accept": ["ignore"]                                 other states that are right
  … "context": [{"role": "user", "text": "hi"}, …]       earlier turns, user and assistant alternating
  … "speaking": true                                     the last turn of context is a running answer
  … "kind": "cut"                                        adds a table by kind
  … "system": "You are terse."                           instead of the model's own system prompt
States are process, incomplete, ignore and stop.

examples:
  duologue eval states rows.jsonl
  duologue eval states rows.jsonl --json | tail -1       {"n", "accuracy", "answer": {"precision", "recall", "f1"}, …}
  duologue eval states rows.jsonl --baselines --train train.jsonl --out report
  duologue eval states rows.jsonl --backend llamacpp --compare torch
  duologue eval states million.jsonl.gz --ray auto
"""


COMMAND = Command(
    "accuracy of the decisions on labelled rows",
    "Decide on labelled rows as in a conversation, and compare the decisions with the labels.",
    options=(
        Option("file", type=Path, metavar="FILE", help="labelled rows"),
        Option("--json", action="store_true", help="one JSON object; the tables go to standard error"),
        Option(
            "--out", type=Path, metavar="DIR", help="write result.json, reliability.png and curve.png to this folder"
        ),
        Option("--audio", action="store_true", help="also hear the rows: FILE is from `duologue data build-audio`"),
        Option("--baselines", action="store_true", help="also run rules and the prompted model on the same rows"),
        Option("--train", type=Path, metavar="FILE", help="also train a linear probe on these rows, as a baseline"),
        Option(
            "--compare",
            metavar="BACKEND[:WEIGHTS]",
            help="decide on another backend too, and report how often both agree; for example torch or torch:f32",
        ),
        Option(
            "--latencies",
            type=whole(least=0),
            metavar="N",
            help="measure the time of a decision on N rows, one at a time (default 50; 0: none)",
        ),
    ),
    groups={
        "model": MODEL,
        "several workers (each loads the model; the figures stay the same)": (
            Option(
                "--workers",
                type=whole(least=1, most=1024),
                metavar="N",
                help="processes (default: this one); with --ray, on the cluster (default: as many as it has room for)",
            ),
            RAY,
        ),
    },
    epilog=_EPILOG,
)
"""`--threads` are those of each worker, then (default 1)."""

_ALONE = ("audio", "baselines", "train", "compare", "latencies")
"""Options for one process alone."""


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""
    from duologue.evaluation.states_report import draw, tables

    result = _measure(args) if args.workers is None and args.ray is None else _measure_apart(args)
    print(tables(result), file=sys.stderr if args.json else sys.stdout)
    if args.out is not None:
        write_result(args.out, result, partial(draw, result, args.out))
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    from duologue.evaluation.labelled_rows import read, with_sounds
    from duologue.evaluation.states import compare, judge_model, report

    rows = read(args.file)
    if args.audio:
        rows = with_sounds(rows)
    train = None if args.train is None else read(args.train)
    for each in (rows, train):
        if each is not None:
            _tell_unread(each.path, each.unread)
    other = None if args.compare is None else other_backend(args)
    if args.out is not None:
        make_folder(args.out)
    num_latencies = 50 if args.latencies is None else args.latencies
    with closing(load_model(args)) as model, progress("Deciding") as stage:
        baselines = _baselines(args, rows, train, model, stage)
        judged, decider = judge_model(rows, model, num_latencies=num_latencies, progress=stage)
    result = _result(args, judged, decider)
    if baselines:
        result["baselines"] = {
            name: {"unavailable": one} if isinstance(one, str) else report(one) for name, one in baselines.items()
        }
    if other is not None:
        with closing(load_model(other)) as model, progress("Deciding again") as stage:
            again, _ = judge_model(rows, model, num_latencies=0, progress=stage)
        info = model.backend.info
        result["compare"] = {"backend": info.name, "weights": info.weights, **compare(rows, judged, again)}
    return result


def _measure_apart(args: argparse.Namespace) -> dict[str, Any]:
    """The same by several workers, with few rows in memory."""
    from duologue.evaluation.labelled_rows import read_blocks
    from duologue.evaluation.states import judge_blocks

    if given := [name for name in _ALONE if getattr(args, name)]:
        raise UsageError(f"--{given[0]} needs one process; leave out {'--workers' if args.ray is None else '--ray'}")
    workers = spread(args.ray, args.workers, cores=args.threads or 1, gpus=int(args.device.partition(":")[0] == "cuda"))
    load = loader(args)
    num_rows, unread = 0, set[str]()
    for block in read_blocks(args.file):  # what is wrong with a row is said before the work begins
        num_rows += len(block.samples)
        unread.update(block.unread)
    _tell_unread(args.file, sorted(unread))
    if args.out is not None:
        make_folder(args.out)
    with progress("Deciding") as stage:
        blocks = read_blocks(args.file)
        judged, decider = judge_blocks(blocks, load, workers, num_rows=num_rows, progress=stage)
    return _result(args, judged, decider)


def _tell_unread(path: Path, names: Sequence[str]) -> None:
    if names:
        print(f"note: {path}: unknown fields are ignored: {', '.join(names)}", file=sys.stderr)


def _result(args: argparse.Namespace, judged: "Judgement", decider: "Decider") -> dict[str, Any]:
    from duologue.evaluation.states import details, report

    return {
        **what_decides(args, decider),
        "thresholds": {
            name: {state.value: one.of(state) for state in decider.states}
            for name, one in zip(("idle", "speaking"), decider.thresholds, strict=True)
        },
        **report(judged),
        **details(judged),
    }


def _baselines(
    args: argparse.Namespace, rows: "LabelledRows", train: "LabelledRows | None", model: "Model", stage: Stage
) -> "dict[str, Judgement | str]":
    """What other ways to decide make of the rows, or why they cannot be run."""
    from duologue.evaluation.baselines import by_prompting, by_rules, linear_probe

    found: dict[str, Judgement | str] = {}
    if train is not None:
        if shared := {sample.source for sample in rows.samples} & {sample.source for sample in train.samples}:
            names = ", ".join(sorted(shared))
            print(f"note: the linear probe is trained on sources of the test: {names}", file=sys.stderr)
        found["linear probe"] = linear_probe(rows, train, model, find(args.model, args.revision), progress=stage)
    if args.baselines:
        found = {**dict(by_rules(rows.samples)), **dict(by_prompting(rows, model, progress=stage)), **found}
    return found
