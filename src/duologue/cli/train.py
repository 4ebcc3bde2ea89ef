"""`duologue train`: from a folder of samples to an adapter folder."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from duologue.cli.bars import bars
from duologue.errors import MissingDependency, UsageError
from duologue.models.catalogue import DEFAULT, find

_EPILOG = """\
recipes:
  alora   rows, and a LoRA that is active at the probe alone: the base stays as it is, every word of it (an hour and a
          half on two cores; with --samples 10000 minutes)
  rows    vectors of the probe and the states: a few KB, for every engine; the base stays as it is (with --samples 10000
          minutes; with all samples hours)
  lora    the DUO paper's audio recipe: rank 32 on every position, held to the base's answers by a KL term (hours)
  full    the DUO paper's text recipe: every weight, loss on the state and the response (hours, better on a GPU)

DIR has train.jsonl and dev.jsonl from `duologue data build`. A run that was killed goes on when the same command is
given again. With several GPUs, start `lora` and `full` with: accelerate launch -m duologue train ...

examples:
  duologue train alora --data samples --out adapter
  duologue train rows --data samples --out rows --teacher adapter
"""

_PROBE = ("rows", "alora")


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "train",
        help="train what makes a model duplex, on a CPU",
        description="Train what makes a model duplex.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", choices=("alora", "rows", "lora", "full"))
    parser.add_argument("-m", "--model", default=DEFAULT, help="a short name, a .gguf file, a folder or hub name")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with train.jsonl, dev.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the adapter folder goes")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="the first N of train.jsonl (rows and alora; default: all)"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="at most (default: the recipe's, fewer for many)")
    parser.add_argument("--lr", type=float, help="learning rate (default: the recipe's)")
    parser.add_argument("--batch", type=int, metavar="N", help="samples a step (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "f32"), help="of the base (default bf16)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    probe = parser.add_argument_group("rows and alora")
    probe.add_argument("--probes", type=int, metavar="N", help="probe tokens (default 1)")
    probe.add_argument("--lora-lr", type=float, help="learning rate of the LoRA")
    probe.add_argument("--rank", type=int, metavar="R", help="of the LoRA (default 8)")
    probe.add_argument(
        "--targets",
        nargs="+",
        metavar="NAME",
        help="linear layers that get a LoRA (default: q_proj and the like, the names that most models give them)",
    )
    probe.add_argument("--memory-gb", type=float, default=8.0, metavar="GB", help="for cached prefixes (default 8)")
    probe.add_argument("--start", type=Path, metavar="DIR", help="an adapter to begin from")
    probe.add_argument("--teacher", type=Path, metavar="DIR", help="an adapter whose probabilities are learnt, too")
    tuned = parser.add_argument_group("lora and full")
    tuned.add_argument("--steps", type=int, metavar="N", help="steps in all (default: the recipe's)")
    tuned.add_argument("--max-length", type=int, metavar="N", help="tokens of a sequence (default 512)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, write the adapter and print the report. Returns the exit status."""
    try:
        import torch

        from duologue.backends.torch.backend import read_model
        from duologue.backends.torch.tokenizer import HfTokenizer
        from duologue.training.probe.job import report_lines
    except ImportError as error:
        raise MissingDependency(
            f"training needs {error.name}; install it with: pip install 'duologue[train]'"
        ) from error
    if not args.data.is_dir():
        raise UsageError(f"--data {args.data} is no folder; make it with `duologue data build`")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    source = find(args.model)
    job = _probe_job(args) if args.recipe in _PROBE else _finetune_job(args)
    # what is changed itself is kept in float32 whatever it is computed in
    dtype = "bfloat16" if args.dtype == "bf16" and args.recipe in _PROBE else "float32"
    model, tokenizer = read_model(source.path if source.path is not None else source.name, dtype=dtype)
    if args.recipe in _PROBE and torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())  # accelerate puts the others where they belong
    with bars() as progress:
        adapter = job(model, HfTokenizer(tokenizer), name=source.name, progress=progress, say=_say)
    print("\n".join(report_lines(dict(adapter.facts))))
    where = args.model if args.recipe in _PROBE else str(args.out / "model")
    print(f"the adapter is in {args.out}; use it with: duologue chat --model {where} --adapter {args.out}")
    return 0


def _probe_job(args: argparse.Namespace) -> Any:
    from functools import partial

    from duologue.models.adapters import Adapter
    from duologue.training.probe.job import Job, run_probe_job
    from duologue.training.recipes import PROBE_RECIPES

    _refuse(args, ("steps", "max_length"))
    recipe = PROBE_RECIPES[args.recipe]
    if recipe.lora is None:
        _refuse(args, ("lora_lr", "rank", "targets"))
    else:
        lora = replace(recipe.lora, **_given(args, targets="targets"))
        if args.rank is not None:
            lora = replace(lora, rank=args.rank, alpha=2 * args.rank)
        recipe = replace(recipe, lora=lora)
    settings = replace(
        recipe.settings, seed=args.seed, **_given(args, epochs="epochs", lr="lr", batch="batch", lora_lr="lora_lr")
    )
    job = Job(
        data=args.data,
        out=args.out,
        recipe=replace(
            recipe,
            settings=settings,
            looks=recipe.looks if args.epochs is None else None,
            **_given(args, num_probes="probes"),
        ),
        num_samples=args.samples,
        memory_gb=args.memory_gb,
        start=None if args.start is None else Adapter.load(args.start),
        teacher=None if args.teacher is None else Adapter.load(args.teacher),
    )
    return partial(run_probe_job, job)


def _finetune_job(args: argparse.Namespace) -> Any:
    from functools import partial

    from duologue.training.finetune.job import FinetuneJob, run_finetune
    from duologue.training.recipes import FINETUNE_RECIPES

    _refuse(args, ("probes", "lora_lr", "targets", "start", "teacher", "samples"))
    settings = FINETUNE_RECIPES[args.recipe]
    changes = _given(args, lr="lr", batch="batch", max_length="max_length", lora_rank="rank")
    if args.steps is not None:
        changes |= {"steps": args.steps, "epochs": None}
    elif args.epochs is not None:
        changes |= {"steps": None, "epochs": args.epochs}
    settings = replace(settings, seed=args.seed, precision=args.dtype, **changes)
    return partial(run_finetune, FinetuneJob(args.data, args.out, settings))


def _given(args: argparse.Namespace, **names: str) -> dict[str, Any]:
    """Fields whose options were given."""
    values = {field: getattr(args, name) for field, name in names.items() if getattr(args, name) is not None}
    return {field: tuple(value) if isinstance(value, list) else value for field, value in values.items()}


def _refuse(args: argparse.Namespace, names: tuple[str, ...]) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given:
        raise UsageError(f"{', '.join(given)} mean nothing to the recipe {args.recipe}; see `duologue train --help`")


def _say(line: str) -> None:
    print(line, flush=True)
