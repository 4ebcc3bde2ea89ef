"""`duologue report`: everything that is measured about a model and its adapter, in one page."""

import argparse
import json
import sys
from pathlib import Path

from duologue.cli.command import Command, Option
from duologue.cli.options import MODEL_WITHOUT_CONTEXT, make_folder
from duologue.cli.progress import progress
from duologue.evaluation.stages import Outcome, Stage, write
from duologue.evaluation.stages import run as run_stages
from duologue.models.catalogue import DEFAULT

_SIZES = {
    "smoke": {
        "standard": ["--tasks", "arc_easy,hellaswag,piqa,lambada_openai", "--limit", "40"],
        "states": ["--latencies", "20"],
        "behaviour": ["--smoke"],
        "cost": ["--conversations", "1", "--exchanges", "3"],
        "scale": ["--sessions", "4", "--context", "128", "--seconds", "5"],
    },
    "paper": {
        "standard": ["--tasks", "paper"],
        "states": ["--baselines"],
        "behaviour": [],
        "cost": [],
        "scale": ["--find", "--sessions", "32", "--context", "512"],
    },
}
_WITHOUT_CODE = "mmlu,cmmlu,bbh,gsm8k,arc_easy,arc_challenge,hellaswag"

_EPILOG = """\
Each stage is a command of its own, which the report names, so that one can be repeated alone: standard benchmarks with
unchanged tokens, states, timing, behaviour, cost and scale. A finished stage is not run again: run the same command to
continue an interrupted report. Stages without data are skipped, and the report says why.

examples:
  duologue report --size smoke --data benchmarks --rows samples/test.jsonl --timing samples/timing.jsonl --out report
  duologue report --size paper --data benchmarks --run-code --rows samples/test.jsonl --model my-model --adapter mine
"""

COMMAND = Command(
    "measure everything about a model, and write one page",
    "Measure a model with its adapter: benchmarks, decisions, timing, behaviour, cost and scale, in one report.",
    options=(
        Option("--size", choices=tuple(_SIZES), default="smoke", help="smoke (default): minutes; paper: whole sets"),
        Option("--data", type=Path, metavar="DIR", help="standard benchmarks as JSONL (see `duologue eval standard`)"),
        Option("--rows", type=Path, metavar="FILE", help="labelled rows (see `duologue eval states`)"),
        Option("--timing", type=Path, metavar="FILE", help="rows that say whether a turn ends"),
        Option("--run-code", action="store_true", help="run the programs that the model writes (size paper)"),
        Option("--out", type=Path, default=Path("report"), metavar="DIR", help="the folder to write (default report)"),
        Option("--json", action="store_true", help="print one JSON object about the stages"),
    ),
    groups={"model": MODEL_WITHOUT_CONTEXT},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Run the stages and write the report. The exit status is 1 if a stage failed."""
    from duologue.evaluation.results import Measurement

    make_folder(args.out)
    measurement = Measurement("report", seed=0)
    with progress("Measuring") as stage:
        outcomes = run_stages(stages(args), args.out, stage)
    result = write(f"{args.model}: duplex report", outcomes, measurement, args.out)
    print(_summary(outcomes, args.out), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return int(any(outcome.status == "failed" for outcome in outcomes))


def stages(args: argparse.Namespace) -> list[Stage]:
    """The stages for these options."""
    size, model = _SIZES[args.size], _model(args)
    standard = [*size["standard"], *(["--run-code"] if args.run_code else [])]
    if args.size == "paper" and not args.run_code:
        standard[standard.index("paper")] = _WITHOUT_CODE
    return [
        Stage(
            *("standard", "Standard benchmarks, and tokens that change"),
            ["eval", "standard", "--data", str(args.data), *standard, "--out", "{folder}", *model],
            _needs(args.data, "--data", "a folder with standard benchmarks"),
        ),
        Stage(
            *("states", "Decisions on labelled rows"),
            ["eval", "states", str(args.rows), *size["states"], "--out", "{folder}", *model],
            _needs(args.rows, "--rows", "labelled rows"),
        ),
        Stage(
            *("timing", "When answers begin"),
            ["eval", "timing", str(args.timing), *model],
            _needs(args.timing, "--timing", "rows that say whether a turn ends"),
        ),
        Stage(
            *("behaviour", "Behaviour in conversations"),
            ["eval", "behaviour", *size["behaviour"], "--out", "{folder}", *model],
        ),
        Stage(
            *("cost", "Cost against other kinds of sessions"),
            ["bench", "cost", *size["cost"], "--picture", "{folder}/cost.png", *model],
        ),
        Stage("scale", "Live sessions on this machine", ["bench", "scale", *size["scale"], *model]),
    ]


def _needs(given: Path | None, option: str, what: str) -> str | None:
    return None if given is not None else f"it needs {what}: {option}"


def _model(args: argparse.Namespace) -> list[str]:
    """The options of the model, as the stages' commands take them."""
    found: list[str] = []
    for name in ("model", "revision", "adapter", "backend", "weights", "threads", "device"):
        value, default = getattr(args, name), _DEFAULTS[name]
        if value != default:
            found += [f"--{name}", str(value)]
    return [*found, "--allow-worse"] if args.allow_worse else found


_DEFAULTS = {"model": DEFAULT, "adapter": "auto", "backend": "auto", "device": "cpu"} | dict.fromkeys(
    ("revision", "weights", "threads")
)


def _summary(outcomes: list[Outcome], folder: Path) -> str:
    lines = [
        f"{outcome.stage.name:10} {outcome.status:8}" + (f" {outcome.text}" if outcome.status != "done" else "")
        for outcome in outcomes
    ]
    return "\n".join([*lines, f"{folder / 'index.html'}"])
