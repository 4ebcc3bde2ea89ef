"""The `duologue` command: finds the subcommand, and turns errors into sentences."""

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from duologue import __version__
from duologue.errors import DuologueError

COMMANDS = ("chat", "talk", "replay", "models", "data", "train", "eval", "bench", "serve", "export")
"""One module of this package each; none of them imports a heavy library before it runs."""

_OF_FILES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
     errno.ENAMETOOLONG, errno.EFBIG, errno.EIO}
)  # fmt: skip
"""What a place to write to or to read from may refuse: a full disk, a folder that is a file."""

DESCRIPTION = """\
Duplex decoding for any open language model: it listens while it speaks, knows whether what it hears is finished, meant
for it, or none of its business, and yields, waits or carries on accordingly.

  duologue chat                     talk to the default model, and interrupt it by typing
  duologue talk                     the same by voice, with a microphone or a sound file
  duologue serve                    the same behind WebSockets and HTTP, for many
  duologue replay talk.jsonl        run a scripted conversation on a virtual clock
  duologue eval states rows.jsonl   how well it decides, on labelled rows
  duologue bench scale              how many live sessions this machine holds
  duologue models                   what is installed, and what is missing

`duologue COMMAND --help` explains a command with examples.
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
    """Run a command. Returns its exit status.

    0 when it went well, 2 for an error that a message explains, 130 for Ctrl-C, 1 for a mistake of ours.
    With `DUOLOGUE_DEBUG` set, errors come with their traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding still gets everything
    try:
        args = parser().parse_args(argv)
        status = int(args.run(args))
        if sys.stdout is not None:  # it is None when it was closed before we began
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read our output has gone: what is left in the buffers goes nowhere, and nothing more is said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("DUOLOGUE_DEBUG"):
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    if isinstance(error, DuologueError):
        print(f"duologue: {error}", file=sys.stderr)
        return 2
    if isinstance(error, OSError) and error.errno in _OF_FILES:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"duologue: {where}{error.strerror}", file=sys.stderr)
        return 2
    print(
        f"duologue: a mistake of ours: {type(error).__name__}: {error}\n"
        "Please report it with what `DUOLOGUE_DEBUG=1` in front of the command prints.",
        file=sys.stderr,
    )
    return 1
