"""`duologue train`: from a folder of samples to an adapter folder."""

import argparse
import importlib.util
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duologue.cli.command import Command, Option, whole
from duologue.cli.options import MODEL_NAME
from duologue.cli.progress import progress
from duologue.errors import MissingDependency, UsageError
from duologue.models.catalogue import find

if TYPE_CHECKING:
    from duologue.models.adapters import Adapter
    from duologue.training.recipes import FinetuneSettings, ProbeRecipe

_EPILOG = """\
recipes:
  alora   rows, and a LoRA that is active at the probe only; the base and its outputs stay unchanged (an hour and a half
          on two cores; minutes with --samples 10000). With it, the rows of a cascade: llama.cpp reads them first, and
          the LoRA, which takes a pass of its own there, only where they are unsure
  rows    vectors for the probe and the states: a few KB, for every engine; the base and its outputs stay unchanged
          (minutes with --samples 10000, hours with all samples)
  lora    the DUO paper's audio recipe: rank 32 on every position, kept close to the base by a KL term (hours)
  full    the DUO paper's text recipe: every weight, with a loss on the state and the response (hours; faster on a GPU)
  tdm     for comparison, time division as in MiniCPM-Duplex: a LoRA, or with --full every weight, that learns to speak
          in slices and to answer <idle> (hours); 10,000 samples, the small budget of the DUO paper

DIR has train.jsonl and dev.jsonl from `duologue data build`, or for tdm train-*.jsonl and dev-*.jsonl from `duologue
data build-duplex`. To continue a run that was killed, repeat the command.
With several GPUs, start `lora`, `full` and `tdm` with: accelerate launch -m duologue train ...

examples:
  duologue train alora --data samples --out adapter
  duologue train rows --data samples --out rows --teacher adapter
  duologue train rows --data samples --into adapter       adds a cascade to an alora adapter, or replaces it
  duologue train tdm --data slices --out tdm
  duologue eval behaviour --model tdm/model --sessions tdm_trained
"""

_NEEDS = ("torch", "transformers", "peft", "matplotlib")  # matplotlib draws the curve at the end
_PROBE = ("rows", "alora")
_OF_PROBES = ("probes", "lora_lr", "targets", "start", "teacher", "into", "no_cascade", "allow_worse", "audio")


COMMAND = Command(
    "train an adapter that makes a model duplex",
    "Train an adapter that makes a model duplex.",
    options=(
        Option("recipe", choices=("alora", "rows", "lora", "full", "tdm")),
        *MODEL_NAME,
        Option("--data", type=Path, required=True, metavar="DIR", help="folder with train.jsonl, dev.jsonl"),
        Option("--out", type=Path, metavar="DIR", help="adapter folder to write"),
        Option("--epochs", type=int, metavar="N", help="passes over the samples, at most (default: recipe)"),
        Option("--lr", type=float, help="learning rate (default: recipe)"),
        Option("--batch", type=int, metavar="N", help="samples per step (default: recipe)"),
        Option("--seed", type=int, default=0),
        Option("--dtype", choices=("bf16", "f32"), help="precision (default bf16; f32 on CPUs where bf16 is slow)"),
        Option("--threads", type=int, metavar="N", help="CPU threads (default: chosen by PyTorch)"),
    ),
    groups={
        "rows, alora and tdm": (
            Option("--samples", type=whole(least=1), metavar="N", help="use the first N (default: all; tdm: 10000)"),
        ),
        "rows and alora": (
            Option("--probes", type=int, metavar="N", help="number of probe tokens (default 1)"),
            Option("--lora-lr", type=float, help="learning rate of the LoRA"),
            Option("--rank", type=int, metavar="R", help="rank of the LoRA (default: 8; lora and tdm: 32)"),
            Option(
                "--targets",
                nargs="+",
                metavar="NAME",
                help="linear layers that get a LoRA (default: q_proj and so on, the usual names)",
            ),
            Option("--memory-gb", type=float, default=8.0, metavar="GB", help="for cached prefixes (default 8)"),
            Option(
                "--allow-worse",
                action="store_true",
                default=None,
                help="accept an adapter that has learned nothing or decides worse than the prompted model",
            ),
            Option("--start", type=Path, metavar="DIR", help="adapter to start from"),
            Option("--teacher", type=Path, metavar="DIR", help="adapter whose probabilities are learned as well"),
            Option("--into", type=Path, metavar="DIR", help="rows: alora adapter to add them to, as its cascade"),
            Option(
                "--audio",
                action="store_true",
                default=None,
                help="alora: teach --start (default: the shipped adapter) to hear, on clips of `data build-audio`",
            ),
            Option("--no-cascade", action="store_true", default=None, help="alora: without the rows of a cascade"),
        ),
        "lora, full and tdm": (
            Option("--steps", type=int, metavar="N", help="total number of steps (default: recipe)"),
            Option("--max-length", type=int, metavar="N", help="tokens in a sequence (default 512)"),
        ),
        "tdm": (
            Option("--full", action="store_true", default=None, help="train every weight, at the DUO paper's rate"),
        ),
    },
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Train, write the adapter and print the report. Returns the exit status."""
    _check(args)
    import torch

    from duologue.backends.torch.loading import faster_dtype, read_model
    from duologue.backends.torch.tokenizer import HfTokenizer
    from duologue.training.runs import read_splits, report_lines

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.dtype is None:
        args.dtype = "bf16" if faster_dtype() == "bfloat16" else "f32"
    source = find(args.model, args.revision)
    is_probe, is_tdm = args.recipe in _PROBE, args.recipe == "tdm"
    train = _training(args)
    if (finished := _finished(args)) is not None:
        print("\n".join(report_lines(finished.facts)))
        print(f"The run in {args.out} is finished. To train again, remove the folder or choose another --out.")
        return 0
    # weights that are trained themselves stay in float32 whatever the precision of the passes
    dtype = "bfloat16" if args.dtype == "bf16" and is_probe else "float32"
    if not is_tdm:
        read_splits(args.data, args.samples)  # what is wrong with them is said before the model is loaded
    print(f"Loading {source.name} …", flush=True)
    model, tokenizer = read_model(source.location, revision=source.revision, dtype=dtype)
    if is_probe and torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())  # accelerate places the others
    try:
        with progress(f"Training {args.recipe}") as stage:
            say = partial(print, flush=True)
            adapter = train(model, HfTokenizer(tokenizer), name=source.name, progress=stage.count, say=say)
    except KeyboardInterrupt:
        print("Stopped. To go on, repeat the command.", flush=True)
        raise
    if is_tdm:
        from duologue.training.finetune import tdm_run

        print("\n".join(tdm_run.report_lines(adapter)))
        print(
            f"The model is in {args.out / 'model'}. Play the scripted conversations to it with: duologue eval behaviour"
        )
        print(f"--model {args.out / 'model'} --sessions tdm_trained")
        return 0
    print("\n".join(report_lines(adapter.facts)))
    out = args.into or args.out
    where = args.model if is_probe else out / "model"
    print(f"The adapter is in {out}. Use it with: duologue chat --model {where} --adapter {out}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be known to fail is refused before PyTorch and the model are loaded."""
    if (args.out is None) == (args.into is None):
        raise UsageError("give --out, the adapter folder to write, or --into, the one that gets a cascade")
    if args.recipe in _PROBE and not args.audio:
        _refuse(args, ("steps", "max_length", "full"))
    if not args.data.is_dir():
        raise UsageError(f"--data {args.data} is not a folder; create it with `duologue data build`")
    if args.recipe != "tdm" and not (args.data / "train.jsonl").exists():
        raise UsageError(f"--data {args.data} has no train.jsonl; create it with `duologue data build`")
    if missing := [module for module in _NEEDS if importlib.util.find_spec(module) is None]:
        raise MissingDependency(f'training needs {", ".join(missing)}: pip install "duologue[train]"')


def _finished(args: argparse.Namespace) -> "Adapter | None":
    """The adapter of a run that has ended; None if there is none, or the run was killed.

    Raises:
        UsageError: the run trained another kind of adapter.
        WorseAdapter: it decides worse than the prompted model, and that was not allowed.
    """
    from duologue.models.adapters import Adapter
    from duologue.training.runs import is_unfinished

    if args.out is None or not (args.out / "adapter.json").exists() or is_unfinished(args.out):
        return None
    adapter = Adapter.load(args.out)
    kind = adapter.facts.get("settings", {}).get("kind", adapter.kind)
    if kind != args.recipe:
        raise UsageError(f"--out {args.out} holds an adapter of kind {kind}; choose another folder")
    if not args.allow_worse:
        adapter.refuse_worse()
    return adapter


def _training(args: argparse.Namespace) -> Any:
    """What trains by the recipe."""
    if args.audio:
        return _sound_training(args)
    if args.recipe in _PROBE:
        return _probe_training(args)
    return _tdm_training(args) if args.recipe == "tdm" else _finetuning(args)


def _probe_training(args: argparse.Namespace) -> Any:
    from duologue.models.adapters import CASCADE, Adapter
    from duologue.training.probe.run import ProbeRun, train_probe
    from duologue.training.recipes import PROBE_RECIPES

    recipe = PROBE_RECIPES[args.recipe]
    teacher = None if args.teacher is None else Adapter.load(args.teacher)
    if recipe.lora is None:
        _refuse(args, ("lora_lr", "rank", "targets", "no_cascade"))
    else:
        _refuse(args, ("into",))
        size = {} if args.rank is None else {"rank": args.rank, "alpha": 2 * args.rank}
        recipe = replace(recipe, lora=replace(recipe.lora, **_given(args, targets="targets"), **size))
        recipe = replace(recipe, cascade=None) if args.no_cascade else recipe
    if args.into is not None:
        recipe, teacher = _into(args, recipe)
    changes = _given(args, epochs="epochs", lr="lr", batch="batch", lora_lr="lora_lr")
    run = ProbeRun(
        data=args.data,
        out=args.out or args.into / CASCADE,
        recipe=replace(
            recipe,
            settings=replace(recipe.settings, seed=args.seed, **changes),
            presentations=recipe.presentations if args.epochs is None else None,
            **_given(args, num_probes="probes"),
        ),
        num_samples=args.samples,
        memory_gb=args.memory_gb,
        start=None if args.start is None else Adapter.load(args.start),
        teacher=teacher,
        into=args.into,
        allow_worse=bool(args.allow_worse),
    )
    return partial(train_probe, run)


def _sound_training(args: argparse.Namespace) -> Any:
    from duologue.models.adapters import Adapter, shipped_for
    from duologue.training.probe.sound import SoundRun, SoundSettings, train_sound

    if args.recipe != "alora":
        raise UsageError(f"--audio is for alora: {args.recipe} does not take it")
    _refuse(args, ("probes", "lora_lr", "rank", "targets", "teacher", "into", "no_cascade", "allow_worse"))
    settings = SoundSettings(seed=args.seed, **_given(args, epochs="epochs", lr="lr", batch="batch"))

    def train(model: Any, tokenizer: Any, *, name: str, **more: Any) -> Any:
        from duologue.training.runs import fingerprint_of

        ready = shipped_for(fingerprint_of(model, tokenizer), "alora")
        adapter = ready if args.start is None else Adapter.load(args.start)
        if adapter is None:
            raise UsageError("no alora adapter ships for this model; train one, and give it with --start")
        run = SoundRun(args.data, args.out, adapter, settings, args.samples, args.memory_gb)
        return train_sound(run, model, tokenizer, **more)

    return train


def _into(args: argparse.Namespace, recipe: "ProbeRecipe") -> "tuple[ProbeRecipe, Adapter]":
    """The recipe for rows that suit the adapter in `--into`, and this adapter, their teacher."""
    from duologue.models.adapters import Adapter

    _refuse(args, ("teacher", "probes"))
    adapter = Adapter.load(args.into, cascade=False)
    if adapter.rows is None or adapter.lora is None:
        raise UsageError(f"--into {args.into} is an adapter of kind {adapter.kind}; only alora can have a cascade")
    return replace(recipe, num_probes=adapter.rows.num_probes), adapter


def _finetuning(args: argparse.Namespace) -> Any:
    from duologue.training.finetune.run import finetune
    from duologue.training.recipes import FINETUNE_RECIPES

    _refuse(args, (*_OF_PROBES, "samples", "full"))
    return partial(finetune, args.data, args.out, _settings(args, FINETUNE_RECIPES[args.recipe]))


def _tdm_training(args: argparse.Namespace) -> Any:
    from duologue.training.finetune.tdm_run import train_tdm
    from duologue.training.recipes import TDM_RECIPES

    _refuse(args, _OF_PROBES)
    settings = _settings(args, TDM_RECIPES["full" if args.full else "lora"])
    return partial(train_tdm, args.data, args.out, settings, **_given(args, num_samples="samples"))


def _settings(args: argparse.Namespace, recipe: "FinetuneSettings") -> "FinetuneSettings":
    """A recipe with the changes that the options ask for."""
    changes = _given(args, lr="lr", batch="batch", max_length="max_length", lora_rank="rank")
    if args.steps is not None:
        changes |= {"steps": args.steps, "epochs": None}
    elif args.epochs is not None:
        changes |= {"steps": None, "epochs": args.epochs}
    return replace(recipe, seed=args.seed, precision=args.dtype, **changes)


def _given(args: argparse.Namespace, **names: str) -> dict[str, Any]:
    """Field to value, for the options that were given."""
    values = {field: getattr(args, name) for field, name in names.items() if getattr(args, name) is not None}
    return {field: tuple(value) if isinstance(value, list) else value for field, value in values.items()}


def _refuse(args: argparse.Namespace, names: tuple[str, ...]) -> None:
    """Raise `UsageError` if an option was given that the recipe does not have."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given:
        raise UsageError(f"the recipe {args.recipe} does not take {', '.join(given)}; see `duologue train --help`")
