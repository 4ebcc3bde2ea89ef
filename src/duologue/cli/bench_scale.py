"""`duologue bench scale`: how many live sessions this machine can serve in real time."""

import argparse
import asyncio
import json
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from duologue.cli.command import Command, Option, number, whole
from duologue.cli.options import MODEL_WITHOUT_CONTEXT, load_model

_EPILOG = """\
Each session has a history of T tokens, speaks 5 tokens per second without end, and meanwhile hears five more words of
an utterance every two seconds. All passes are computed. The decisions are forced, so that the results do not depend on
how the model judges the words. A deadline is missed if a user has to wait for the next token.

examples:
  duologue bench scale --sessions 8 --context 512
  duologue bench scale --sessions 8 --json | tail -1
  duologue bench scale --find --sessions 32 --context 128     the largest number up to 32 in real time
"""

CONTEXT = Option(
    "--context",
    type=whole(least=1),
    default=512,
    metavar="T",
    help="tokens of history of each session (default 512)",
)

COMMAND = Command(
    "measure how many live sessions run in real time",
    "Run live sessions at the same time, and measure whether all are served in real time: 95 % of "
    "decisions within 300 ms, and 5 tokens per second for each session.",
    options=(
        Option(
            "--sessions",
            type=whole(least=1),
            default=8,
            metavar="N",
            help="live sessions; with --find, the maximum to try",
        ),
        CONTEXT,
        Option("--find", action="store_true", help="search for the largest number that runs in real time"),
        Option(
            "--seconds",
            type=number(least=1),
            default=20.0,
            metavar="S",
            help="duration of each measurement (default 20)",
        ),
        Option("--seed", type=int, default=0, metavar="N", help="random seed of the words (default 0)"),
        Option("--json", action="store_true", help="also print the result as a last line of JSON"),
    ),
    groups={"model": MODEL_WITHOUT_CONTEXT},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Measure, and print one line per measurement."""
    from duologue.evaluation.scale import ScaleResult, ScaleSetting, largest, measure

    def setting(sessions: int) -> ScaleSetting:
        return ScaleSetting(sessions, args.context, args.seconds, seed=args.seed)

    def measured(sessions: int) -> ScaleResult:
        result = asyncio.run(measure(model.backend, model.template, model.probe, setting(sessions)))
        print(line(result.as_dict()), flush=True)
        return result

    with closing(load_model(args, context_length=setting(1).max_length, sessions=args.sessions)) as model:
        print(HEADER)
        found, best = largest(args.sessions, measured) if args.find else (0, measured(args.sessions))
        info = model.backend.info
        figures = {**best.as_dict(), **({"largest": found} if args.find else {})}
        figures |= {"model": model.name, "backend": info.name, "weights": info.weights, "adapter": model.adapter.kind}
    if args.json:
        print(json.dumps(figures))
    elif args.find:
        print(f"{found} sessions run in real time" + ("; try more with --sessions" if found == args.sessions else ""))
    return 0


HEADER = "sessions  context   decision p50    p95   tokens/s of slowest    missed   passes   in real time"
"""Of the lines of results."""


def line(row: Mapping[str, Any]) -> str:
    """One result, below `HEADER`."""
    decision, rate = row["decision_ms"], row["tokens_per_second"]
    return (
        f"{row['sessions']:8}  {row['context_tokens']:7}  {decision['p50']:10.0f} ms {decision['p95']:4.0f} ms"
        f"  {rate['min']:20.2f}  {row['missed_deadlines']:7}  {row['passes']:7}   {'yes' if row['realtime'] else 'no'}"
    )
