"""`duologue eval`: the group of commands that measure a model."""

import argparse
import importlib

MEASUREMENTS = ("states",)
"""One module `eval_…` of this package each."""

_EPILOG = """\
examples:
  duologue eval states rows.jsonl                      the default model with its adapter
  duologue eval states rows.jsonl --json               the same for programs
  duologue eval states --help                          what the rows are, and every option
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group with its commands."""
    parser = commands.add_parser(
        "eval",
        help="measure a model with its adapter",
        description="Measure a model with its adapter on your own data, through the path that conversations use.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measurements = parser.add_subparsers(title="what is measured", metavar="WHAT", required=True)
    for name in MEASUREMENTS:
        importlib.import_module(f"duologue.cli.eval_{name}").add_parser(measurements)
