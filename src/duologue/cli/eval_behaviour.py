"""`duologue eval behaviour`: scripted conversations on a virtual clock."""

import argparse
import json
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duologue.cli.command import Command, Option, whole
from duologue.cli.options import (
    ENDPOINT,
    LISTENER,
    MODEL_WITHOUT_CONTEXT,
    load_model,
    make_folder,
    other_backend,
    write_result,
)
from duologue.cli.progress import progress
from duologue.errors import UsageError

if TYPE_CHECKING:
    from duologue.evaluation.behaviour.cases import Case
    from duologue.evaluation.behaviour.measures import CaseResult

SPLITS = ("test", "dev")
FORMATS = ("cases", "record", "flexi", "full_duplex_bench", "codett", "turnbench")
_SMOKE = 16  # of the conversations, one in so many

_EPILOG = """\
Without CASES, the 638 conversations that come with the package are played. They are frozen; tune on --split dev only.
CASES is a file of cases, one JSON object per line, or a folder of such files:
  {"id": "a", "kind": "recorded", "history": [{"role": "user", "text": "why is the sky blue"}],
   "answer": "Because light is scattered by small things in the air.",
   "acts": [{"at": 2, "speak": "mhm"}, {"at": 5, "type": "stop"}],
   "expect": [{"action": "go_on", "from": 2, "at": 2.4}, {"action": "stop", "at": 5}]}
Actions are answer, wait, go_on, stop and resume. docs/behaviour.md describes every field.

examples:
  duologue eval behaviour                                    the default model with its adapter
  duologue eval behaviour --json | tail -1                   {"n", "set", "accuracy", "actions", "kinds", "pairs", …}
  duologue eval behaviour --sessions duplex,turns,vad --out report
  duologue eval behaviour records/talk.jsonl --write my-cases/talk.jsonl     a recorded conversation becomes cases
  duologue eval behaviour my-cases --model my-model
  duologue eval behaviour --model model.gguf --listener smollm2     another model answers, the default one decides
  duologue eval behaviour --speaker http://127.0.0.1:8000/v1 --speaker-model qwen3
  duologue eval behaviour data_text_json --read flexi
"""


COMMAND = Command(
    "conversations on a virtual clock, judged by rules",
    "Play scripted conversations and judge what happens in them by rules: the same verdicts every run.",
    options=(
        Option("cases", type=Path, nargs="?", metavar="CASES", help="conversations of your own"),
        Option("--split", choices=SPLITS, default="test", help="which of the package's conversations"),
        Option("--seed", type=int, metavar="N", help="generate conversations with other names and times instead"),
        Option("--read", choices=FORMATS, help="format of CASES (default: cases, or a record)"),
        Option("--write", type=Path, metavar="FILE", help="write the conversations there as cases, and stop"),
        Option(
            "--sessions",
            default="duplex",
            metavar="NAMES",
            help="kinds of sessions, separated by commas: duplex (default), prompted, slices, turns, vad, tdm, or all "
            "of these; tdm_trained, with a model of `duologue train tdm`",
        ),
        Option("--smoke", action="store_true", help=f"only one in {_SMOKE} conversations"),
        Option(
            "--at-once", type=whole(least=1, most=24), default=8, metavar="N", help="conversations per pass (default 8)"
        ),
        Option(
            "--compare",
            metavar="BACKEND[:WEIGHTS]",
            help="play on another backend too, and count differing verdicts",
        ),
        Option("--json", action="store_true", help="one JSON object per kind of session; tables to stderr"),
        Option("--out", type=Path, metavar="DIR", help="write result.json, kinds.png and index.html there"),
    ),
    groups={"model": (*MODEL_WITHOUT_CONTEXT, LISTENER, *ENDPOINT)},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Play, judge, print and write."""
    from duologue.evaluation.behaviour.measures import details, difference, line
    from duologue.evaluation.behaviour.report import tables

    names = _sessions(args.sessions)
    cases = _cases(args)
    if args.write is not None:
        return _write_cases(cases, args.write)
    other = None if args.compare is None else other_backend(args)
    if args.out is not None:
        make_folder(args.out)
    judged = _judged(args, cases, names)
    runs = {name: {**line(found), **details(found)} for name, found in judged.items()}
    if other is not None:
        for name, again in _judged(other, cases, names).items():
            runs[name]["compare"] = {"backend": other.backend, **difference(judged[name], again)}
    print(tables(runs), file=sys.stderr if args.json else sys.stdout)
    for name, result in runs.items():
        if "compare" in result:
            print(f"{name} on {args.compare}: {json.dumps(result['compare'])}", file=sys.stderr)
    if args.out is not None:
        write_result(args.out, runs, partial(_write_pages, args.out, runs, judged))
    if args.json:
        for found in judged.values():
            print(json.dumps(line(found), ensure_ascii=False))
    return 0


def _sessions(names: str) -> list[str]:
    from duologue.evaluation.behaviour.player import SESSIONS, TRAINED

    chosen = list(SESSIONS) if names == "all" else names.split(",")
    if unknown := [name for name in chosen if name not in (*SESSIONS, TRAINED)]:
        raise UsageError(f"no kind of session {unknown[0]!r}; there are {', '.join((*SESSIONS, TRAINED))}, and all")
    return chosen


def _cases(args: argparse.Namespace) -> "list[Case]":
    """The conversations that the options name; every mistake in them is found before a model is loaded."""
    from duologue.evaluation.behaviour.generate import generate, split
    from duologue.evaluation.behaviour.readers import read

    if args.cases is not None:
        cases = read(args.cases, args.read)
    elif args.read is not None:
        raise UsageError("--read is the format of CASES; name a file or a folder")
    else:
        cases = split(args.split) if args.seed is None else generate(args.seed)
    return cases[::_SMOKE] if args.smoke else cases


def _judged(args: argparse.Namespace, cases: "list[Case]", names: list[str]) -> "dict[str, list[CaseResult]]":
    from duologue.evaluation.behaviour.measures import CaseResult
    from duologue.evaluation.behaviour.player import MAX_LENGTH, kind_of, play_all

    judged = {}
    with closing(load_model(args, context_length=MAX_LENGTH, sessions=args.at_once)) as model:
        for name in names:
            with progress(f"Playing to {name} sessions") as stage:
                kind = kind_of(name, model)
                played = play_all(cases, kind, model.backend, model.template, at_once=args.at_once, progress=stage)
                judged[name] = [CaseResult.of(one) for one in played]
    return judged


def _write_cases(cases: "list[Case]", path: Path) -> int:
    make_folder(path.parent)
    lines = [json.dumps(case.to_json(), ensure_ascii=False) + "\n" for case in cases]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{len(cases)} conversations in {path}: correct what must happen in them by hand where it is wrong")
    return 0


def _write_pages(folder: Path, runs: dict[str, dict[str, Any]], judged: "dict[str, list[CaseResult]]") -> None:
    from duologue.evaluation.behaviour.report import draw, page

    (folder / "index.html").write_text(page("Behaviour", runs, judged), encoding="utf-8")
    draw(runs, folder / "kinds.png")
