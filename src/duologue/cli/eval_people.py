"""`duologue eval people`: a study in which people compare two systems, blind."""

from duologue.cli.command import Command

_EPILOG = """\
A study is a folder. `make` records the same user with two systems, `serve` shows people the conversations and takes
their ballots, and `report` says what they think. docs/people.md describes a study from beginning to end.

examples:
  duologue eval people make study                     15 examples: the default model, as duplex and in turns
  duologue eval people serve study                    people watch and vote at http://127.0.0.1:8090/
  duologue eval people judge study --url URL --judge-model NAME     a model votes, too
  duologue eval people report study --out report      tables and figures
"""

COMMAND = Command(
    "people compare two systems, blind",
    "Let people compare two systems, blind, on the papers' five criteria.",
    epilog=_EPILOG,
    members=("make", "serve", "judge", "report"),
    title="steps",
)
