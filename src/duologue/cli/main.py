"""The `duologue` command: runs a subcommand and explains errors."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from functools import partial

from duologue import __version__
from duologue.cli.command import add_command, print_help, refuse_unknown
from duologue.errors import DuologueError

COMMANDS = (
    "chat", "talk", "replay", "doctor", "models", "data", "train", "eval", "bench", "report", "serve", "export",
    "completion",
)  # fmt: skip
"""Each is a module of this package."""

_OF_FILES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
     errno.ENAMETOOLONG, errno.EFBIG, errno.EIO}
)  # fmt: skip
"""Errors that a path may cause, such as a full disk or a missing permission."""

DESCRIPTION = """\
Duplex decoding for open language models. The model listens while it speaks. It decides whether the words it hears
are finished and meant for it, and stops, waits or continues accordingly.

  duologue chat                     chat with the default model, and interrupt it by typing
  duologue talk                     talk to it by voice, with a microphone or a sound file
  duologue serve                    serve many conversations over WebSockets and HTTP
  duologue replay talk.jsonl        run a scripted conversation on a virtual clock
  duologue eval states rows.jsonl   measure the decisions on labelled rows
  duologue bench scale              measure how many live sessions this machine can serve
  duologue models                   list the models and adapters
  duologue doctor                   say what is installed, what is fast here, and what is missing

`duologue COMMAND --help` describes a command and gives examples.
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="duologue",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"duologue {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    top.set_defaults(run=partial(print_help, top), parser=top)
    for name in COMMANDS:
        add_command(commands, name)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status.

    0: success; 2: an error that the message explains; 130: Ctrl-C; 1: a bug in Duologue. With `DUOLOGUE_DEBUG` set,
    errors are raised with their traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals with another encoding
    try:
        args, unknown = parser().parse_known_args(argv)
        if unknown:
            refuse_unknown(args.parser, unknown)
        status = int(args.run(args))
        if sys.stdout is not None:  # None: it was closed before the program started
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of the output is gone: discard what is buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("DUOLOGUE_DEBUG"):
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    from duologue.cli.doctor import install_command

    what = "; ".join([str(error), *getattr(error, "__notes__", ())])
    if isinstance(error, DuologueError):
        print(f"duologue: {what}", file=sys.stderr)
        return 2
    if isinstance(error, OSError) and error.errno in _OF_FILES:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"duologue: {where}{error.strerror}", file=sys.stderr)
        return 2
    if isinstance(error, ModuleNotFoundError) and (command := install_command(error.name)) is not None:
        print(f"duologue: this needs {error.name}, which is not installed: {command}", file=sys.stderr)
        return 2
    print(
        f"duologue: internal error: {type(error).__name__}: {what}\n"
        "This is a bug. Please report it with the output of the command after `export DUOLOGUE_DEBUG=1`.",
        file=sys.stderr,
    )
    return 1
