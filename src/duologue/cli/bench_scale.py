"""`duologue bench scale`: how many live sessions this machine holds."""

import argparse
import asyncio
import json
from typing import TYPE_CHECKING

from duologue.cli.options import add_model_options, load_model, number, whole

if TYPE_CHECKING:
    from duologue.evaluation.scale import Outcome

_EPILOG = """\
Every session has a history of T tokens, speaks 5 tokens a second without end, and hears five more words of an utterance
every two seconds meanwhile. Verdicts are set, so that nothing depends on what the model thinks of the words; the passes
are real. A deadline is missed when a listener has to wait for the next token.

examples:
  duologue bench scale --sessions 8 --context 512
  duologue bench scale --sessions 8 --json | tail -1
  duologue bench scale --find --sessions 32 --context 128     the largest number up to 32 that runs in real time
"""


def add_parser(measurements: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = measurements.add_parser(
        "scale",
        usage="duologue bench scale [options]",
        help="how many live sessions run in real time",
        description="Run live sessions side by side and measure whether each is served in real time: 95 of 100 "
        "decisions within 300 ms, and 5 tokens a second.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sessions", type=whole(least=1), default=8, metavar="N", help="live at the same time; with --find, the most"
    )
    parser.add_argument(
        "--context", type=whole(least=1), default=512, metavar="T", help="tokens of history of each (default 512)"
    )
    parser.add_argument("--find", action="store_true", help="search the largest number that runs in real time")
    parser.add_argument(
        "--seconds", type=number(least=1), default=20.0, metavar="S", help="measured each time (default 20)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the words (default 0)")
    parser.add_argument("--json", action="store_true", help="a last line of JSON for programs")
    add_model_options(parser, with_context=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, and print a line for each measurement."""
    from duologue.evaluation.scale import Setting, largest, measure

    def setting(sessions: int) -> Setting:
        return Setting(sessions, args.context, args.seconds, seed=args.seed)

    model = load_model(args, context_length=setting(1).max_length, sessions=args.sessions)

    def measured(sessions: int) -> "Outcome":
        outcome = asyncio.run(measure(model.backend, model.template, model.probe, setting(sessions)))
        print(_line(outcome), flush=True)
        return outcome

    try:
        print(_HEADER)
        if args.find:
            found, outcome = largest(args.sessions, measured)
            result = {**outcome.as_dict(), "largest": found}
        else:
            result = measured(args.sessions).as_dict()
        info = model.backend.info
        result |= {"model": model.name, "backend": info.name, "weights": info.weights, "adapter": model.adapter.kind}
    finally:
        model.close()
    if args.json:
        print(json.dumps(result))
    elif args.find:
        print(f"{result['largest']} sessions run in real time" + _hint(result["largest"], args.sessions))
    return 0


_HEADER = "sessions  context   decision p50    p95   tokens/s each, least   missed   passes   in real time"


def _line(outcome: "Outcome") -> str:
    row = outcome.as_dict()
    decision, rate = row["decision_ms"], row["tokens_per_second"]
    return (
        f"{row['sessions']:8}  {row['context_tokens']:7}  {decision['p50']:10.0f} ms {decision['p95']:4.0f} ms"
        f"  {rate['min']:20.2f}  {row['missed_deadlines']:7}  {row['passes']:7}   {'yes' if row['realtime'] else 'no'}"
    )


def _hint(found: int, most: int) -> str:
    return "; try more with --sessions" if found == most else ""
