"""`duologue eval case`: conversations side by side, period by period."""

import argparse
import json
from contextlib import closing
from pathlib import Path

from duologue.cli.command import Command, Option, number, whole
from duologue.cli.options import MAX_ANSWER, MODEL, load_model
from duologue.cli.progress import progress
from duologue.errors import UsageError

_EPILOG = """\
SCRIPT is a script as for `duologue replay`. Every script is played to every kind of session; each is a column. A row is
a period of two seconds: what the user said, what was decided, and what the assistant said.

With --forecast, each decision is shown with the words that the model expects next from the user, drawn on a fork of the
input channel that is then freed. This does not change the conversation. Time division has no input channel, and
therefore no forecast.

examples:
  duologue eval case examples/interruption.jsonl
  duologue eval case examples/interruption.jsonl --sessions duplex,tdm --forecast 8 --picture case.png
"""

COMMAND = Command(
    "conversations side by side, period by period",
    "Show what happens in scripted conversations, side by side and period by period.",
    options=(
        Option("scripts", type=Path, nargs="+", metavar="SCRIPT", help="scripts of conversations"),
        Option(
            "--sessions",
            default="duplex",
            metavar="NAMES",
            help="kinds of sessions, separated by commas: duplex (default), prompted, turns, vad, tdm, tdm_trained",
        ),
        Option(
            "--forecast", type=whole(least=0, most=64), default=0, metavar="N", help="tokens to forecast (default 0)"
        ),
        Option("--passes", type=whole(least=1), default=10, metavar="K", help="passes per period (default 10)"),
        Option("--end", type=number(least=0, above=True), metavar="S", help="end (default: 20 s after the last line)"),
        MAX_ANSWER,
        Option("--picture", type=Path, metavar="FILE", help="draw them into FILE (png, pdf or svg)"),
        Option("--json", action="store_true", help="one JSON object per conversation"),
    ),
    groups={"model": MODEL},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Play, print and draw."""
    from duologue.engine.replay import read_script
    from duologue.evaluation.behaviour.player import SESSIONS, TRAINED, kind_of
    from duologue.evaluation.case_picture import FORMATS, draw
    from duologue.evaluation.case_study import lines, play

    names = args.sessions.split(",")
    known = [name for name in (*SESSIONS, TRAINED) if name != "slices"]  # needs the answers of a case
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no kind of session {unknown[0]!r} here; there are {', '.join(known)}")
    if args.picture is not None and args.picture.suffix[1:].lower() not in FORMATS:
        raise UsageError(f"--picture {args.picture}: the name must end in {', '.join('.' + one for one in FORMATS)}")
    scripts = {path.stem: read_script(path) for path in args.scripts}
    columns = {}
    with closing(load_model(args, sessions=2)) as model, progress("Playing") as stage:
        for done, (title, script) in enumerate(scripts.items()):
            for name in names:
                stage(f"{title}, {name}", done / len(scripts))
                columns[f"{title}, {name}" if len(scripts) > 1 else name] = play(
                    script,
                    kind_of(name, model),
                    model,
                    num_forecast=args.forecast,
                    passes=args.passes,
                    max_answer=args.max_answer,
                    end=args.end,
                )
    for title, periods in columns.items():
        if args.json:
            print(json.dumps({"title": title, "periods": [one.to_json() for one in periods]}, ensure_ascii=False))
        else:
            print("\n".join([title, *lines(periods), ""]))
    if args.picture is not None:
        draw(args.picture, columns)
    return 0
