"""Options that several commands share: the model and its backend, and the conversation."""

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from duologue.cli.progress import progress
from duologue.cli.terminal.text import shortened
from duologue.errors import UsageError
from duologue.models.catalogue import DEFAULT

if TYPE_CHECKING:
    from duologue.core.backend import Sampling
    from duologue.core.policy import Policy
    from duologue.models.model import Model


def add_group(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    members: Sequence[str],
    *,
    summary: str,
    description: str,
    epilog: str,
) -> None:
    """Add a group of commands. Each member is a module `NAME_MEMBER` of this package."""
    parser = commands.add_parser(
        name,
        usage=f"duologue {name} WHAT [options]",
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_subparsers(prog=f"duologue {name}", title="what is measured", metavar="WHAT", required=True)
    for member in members:
        importlib.import_module(f"duologue.cli.{name}_{member}").add_parser(group)


def number(*, least: float, most: float = float("inf"), above: bool = False) -> Callable[[str], float]:
    """An argument type: a finite number from `least` (excluded with `above`) to `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not least <= value <= most or value == float("inf") or (above and value == least):
            raise argparse.ArgumentTypeError(f"{text} is not {_range(least, most, above)}")
        return value

    return read


def whole(*, least: int, most: int = 1 << 30) -> Callable[[str], int]:
    """An argument type: an integer from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return value

    return read


def _range(least: float, most: float, above: bool) -> str:
    low = f"greater than {least:g}" if above else f"at least {least:g}"
    return low if most == float("inf") else f"{low} and at most {most:g}"


def add_model_name(parser: argparse._ActionsContainer) -> None:
    """Add the options that name a model."""
    parser.add_argument(
        "-m",
        "--model",
        default=DEFAULT,
        help=f"a short name (see `duologue models`; default {DEFAULT}), a .gguf file, a folder or a hub name",
    )
    parser.add_argument(
        "--revision", metavar="REV", help="commit, tag or branch to download from the hub (default: the newest)"
    )


def add_model_options(parser: argparse.ArgumentParser, *, with_context: bool = True) -> None:
    """Add options for the model, adapter, backend and weights and, unless the command has its own, the context."""
    group = parser.add_argument_group("model")
    add_model_name(group)
    group.add_argument(
        "--adapter",
        default="auto",
        metavar="NAME",
        help="auto: the best adapter shipped for the model, else prompted; alora or rows: a shipped one; prompted or "
        "prompted-5: ask the model in words, with no or five examples; or an adapter folder",
    )
    group.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "torch", "llamacpp", "reference"),
        help="auto: llama.cpp for .gguf files if it is installed, else torch; reference: slow, for comparison",
    )
    group.add_argument(
        "--weights", metavar="TYPE", help="torch: bf16 (default), f16, f32; llamacpp: BF16, F16, Q8_0, Q4_0, as-is"
    )
    if with_context:
        group.add_argument(
            "--context",
            type=whole(least=256),
            default=4096,
            metavar="TOKENS",
            help="context length (default 4096)",
        )
    group.add_argument(
        "--threads", type=whole(least=1, most=1024), metavar="N", help="CPU threads (default: one per core)"
    )
    group.add_argument("--device", default="cpu", help="torch device (default cpu)")


def add_talk_options(parser: argparse.ArgumentParser) -> None:
    """Add options for answers and decisions."""
    group = parser.add_argument_group("conversation")
    group.add_argument("--system", metavar="TEXT", help="system prompt (default: that of the model)")
    group.add_argument(
        "--max-answer",
        type=whole(least=1),
        default=256,
        metavar="TOKENS",
        help="maximum length of an answer (default 256)",
    )
    group.add_argument(
        "--eagerness",
        type=number(least=-1, most=1),
        default=0.0,
        metavar="E",
        help="how readily it answers, from -1 (patient) to 1 (eager); default 0",
    )
    group.add_argument(
        "--temperature",
        type=number(least=0, most=10),
        default=0.0,
        metavar="T",
        help="sampling temperature; 0 (default) is greedy",
    )
    group.add_argument(
        "--top-p",
        type=number(least=0, most=1, above=True),
        default=1.0,
        metavar="P",
        help="nucleus sampling: the probability mass to sample from (default 1: all tokens)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of sampling (default 0)")


def load_model(args: argparse.Namespace, *, context_length: int | None = None, sessions: int = 1) -> "Model":
    """Load the model that the options name, for contexts of `context_length` tokens (default: the option's).

    Raises what `duologue.models.model.load` raises.
    """
    from duologue.models.model import load

    with progress(f"Loading {shortened(args.model, 48)}") as stage:
        return load(
            args.model,
            revision=args.revision,
            backend=args.backend,
            adapter=args.adapter,
            weights=args.weights,
            context_length=args.context if context_length is None else context_length,
            sessions=sessions,
            threads=args.threads,
            device=args.device,
            system=getattr(args, "system", None),
            progress=stage,
        )


def sampling(args: argparse.Namespace) -> "Sampling":
    """How tokens are sampled, from the options."""
    from duologue.core.backend import Sampling

    return Sampling(temperature=args.temperature, top_p=args.top_p)


def policy(args: argparse.Namespace, model: "Model") -> "Policy":
    """The decision policy, from the options."""
    return model.policy(eagerness=args.eagerness)


def other_backend(args: argparse.Namespace) -> argparse.Namespace:
    """The options of `--compare BACKEND[:WEIGHTS]`.

    Raises:
        UsageError: there is no such backend.
    """
    backend, _, weights = str(args.compare).partition(":")
    if backend not in ("torch", "llamacpp", "reference"):
        raise UsageError(
            f"--compare {args.compare}: no backend {backend!r}; write torch, llamacpp, reference or torch:f32"
        )
    return argparse.Namespace(**{**vars(args), "backend": backend, "weights": weights or None})


def make_folder(folder: Path) -> None:
    """Create `folder` for results.

    Raises:
        UsageError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be created: {error.strerror}") from error
