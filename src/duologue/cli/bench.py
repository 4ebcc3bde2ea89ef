"""`duologue bench`: the group of commands that measure cost."""

import argparse
import importlib

BENCHMARKS = ("bench_cost",)
"""One module of this package each."""

_EPILOG = """\
examples:
  duologue bench cost                                  duplex decoding beside turns, voice activity, time division …
  duologue bench cost --help                           what is counted, and every option
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group with its commands."""
    parser = commands.add_parser(
        "bench",
        help="measure what it costs",
        description="Measure passes, time and memory on this machine, with your model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmarks = parser.add_subparsers(title="what is measured", metavar="WHAT", required=True)
    for name in BENCHMARKS:
        importlib.import_module(f"duologue.cli.{name}").add_parser(benchmarks)
