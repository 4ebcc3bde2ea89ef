"""`duologue eval states`: how well a model tells apart what to answer and what not to."""

import argparse
import json
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duologue.cli.command import Command, Option, whole
from duologue.cli.options import MODEL, load_model, make_folder, other_backend, what_decides, write_result
from duologue.cli.progress import Stage, progress
from duologue.models.catalogue import find

if TYPE_CHECKING:
    from duologue.evaluation.labelled_rows import LabelledRows
    from duologue.evaluation.states import Judgement
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
            default=50,
            metavar="N",
            help="measure the time of a decision on N rows, one at a time (default 50; 0: none)",
        ),
    ),
    groups={"model": MODEL},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""
    from duologue.evaluation.labelled_rows import read, with_sounds
    from duologue.evaluation.states_report import draw, tables

    rows = read(args.file)
    if args.audio:
        rows = with_sounds(rows)
    train = None if args.train is None else read(args.train)
    for each in (rows, train):
        if each is not None and each.unread:
            print(f"note: {each.path}: unknown fields are ignored: {', '.join(each.unread)}", file=sys.stderr)
    other = None if args.compare is None else other_backend(args)
    if args.out is not None:
        make_folder(args.out)
    result = _measure(args, rows, train, other)
    print(tables(result), file=sys.stderr if args.json else sys.stdout)
    if args.out is not None:
        write_result(args.out, result, partial(draw, result, args.out))
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0


def _measure(
    args: argparse.Namespace, rows: "LabelledRows", train: "LabelledRows | None", other: argparse.Namespace | None
) -> dict[str, Any]:
    from duologue.evaluation.states import compare, details, judge_model, report

    with closing(load_model(args)) as model, progress("Deciding") as stage:
        baselines = _baselines(args, rows, train, model, stage)
        judged, thresholds = judge_model(rows, model, num_latencies=args.latencies, progress=stage)
    result: dict[str, Any] = {
        **what_decides(args, model),
        "thresholds": {
            name: {state.value: one.of(state) for state in model.probe.states}
            for name, one in zip(("idle", "speaking"), thresholds, strict=True)
        },
        **report(judged),
        **details(judged),
    }
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
