"""`duologue eval standard`: what a model can do on standard benchmarks, with an adapter and without."""

import argparse
import json
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from duologue.cli.command import Command, Option, whole
from duologue.cli.options import MODEL, load_model, make_folder, write_result
from duologue.cli.progress import progress

_DEFAULT = "arc_easy,arc_challenge,hellaswag,piqa,winogrande,lambada_openai"
_SESSIONS = 3  # whose cache a batch shares; more contexts would not share one on llama.cpp

_EPILOG = """\
Tasks keep the prompts, names and metrics of lm-evaluation-harness: mmlu, cmmlu, bbh, humaneval, mbpp, gsm8k, arc_easy,
arc_challenge, hellaswag, piqa, winogrande, lambada_openai, ifeval; `paper` are the first nine. With --data, rows come
from arc_easy.jsonl, hellaswag.jsonl, mmlu_test.jsonl and so on in a folder, plain or gzipped (docs/evaluation.md lists
them); without it, from the Hugging Face hub.

With an adapter, the model and its base are asked side by side. In every pass, the adapter decides on words that are
spoken over the text and then rolled back; the tokens and log-probabilities of both are compared.

examples:
  duologue eval standard --data benchmarks --limit 200
  duologue eval standard --tasks paper --data benchmarks --run-code --out scores
  duologue eval standard --model my-finetuned-model --base HuggingFaceTB/SmolLM2-135M-Instruct
  duologue eval standard --adapter prompted --json | tail -1     {…, "tasks": {"arc_easy": {"acc_norm", "stderr", "n"}}}
"""

COMMAND = Command(
    "standard benchmarks, with the adapter and without",
    "Ask the questions of standard benchmarks, and compare the model with its base.",
    options=(
        Option("--tasks", default=_DEFAULT, metavar="NAMES", help=f"tasks, separated by commas (default {_DEFAULT})"),
        Option("--data", type=Path, metavar="DIR", help="a folder with the benchmarks as JSONL (default: the hub)"),
        Option(
            "--limit", type=whole(least=1), metavar="N", help="rows of each task, evenly spread, always the same ones"
        ),
        Option("--base", metavar="MODEL", help="compare with another model, such as the one it was trained from"),
        Option("--run-code", action="store_true", help="run the programs that the model writes for humaneval and mbpp"),
        Option("--json", action="store_true", help="one JSON object; the table goes to standard error"),
        Option(
            "--out", type=Path, metavar="DIR", help="write result.json and responses.jsonl there, and resume from it"
        ),
    ),
    groups={"model": MODEL},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Ask, print and write."""
    from duologue.evaluation.results import Measurement
    from duologue.evaluation.standard.benchmarks import chosen
    from duologue.evaluation.standard.comparison import tables
    from duologue.evaluation.standard.harness import Source, require

    names, source = chosen(args.tasks), Source(args.data, args.limit, args.run_code)
    require(names, source)
    if args.out is not None:
        make_folder(args.out)
    measurement = Measurement("standard", seed=0)
    result = measurement.result(_measure(args, names, source))
    print(tables(result), file=sys.stderr if args.json else sys.stdout)
    if args.out is not None:
        write_result(args.out, result, lambda: None)
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0


def _measure(args: argparse.Namespace, names: list[str], source: Any) -> dict[str, Any]:
    from duologue.evaluation.standard.comparison import measure

    with ExitStack() as closed:
        model = closed.enter_context(closing(load_model(args, sessions=_SESSIONS)))
        base = None
        if args.base is not None or model.adapter.kind != "prompted":
            other = {"model": args.base, "revision": None} if args.base is not None else {}
            bare = argparse.Namespace(**{**vars(args), **other, "adapter": "prompted"})
            base = closed.enter_context(closing(load_model(bare, sessions=_SESSIONS)))
        responses = None if args.out is None else args.out / "responses.jsonl"
        with progress("Asking") as stage:
            return measure(model, base, names, source, responses=responses, say=stage)
