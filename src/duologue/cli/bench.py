"""`duologue bench`: the commands that measure performance on this machine."""

from duologue.cli.command import Command

_EPILOG = """\
examples:
  duologue bench scale --sessions 8                    do eight live sessions run in real time?
  duologue bench scale --find --context 512            how many live sessions run in real time?
  duologue bench capacity --sessions 1000 --replicas 100    would a fleet hold so many? by simulation
  duologue bench serve --clients 8                     a server under the load of eight clients
  duologue bench cost                                  duplex decoding beside five other kinds of sessions
  duologue bench cost --help                           the kinds of sessions, and all options
"""

COMMAND = Command(
    "measure the cost of conversations on this machine",
    "Measure the cost of conversations on this machine, with real forward passes of the model.",
    epilog=_EPILOG,
    members=("scale", "capacity", "serve", "cost"),
)
