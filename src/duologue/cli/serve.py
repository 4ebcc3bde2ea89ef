"""`duologue serve`: a server for duplex clients, OpenAI's clients, and pages."""

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from duologue.errors import MissingDependency
from duologue.server.config import PREFIX, ServerConfig

_EPILOG = f"""\
Every setting can stand in three places: as a flag, in the environment ({PREFIX}PORT=8000), and in a TOML file
(port = 8000). A flag goes before the environment, the environment before the file.

  http://127.0.0.1:8080/              a page to talk on
  ws://127.0.0.1:8080/v1/duplex       events of the conversation (docs/protocol.md)
  ws://127.0.0.1:8080/v1/realtime     OpenAI Realtime, for clients that speak it
  http://127.0.0.1:8080/v1            chat completions, models
  /health /ready /metrics             for who watches over it

SIGTERM or Ctrl-C lets answers end first; a second one does not.

examples:
  duologue serve                                         the default model, on this machine only
  duologue serve ./model.gguf --max-sessions 4 --port 9000
  {PREFIX}TOKENS=a-long-secret duologue serve --host 0.0.0.0
  duologue serve --config duologue.toml --record talks/
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "serve",
        usage="duologue serve [MODEL] [options]",
        help="serve conversations over WebSockets and HTTP",
        description="Serve many conversations at a time on one model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    for item in fields(ServerConfig):
        _add(parser, item)
    parser.set_defaults(run=run)


def _add(parser: argparse.ArgumentParser, item: Any) -> None:
    assert item.default is not MISSING, "every setting has a default"
    default = item.default
    # Values are read as those of the environment are, so that there is one way to read them and one message.
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": item.metadata["help"].replace("%", "%%")}
    if item.name == "model":
        parser.add_argument("model", nargs="?", metavar="MODEL", **options)
        return
    if isinstance(default, bool):
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["metavar"] = {int: "N", float: "X", tuple: "A,B"}.get(type(default), "TEXT")
        options["help"] += f" (default {default})" if default not in ("", ()) else ""
    parser.add_argument(f"--{item.name.replace('_', '-')}", **options)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    given = {item.name: getattr(args, item.name) for item in fields(ServerConfig) if hasattr(args, item.name)}
    config = ServerConfig.read(flags=given, path=args.config)
    try:
        from duologue.server.run import serve
    except ImportError as error:
        raise MissingDependency('the server needs more packages: pip install "duologue[server]"') from error
    serve(config)
    return 0
