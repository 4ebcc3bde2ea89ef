"""`duologue completion`: a script that lets a shell complete commands and options."""

import argparse

from duologue.cli.command import Command, Option
from duologue.errors import MissingDependency

_SHELLS = ("bash", "zsh", "tcsh")
_EPILOG = """\
examples:
  mkdir -p ~/.local/share/bash-completion/completions
  duologue completion bash > ~/.local/share/bash-completion/completions/duologue
  duologue completion zsh > ~/.zfunc/_duologue          with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
  duologue completion tcsh | sudo tee /etc/profile.d/duologue.completion.csh
"""

COMMAND = Command(
    "print a script for the completion of a shell",
    "Print a script that lets a shell complete commands, options and their values.",
    options=(Option("shell", choices=_SHELLS, help="the shell"),),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ImportError as error:
        raise MissingDependency('shell completion needs shtab: pip install "duologue[completion]"') from error
    from duologue.cli.main import parser

    print(shtab.complete(parser(), args.shell))
    return 0
