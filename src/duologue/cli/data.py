"""`duologue data`: the commands that build samples."""

from duologue.cli.command import Command

_EPILOG = """\
`duologue data WHAT --help` describes a task.

examples:
  duologue data fetch voiceassistant --out corpora         fetch a dataset from the hub as a source
  duologue data build duologue --sources corpora --out samples
  duologue data build-duplex --sources corpora --out slices     dialogues in slices, for time division
"""

COMMAND = Command(
    "build samples for training and evaluation",
    "Build labelled samples from corpora: what was said, and whether to answer it.",
    epilog=_EPILOG,
    members=("build", "build-audio", "build-duplex", "fetch"),
    title="tasks",
)
