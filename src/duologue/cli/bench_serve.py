"""`duologue bench serve`: the load of many clients on a server."""

import argparse
import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

from duologue.cli.command import Command, Option, number, whole
from duologue.cli.options import MODEL
from duologue.errors import MissingDependency

if TYPE_CHECKING:
    from duologue.evaluation.load import LoadResult

_EPILOG = """\
Without --url, a server is started on this machine with the model that the options name, and stopped afterwards; clients
and server then share the machine.

examples:
  duologue bench serve --clients 8 --minutes 1
  duologue bench serve --clients 8 --minutes 10 --json | tail -1
  duologue bench serve --url http://127.0.0.1:8080 --clients 4
"""


LOAD = (
    Option("--url", metavar="URL", help="a running server; its token is read from DUOLOGUE_TOKEN"),
    Option(
        "--clients", type=whole(least=1, most=1000), default=8, metavar="N", help="simultaneous clients (default 8)"
    ),
    Option("--minutes", type=number(least=0, above=True), default=1.0, metavar="T", help="duration (default 1)"),
    Option(
        "--answer",
        type=whole(least=1, most=1 << 20),
        default=128,
        metavar="N",
        help="maximum tokens of an answer (default 128)",
    ),
)
"""Options that describe the load."""

COMMAND = Command(
    "measure a server under the load of many clients",
    "Talk to a server with many clients at the same time, and measure whether all are served in real "
    "time: 95 % of decisions within 300 ms, from words sent to decision received, and no client waits a second "
    "for words.",
    options=(
        Option("--seed", type=int, default=0, metavar="N", help="random seed of the words (default 0)"),
        Option("--json", action="store_true", help="print the result as a last line of JSON"),
        *LOAD,
    ),
    groups={"model": MODEL},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Measure, and print the progress and the result."""
    result = measured(args)
    print(f"in real time: {'yes' if result['realtime'] else 'no'}")
    if args.json:
        print(json.dumps(result))
    return 0


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The load that the options describe; a line of progress is printed from time to time.

    Raises:
        MissingDependency: websockets is not installed.
        EngineError: the server does not start.
        RemoteError: no client could connect.
    """
    try:
        from duologue.evaluation.load import LoadSetting, measure
        from duologue.evaluation.server_process import server_process
    except ImportError as error:
        raise MissingDependency('clients need websockets: pip install "duologue[server]"') from error
    setting = LoadSetting(args.clients, args.minutes * 60, answer=args.answer, seed=args.seed)
    print("decisions   p50      p95      answers   lost   server MB")
    if args.url is not None:
        token = os.environ.get("DUOLOGUE_TOKEN")
        return asyncio.run(measure(args.url, setting, token=token, report=_report)).as_dict()
    with server_process(_flags(args)) as server:
        return asyncio.run(measure(server.url, setting, memory=server.memory, report=_report)).as_dict()


def _report(result: "LoadResult") -> None:
    row = result.as_dict()
    size = f"{row['memory_mb'][-1]:9.0f}" if row["memory_mb"] else "        –"
    p50, p95 = (f"{row['decision_ms'][name]:5.0f} ms" if row["decisions"] else "      – " for name in ("p50", "p95"))
    print(f"{row['decisions']:9}  {p50} {p95}  {row['answers']:7}  {row['lost']:5}   {size}", flush=True)


def _flags(args: argparse.Namespace) -> list[str]:
    """The same model, as flags of `duologue serve`."""
    return [
        args.model, "--adapter", args.adapter, "--backend", args.backend, "--context", str(args.context),
        "--max-sessions", str(args.clients), "--weights", args.weights or "", "--threads", str(args.threads or 0),
        "--device", args.device, "--revision", args.revision or "", *(["--allow-worse"] if args.allow_worse else []),
    ]  # fmt: skip
