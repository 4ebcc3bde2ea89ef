"""`duologue eval`: the commands that measure a model."""

import argparse

from duologue.cli.options import add_group

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
    add_group(
        commands,
        "eval",
        MEASUREMENTS,
        summary="measure a model with its adapter",
        description="Measure a model with its adapter on your own data, through the same code as conversations.",
        epilog=_EPILOG,
    )
