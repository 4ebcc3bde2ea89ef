"""`duologue eval`: the commands that measure a model."""

import argparse
import importlib

MEASUREMENTS = ("states", "behaviour")
"""Each is a module `eval_…` of this package."""

_EPILOG = """\
examples:
  duologue eval states rows.jsonl                      the default model with its adapter
  duologue eval states rows.jsonl --json               the same as JSON
  duologue eval states --help                          the format of the rows, and all options
  duologue eval behaviour                              conversations on a virtual clock, judged by rules
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group with its commands."""
    parser = commands.add_parser(
        "eval",
        help="measure a model with its adapter",
        description="Measure a model with its adapter on your own data, through the same code as conversations.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measurements = parser.add_subparsers(title="what is measured", metavar="WHAT", required=True)
    for name in MEASUREMENTS:
        importlib.import_module(f"duologue.cli.eval_{name}").add_parser(measurements)
