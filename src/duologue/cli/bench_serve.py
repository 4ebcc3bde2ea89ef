"""`duologue bench serve`: load on a server, by many clients at a time."""

import argparse
import asyncio
import json
import os
from typing import TYPE_CHECKING

from duologue.cli.options import add_model_options, number, whole
from duologue.errors import MissingDependency

if TYPE_CHECKING:
    from duologue.evaluation.callers import LoadOutcome

_EPILOG = """\
Without --url, a server is started for it on this machine, with the model that the options name, and ended afterwards.
Clients and server share the machine then.

examples:
  duologue bench serve --clients 8 --minutes 1
  duologue bench serve --clients 8 --minutes 10 --json | tail -1
  duologue bench serve --url http://127.0.0.1:8080 --clients 4
"""


def add_parser(measurements: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = measurements.add_parser(
        "serve",
        usage="duologue bench serve [options]",
        help="load on a server by many clients at a time",
        description="Talk to a server with many clients at a time, and measure whether each is served in real time: 95 "
        "of 100 decisions within 300 ms from words sent to decision received, and nobody waits a second for words.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", metavar="URL", help="a server that runs; a token is taken from DUOLOGUE_TOKEN")
    parser.add_argument(
        "--clients", type=whole(least=1, most=1000), default=8, metavar="N", help="at a time (default 8)"
    )
    parser.add_argument(
        "--minutes", type=number(least=0, above=True), default=1.0, metavar="T", help="how long (default 1)"
    )
    parser.add_argument(
        "--answer", type=whole(least=1, most=1 << 20), default=128, metavar="N", help="most tokens of an answer (128)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the words (default 0)")
    parser.add_argument("--json", action="store_true", help="a last line of JSON for programs")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, and print how it goes."""
    try:
        from duologue.evaluation.callers import LoadSetting, load
        from duologue.evaluation.own_server import own_server
    except ImportError as error:
        raise MissingDependency('servers are talked to by websockets: pip install "duologue[server]"') from error
    setting = LoadSetting(args.clients, args.minutes * 60, answer=args.answer, seed=args.seed)
    print(_HEADER)
    if args.url is not None:
        outcome = asyncio.run(load(args.url, setting, token=os.environ.get("DUOLOGUE_TOKEN"), told=_tell))
    else:
        with own_server(_flags(args)) as server:
            outcome = asyncio.run(load(server.url, setting, memory=server.memory, told=_tell))
    result = outcome.as_dict()
    print(f"in real time: {'yes' if result['realtime'] else 'no'}")
    if args.json:
        print(json.dumps(result))
    return 0


_HEADER = "decisions   p50      p95      answers   lost   server MB"


def _tell(outcome: "LoadOutcome") -> None:
    row = outcome.as_dict()
    size = f"{row['memory_mb'][-1]:9.0f}" if row["memory_mb"] else "        –"
    p50, p95 = row["decision_ms"]["p50"], row["decision_ms"]["p95"]
    print(
        f"{row['decisions']:9}  {p50:5.0f} ms {p95:5.0f} ms  {row['answers']:7}  {row['lost']:5}   {size}", flush=True
    )


def _flags(args: argparse.Namespace) -> list[str]:
    """Of `duologue serve`, as those of this command."""
    return [
        args.model, "--adapter", args.adapter, "--backend", args.backend, "--context", str(args.context),
        "--max-sessions", str(args.clients), "--weights", args.weights or "", "--threads", str(args.threads or 0),
        "--device", args.device,
    ]  # fmt: skip
