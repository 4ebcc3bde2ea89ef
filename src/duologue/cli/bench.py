"""`duologue bench`: the commands that measure performance on this machine."""

import argparse

from duologue.cli.options import add_group

MEASUREMENTS = ("scale", "serve", "cost")
"""Each is a module `bench_…` of this package."""

_EPILOG = """\
examples:
  duologue bench scale --sessions 8                    do eight live sessions run in real time?
  duologue bench scale --find --context 512            how many live sessions run in real time?
  duologue bench serve --clients 8                     a server under the load of eight clients
  duologue bench cost                                  duplex decoding beside five other kinds of sessions
  duologue bench cost --help                           the kinds of sessions, and all options
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group with its commands."""
    add_group(
        commands,
        "bench",
        MEASUREMENTS,
        summary="measure the cost of conversations on this machine",
        description="Measure the cost of conversations on this machine, with real forward passes of the model.",
        epilog=_EPILOG,
    )
