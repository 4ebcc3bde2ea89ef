"""Options that several commands share: which model, on what, and how it decides."""

import argparse
from typing import TYPE_CHECKING

from duologue.catalogue import DEFAULT

if TYPE_CHECKING:
    from duologue.core.backend import Sampling
    from duologue.model import Model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, backend, adapter and weights."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        default=DEFAULT,
        help="a short name (see `duologue models`), a .gguf file, a folder or hub name",
    )
    group.add_argument(
        "--adapter",
        default="auto",
        metavar="NAME",
        help="auto: the one that comes with the model, else prompted; prompted or prompted-5: the model is asked in "
        "words, without or with five examples; or an adapter folder",
    )
    group.add_argument("--backend", default="auto", choices=("auto", "torch", "llamacpp", "reference"))
    group.add_argument("--weights", metavar="TYPE", help="torch: bf16, f32; llamacpp: BF16, F16, Q8_0, Q4_0")
    group.add_argument(
        "--context", type=int, default=4096, metavar="TOKENS", help="length of the conversation in memory"
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the machine's cores)")
    group.add_argument("--device", default="cpu", help="torch device (default: cpu)")


def add_talk_options(parser: argparse.ArgumentParser) -> None:
    """How the conversation goes."""
    group = parser.add_argument_group("conversation")
    group.add_argument("--system", help="system prompt (default: the model's own)")
    group.add_argument(
        "--eagerness", type=float, default=0.0, metavar="E", help="from -1 (patient) to 1 (eager); default 0"
    )
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P")
    group.add_argument("--seed", type=int, default=0)


def load_model(args: argparse.Namespace) -> "Model":
    """The model that the options name. Raises what `duologue.model.load` raises."""
    from duologue.model import load

    return load(
        args.model,
        backend=args.backend,
        adapter=args.adapter,
        weights=args.weights,
        context_length=args.context,
        threads=args.threads,
        device=args.device,
        system=getattr(args, "system", None),
    )


def sampling(args: argparse.Namespace) -> "Sampling":
    """How tokens are drawn."""
    from duologue.core.backend import Sampling

    return Sampling(temperature=args.temperature, top_p=args.top_p)
