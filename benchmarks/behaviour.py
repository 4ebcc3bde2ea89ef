"""Behaviour in time: `duologue eval behaviour`, with what a committed figure needs beside it.

    python benchmarks/behaviour.py --session duplex --adapter alora --out benchmarks/results/behaviour-alora.json
    python benchmarks/behaviour.py --model model.gguf --listener smollm2
    python benchmarks/behaviour.py --speaker http://127.0.0.1:8000/v1 --speaker-model any

Claims: the frozen conversations go as the file says, whatever the machine: a pass costs a fixed time on a virtual
clock, so other work changes how long the benchmark takes and nothing else. `--seed` other than 0 plays conversations
with other names and times. One file holds one kind of session; `--report` writes the page to click through.
"""

import json
import time
from pathlib import Path

import measuring

from duologue.cli.command import add_options
from duologue.cli.options import ENDPOINT, LISTENER
from duologue.evaluation.behaviour.generate import TEST_SEED, generate, split
from duologue.evaluation.behaviour.measures import ACTIONS, CaseResult, details, line
from duologue.evaluation.behaviour.player import MAX_LENGTH, PASS_S, SESSIONS, kind_of, play_all
from duologue.evaluation.behaviour.report import page
from duologue.evaluation.markdown import percent
from duologue.evaluation.results import describe_model


def main() -> int:
    """Run it."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--session", choices=SESSIONS, default="duplex", help="kind of session")
    parser.add_argument("--at-once", type=int, default=8, help="conversations per pass")
    parser.add_argument("--report", type=Path, help="write the page here")
    add_options(parser.add_argument_group("another model"), (LISTENER, *ENDPOINT))
    args = parser.parse_args()
    measurement = measuring.begin(args)
    cases = split("test") if args.seed == TEST_SEED else generate(args.seed)
    model = measuring.load_model(args, context=MAX_LENGTH, sessions=args.at_once)
    kind, began = kind_of(args.session, model), time.monotonic()
    played = play_all(cases, kind, model.backend, model.template, at_once=args.at_once)
    judged = [CaseResult.of(one) for one in played]
    figures = {
        "model": describe_model(model),
        "session": args.session,
        "pass_s": PASS_S,
        "seconds": round(time.monotonic() - began, 1),
        **line(judged),
        **details(judged),
        "wrong": [one.played.case.id for one in judged if not one.right],
    }
    model.close()
    if args.report is not None:
        name = f"{args.session}, {figures['model']['adapter']['kind']}"
        args.report.write_text(page("Behaviour", {name: figures}, {name: judged}), encoding="utf-8")
    rows = [(name, percent(figures["actions"][name])) for name in ACTIONS]
    rows += [("mean", percent(figures["accuracy"])), ("cases right", percent(figures["cases_right"]))]
    measuring.finish(args, measurement, json.loads(json.dumps(figures)), (args.session, "%"), rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
