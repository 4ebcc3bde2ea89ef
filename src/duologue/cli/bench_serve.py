"""`duologue bench serve`: load on a server, by many clients at a time."""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from duologue.cli.options import add_model_options, number, whole
from duologue.errors import EngineError, MissingDependency

if TYPE_CHECKING:
    from duologue.bench.callers import LoadOutcome

_EPILOG = """\
Without --url, a server is started for it on this machine, with the model that the options name, and ended afterwards.
Clients and server share the machine then.

examples:
  duologue bench serve --clients 8 --minutes 1
  duologue bench serve --clients 8 --minutes 10 --json | tail -1
  duologue bench serve --url http://127.0.0.1:8080 --clients 4
"""
_PATIENCE_S = 300.0  # for the model to be loaded


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
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the words (default 0)")
    parser.add_argument("--json", action="store_true", help="a last line of JSON for programs")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, and print how it goes."""
    try:
        from duologue.bench.callers import LoadSetting, load
    except ImportError as error:
        raise MissingDependency('servers are talked to by websockets: pip install "duologue[server]"') from error
    setting = LoadSetting(args.clients, args.minutes * 60, seed=args.seed)
    print(_HEADER)
    if args.url is not None:
        outcome = asyncio.run(load(args.url, setting, token=os.environ.get("DUOLOGUE_TOKEN"), told=_tell))
    else:
        with _server(args) as (url, pid):
            outcome = asyncio.run(load(url, setting, memory=lambda: _resident(pid), told=_tell))
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


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """A server for this measurement: its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "duologue", "serve", args.model, "--port", str(port), "--adapter", args.adapter,
        "--backend", args.backend, "--context", str(args.context), "--max-sessions", str(args.clients),
        "--weights", args.weights or "", "--threads", str(args.threads or 0), "--device", args.device, "--drain", "0",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            _wait(url, process, log)
            yield url, process.pid
        finally:
            process.terminate()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: TextIO) -> None:
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            said = log.read().strip().splitlines() or ["it said nothing"]
            raise EngineError(f"the server did not start: {said[-1]}")
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise EngineError("the server did not start in time")


def _resident(pid: int) -> int | None:
    """Bytes of memory of a process, where the system tells."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
