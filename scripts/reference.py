"""Reference tables of the documents, from the code: the command line, and the settings of the server.

Rewrites the text between `<!-- reference:NAME -->` and `<!-- end -->` in docs/*.md. With `--check` it writes nothing,
and exits with status 1 if a document is out of date. A document gets the parser's own words, not the layout of
`--help`, which depends on the version of Python.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MARKED = re.compile(r"(<!-- reference:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def command_line() -> str:
    """A section for every command of `duologue`: its description and a table of its arguments."""
    from duologue.cli.main import parser

    return "\n\n".join(_section(command) for command in _leaves(parser()))


def server_settings() -> str:
    """A row for every setting of `duologue serve`."""
    from duologue.server.config import ServerConfig

    rows = [f"| `{item.name}` | {_shown(item.default)} | {item.metadata['help']} |" for item in fields(ServerConfig)]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


SECTIONS = {"command-line": command_line, "server-settings": server_settings}


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The commands that do something, in the order of the help."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield parser
    for action in inner:
        for command in action.choices.values():
            yield from _leaves(command)


def _section(command: argparse.ArgumentParser) -> str:
    rows = [
        f"| {_name(action)} | {_meaning(action, command)} |"
        for action in command._actions
        if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS
    ]
    parts = [f"## {command.prog}"]
    parts += [command.description.strip()] if command.description else []
    parts += [f"```text\n{command.epilog.strip()}\n```"] if command.epilog else []
    if rows:
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _name(action: argparse.Action) -> str:
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        value = str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    suffix = "" if action.nargs == 0 else f" {value}{' …' if action.nargs in ('+', '*') else ''}"
    return ", ".join(f"`{option}{suffix}`" for option in action.option_strings)


def _meaning(action: argparse.Action, command: argparse.ArgumentParser) -> str:
    text = (action.help or "") % {**vars(action), "prog": command.prog}
    if action.default not in (None, False, True, argparse.SUPPRESS, "", []) and "default" not in text:
        text += (
            f" (default: {action.default:g})" if isinstance(action.default, float) else f" (default: {action.default})"
        )
    return re.sub(r"\s+", " ", text).replace("|", r"\|").strip()


def _shown(value: object) -> str:
    if value in ("", ()):
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def render(text: str) -> str:
    """`text` with every marked section generated again. Raises `KeyError` for an unknown section."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{SECTIONS[found[2]]()}\n\n{found[3]}", text)


def main() -> int:
    """Update or check the documents."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    args = arguments.parse_args()
    status = 0
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        new = render(text)
        if new != text:
            print(f"{path.relative_to(ROOT)}: {'out of date, run scripts/docs render' if args.check else 'updated'}")
            status = int(args.check)
            if not args.check:
                path.write_text(new, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
