"""What a command consists of. A module `NAME` of this package has the constant `COMMAND` and, unless it is a group, the
function `run`."""

import argparse
import difflib
import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, TypeVar

_Number = TypeVar("_Number", int, float)


class Option:
    """An option or an argument, described by the parameters of `ArgumentParser.add_argument`."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names = names
        self.settings = settings


@dataclass(frozen=True, slots=True)
class Command:
    """The description of a command."""

    summary: str  # for the list of commands
    description: str
    options: Sequence[Option] = ()
    groups: Mapping[str, Sequence[Option]] = field(default_factory=dict)  # of further options, by title
    epilog: str | None = None
    members: Sequence[str] = ()  # of a group of commands: member M is the module `NAME_M`; a group may be a member
    title: str = "what is measured"  # of the list of members


def _usage(full: str, command: Command) -> str:
    """Arguments first, since an option with several values would take them; then what must be given."""
    parts = ["duologue", full, *(["WHAT"] if command.members else [])]
    options = [*command.options, *(option for group in command.groups.values() for option in group)]
    arguments = [option for option in options if not option.names[0].startswith("-")]
    for option in arguments:
        choices = option.settings.get("choices")
        shown = "{" + ",".join(choices) + "}" if choices else option.settings.get("metavar", option.names[0].upper())
        parts.append(f"[{shown}]" if option.settings.get("nargs") in ("?", "*") else str(shown))
    for option in options:
        if option.settings.get("required"):
            choices = option.settings.get("choices")
            parts += [option.names[-1], "{" + ",".join(choices) + "}" if choices else str(option.settings["metavar"])]
    return " ".join([*parts, "[options]"] if len(options) > len(arguments) or command.members else parts)


def add_options(parser: argparse._ActionsContainer, options: Sequence[Option]) -> None:
    """Add `options` to a parser or a group."""
    for option in options:
        parser.add_argument(*option.names, **option.settings)


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, group: str | None = None
) -> None:
    """Add the command `name`, perhaps of a `group` ("eval people"), with its members. Its module is named like both."""
    full = name if group is None else f"{group} {name}"
    module = importlib.import_module(f"duologue.cli.{re.sub('[ -]', '_', full)}")
    command: Command = module.COMMAND
    parser = commands.add_parser(
        name,
        usage=_usage(full, command),
        help=command.summary,
        description=command.description,
        epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser, command.options)
    for title, options in command.groups.items():
        add_options(parser.add_argument_group(title), options)
    if not command.members:
        parser.set_defaults(run=module.run, parser=parser)
        return
    parser.set_defaults(run=partial(print_help, parser), parser=parser)
    members = parser.add_subparsers(prog=f"duologue {full}", title=command.title, metavar="WHAT")
    for member in command.members:
        add_command(members, member, full)


def print_help(parser: argparse.ArgumentParser, _: argparse.Namespace) -> int:
    """What a group does that is given without a member. The exit status is that of a wrong call."""
    parser.print_help()
    return 2


def refuse_unknown(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> NoReturn:
    """End with an error that names the arguments which a command does not take, and the option that may be meant."""
    first = arguments[0].partition("=")[0]
    near = difflib.get_close_matches(first, [name for action in parser._actions for name in action.option_strings], n=1)
    meant = f"; do you mean {near[0]}?" if near else f"; see `{parser.prog} --help`"
    parser.error(f"unrecognized arguments: {' '.join(arguments)}{meant}")


def number(*, least: float, most: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """An argument type: a finite number from `least` (excluded with `above`) to `most`."""
    return partial(_read, float, least, most, above)


def whole(*, least: int, most: int = 1 << 30) -> Callable[[str], int]:
    """An argument type: an integer from `least` to `most`."""
    return partial(_read, int, least, most, False)


def _read(kind: type[_Number], least: float, most: float, above: bool, text: str) -> _Number:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None
    if not least <= value <= most or math.isinf(value) or (above and value == least):
        low = f"greater than {least:g}" if above else f"at least {least:g}"
        raise argparse.ArgumentTypeError(f"{text} is not {low}" + (f" and at most {most}" if most < math.inf else ""))
    return value
