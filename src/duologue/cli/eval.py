"""`duologue eval`: the commands that measure a model."""

from duologue.cli.command import Command

_EPILOG = """\
examples:
  duologue eval states rows.jsonl                      the default model with its adapter
  duologue eval states rows.jsonl --json               the same as JSON
  duologue eval states --help                          the format of the rows, and all options
  duologue eval timing rows.jsonl                      how long answers wait behind the words
  duologue eval behaviour                              conversations on a virtual clock, judged by rules
  duologue eval case talk.jsonl --sessions duplex,tdm  conversations side by side
  duologue eval people make study                      two systems, for people to compare
  duologue eval standard --data benchmarks             MMLU, ARC, HellaSwag and others, with the adapter and without
"""

COMMAND = Command(
    "measure a model with its adapter",
    "Measure a model with its adapter on your own data, through the same code as conversations.",
    epilog=_EPILOG,
    members=("states", "timing", "behaviour", "case", "people", "standard"),
)
