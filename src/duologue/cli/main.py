"""The `duologue` command: finds the subcommand, and turns errors into sentences."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from duologue import __version__
from duologue.errors import DuologueError

COMMANDS = ("chat", "replay", "models", "train", "export")
"""One module of this package each; none of them imports a heavy library before it runs."""

DESCRIPTION = """\
Duplex decoding for any open language model: it listens while it speaks, knows whether what it hears is finished, meant
for it, or none of its business, and yields, waits or carries on accordingly.

  duologue chat                     talk to the default model, and interrupt it by typing
  duologue replay talk.jsonl        run a scripted conversation on a virtual clock
  duologue models                   what is installed, and what is missing
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="duologue", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"duologue {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"duologue.cli.{name}").add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status: 0, 2 for an error that a message explains, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except DuologueError as error:
        print(f"duologue: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; say nothing more
        return 0
