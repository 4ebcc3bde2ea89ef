"""`duologue serve`: a server for duplex clients, OpenAI clients and the page."""

import argparse
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from duologue.cli.command import Command, Option
from duologue.errors import MissingDependency
from duologue.server.config import PREFIX, ServerConfig

_EPILOG = f"""\
Each setting can be given as a flag, in the environment ({PREFIX}PORT=8000) or in a TOML file (port = 8000). Flags take
precedence over the environment, and the environment over the file.

  http://127.0.0.1:8080/              a page to talk to the model
  ws://127.0.0.1:8080/v1/duplex       the duplex protocol (docs/protocol.md)
  ws://127.0.0.1:8080/v1/realtime     OpenAI Realtime
  http://127.0.0.1:8080/v1            chat completions, models
  /health /ready /metrics             monitoring

SIGTERM or Ctrl-C waits for running answers to end; a second signal does not.

examples:
  duologue serve                                         the default model, for this machine only
  duologue serve ./model.gguf --max-sessions 4 --port 9000
  {PREFIX}TOKENS=a-long-secret duologue serve --host 0.0.0.0
  duologue serve --config duologue.toml --record talks/
"""


def _option(item: Field[Any]) -> Option:
    assert item.default is not MISSING, "every setting has a default"
    default = item.default
    # The values stay text: `ServerConfig.read` parses flags as it parses the environment.
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": item.metadata["help"].replace("%", "%%")}
    if item.name == "model":
        return Option("model", nargs="?", metavar="MODEL", **options)
    if isinstance(default, bool):
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["metavar"] = {int: "N", float: "X", tuple: "A,B"}.get(type(default), "TEXT")
        options["help"] += f" (default {default})" if default not in ("", ()) else ""
    return Option(f"--{item.name.replace('_', '-')}", **options)


COMMAND = Command(
    "serve conversations over WebSockets and HTTP",
    "Serve many conversations at the same time, on one model.",
    options=(
        Option("-m", "--model", metavar="MODEL", default=argparse.SUPPRESS, help="the same as the argument MODEL"),
        Option("--config", type=Path, metavar="FILE", help="settings in TOML"),
        *map(_option, fields(ServerConfig)),
    ),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal arrives."""
    given = {item.name: getattr(args, item.name) for item in fields(ServerConfig) if hasattr(args, item.name)}
    config = ServerConfig.read(flags=given, path=args.config)
    try:
        from duologue.server.run import serve
    except ImportError as error:
        raise MissingDependency('the server needs additional packages: pip install "duologue[server]"') from error
    serve(config)
    return 0
