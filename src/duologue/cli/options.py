"""Options that several commands share: the model and its backend, and the conversation."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from duologue.cli.command import Option, number, whole
from duologue.cli.progress import progress
from duologue.cli.terminal.text import shortened
from duologue.core.backend import Sampling
from duologue.core.config import SessionConfig
from duologue.errors import MissingDependency, UsageError, require
from duologue.models.catalogue import DEFAULT
from duologue.speakers.endpoint import KEY_VARIABLE
from duologue.speakers.opening import remote_speaker

if TYPE_CHECKING:
    from duologue.data.workers import Workers
    from duologue.evaluation.states import Decider
    from duologue.models.model import Model
    from duologue.speakers.remote import RemoteSpeaker

MODEL_NAME = (
    Option(
        "-m",
        "--model",
        default=DEFAULT,
        help=f"a short name (see `duologue models`; default {DEFAULT}), a .gguf file, a folder or a hub name",
    ),
    Option("--revision", metavar="REV", help="commit, tag or branch to download from the hub (default: the newest)"),
)
"""What names a model."""

CONTEXT = Option(
    "--context", type=whole(least=256), default=4096, metavar="TOKENS", help="context length (default 4096)"
)
MODEL = (
    *MODEL_NAME,
    Option(
        "--adapter",
        default="auto",
        metavar="NAME",
        help="adapter of the model that decides. auto: the best one shipped; alora or rows: a shipped one; prompted or "
        "prompted-5: prompt the model, with no or five examples; or an adapter folder",
    ),
    Option("--allow-worse", action="store_true", help="accept an adapter that decides worse than the prompted model"),
    Option(
        "--backend",
        default="auto",
        choices=("auto", "torch", "llamacpp", "vllm", "reference"),
        help="auto: llama.cpp for .gguf files if it is installed, else torch; vllm: for many conversations on a GPU; "
        "reference: slow, for comparison",
    ),
    Option(
        "--weights",
        metavar="TYPE",
        help="torch and vllm: bf16 (default), f16, f32; llamacpp: BF16, F16, Q8_0, Q4_0, as-is",
    ),
    Option(
        "--chat-template",
        type=Path,
        metavar="FILE",
        help="Jinja source to use instead of the model's own chat template",
    ),
    CONTEXT,
    Option("--threads", type=whole(least=1, most=1024), metavar="N", help="CPU threads (default: one per core)"),
    Option("--device", default="cpu", help="torch device (default cpu)"),
)
"""The model, its adapter, backend and weights, and the context."""

MODEL_WITHOUT_CONTEXT = tuple(option for option in MODEL if option is not CONTEXT)
"""The same for commands that choose the context themselves."""

LISTENER = Option(
    "--listener",
    default="auto",
    metavar="MODEL",
    help=f"the model that decides, if it is not the one that answers. auto: {DEFAULT}, if no adapter is shipped for "
    "the model and --adapter names none; none: the model itself",
)
ENDPOINT = (
    Option(
        "--speaker",
        metavar="URL",
        help="an endpoint with OpenAI's chat completions that answers, such as http://127.0.0.1:8000/v1, while the "
        f"listener decides; its key is read from {KEY_VARIABLE}",
    ),
    Option("--speaker-model", metavar="NAME", help="the model at the speaker's endpoint"),
    Option(
        "--speaker-continues",
        action="store_true",
        help="the endpoint can continue an answer whose beginning it is given (vLLM, llama-server)",
    ),
    Option(
        "--speaker-early",
        type=whole(least=0),
        default=256,
        metavar="TOKENS",
        help="tokens of prepared answers that may be discarded in a turn; after that, answers are requested later "
        "(default 256)",
    ),
)
"""A speaker elsewhere."""

SPEAKER = (*MODEL, LISTENER, *ENDPOINT)
"""The model that answers, and the one that decides."""

EAGERNESS = Option(
    "--eagerness",
    type=number(least=-1, most=1),
    default=0.0,
    metavar="E",
    help="how readily it answers, from -1 (patient) to 1 (eager); default 0",
)
MAX_ANSWER = Option(
    "--max-answer",
    type=whole(least=1),
    default=256,
    metavar="TOKENS",
    help="maximum length of an answer (default 256)",
)
CONVERSATION = (
    Option("--system", metavar="TEXT", help="system prompt (default: that of the model)"),
    MAX_ANSWER,
    Option(
        "--max-thought",
        type=whole(least=0),
        default=512,
        metavar="TOKENS",
        help="maximum length of a reasoning model's thought before an answer (default 512; 0: none)",
    ),
    EAGERNESS,
    Option(
        "--temperature",
        type=number(least=0, most=10),
        default=0.0,
        metavar="T",
        help="sampling temperature; 0 (default) is greedy",
    ),
    Option(
        "--top-p",
        type=number(least=0, most=1, above=True),
        default=1.0,
        metavar="P",
        help="nucleus sampling: the probability mass to sample from (default 1: all tokens)",
    ),
    Option("--seed", type=int, default=0, metavar="N", help="random seed of sampling (default 0)"),
)
"""Answers and decisions."""


RAY = Option(
    "--ray",
    metavar="ADDRESS",
    help="work on a Ray cluster: local (a new one on this machine), auto (the one that this machine belongs to) or "
    "HOST:PORT",
)
"""Batch work beyond one machine."""


def spread(ray: str | None, num: int | None, *, cores: int = 1, gpus: int = 0) -> "Workers":
    """Who does batch work: `num` workers with `cores` and `gpus` each, on the cluster that `--ray` names, or here.

    Raises:
        UsageError: there can be no such cluster.
    """
    from duologue.data.ray_workers import RayWorkers
    from duologue.data.workers import Here, Processes

    if ray is not None:
        return RayWorkers(ray, num, cores, gpus)
    return Here() if num in (None, 1) else Processes(num)


def load_model(args: argparse.Namespace, *, context_length: int | None = None, sessions: int = 1) -> "Model":
    """Load the model that the options name, for contexts of `context_length` tokens (default: the option's).

    Commands without `--listener` are about one model, which decides itself.

    Raises what `duologue.models.model.load` raises.
    """
    from duologue.models.model import NO_LISTENER, load, named_listener, read_template

    listener, system = getattr(args, "listener", NO_LISTENER), getattr(args, "system", None)
    speaker = _remote_speaker(args, system)
    length = args.context if context_length is None else context_length
    name = args.model if speaker is None else named_listener(listener)
    with progress(f"Loading {shortened(name, 48)}") as stage:
        model = load(
            name,
            revision=args.revision,
            backend=args.backend,
            adapter=args.adapter,
            listener=listener if speaker is None else NO_LISTENER,
            allow_worse=args.allow_worse,
            weights=args.weights,
            context_length=length,
            sessions=sessions,
            speaks=speaker is None,
            threads=args.threads,
            device=args.device,
            system=system if speaker is None else None,
            chat_template=read_template(args.chat_template),
            progress=stage,
        )
    return model if speaker is None else model.spoken_by(speaker, max_length=length)


def _remote_speaker(args: argparse.Namespace, system: str | None) -> "RemoteSpeaker | None":
    if not hasattr(args, "speaker"):
        return None
    require(
        not args.speaker or args.model == DEFAULT,
        f"either the model {args.model} answers or the speaker; leave out one of them (--listener names who decides)",
    )
    return remote_speaker(
        args.speaker,
        args.speaker_model,
        continues=args.speaker_continues,
        early_tokens=args.speaker_early,
        system=system,
    )


def loader(args: argparse.Namespace) -> "Callable[[], Model]":
    """What loads the model of the options in another process, or on another machine, with one thread by default.

    Raises what is wrong with the adapter.
    """
    from duologue.models.adapters import requested_adapter
    from duologue.models.model import NO_LISTENER, load, read_template

    return partial(
        load,
        str(Path(args.model).resolve()) if Path(args.model).exists() else args.model,
        revision=args.revision,
        backend=args.backend,
        adapter=requested_adapter(args.adapter, allow_worse=args.allow_worse),
        listener=NO_LISTENER,
        allow_worse=args.allow_worse,
        weights=args.weights,
        context_length=args.context,
        threads=args.threads or (None if args.backend == "vllm" else 1),
        device=args.device,
        chat_template=read_template(args.chat_template),
    )


def what_decides(args: argparse.Namespace, decider: "Decider") -> dict[str, Any]:
    """The rows that were read, and what decided on them, for JSON."""
    return {
        "file": args.file.name,
        "model": decider.model,
        "adapter": f"{decider.adapter} ({args.adapter})",
        "backend": decider.backend,
        "weights": decider.weights,
    }


def session_config(args: argparse.Namespace, model: "Model", *, heard: Literal["shown", "reported"]) -> SessionConfig:
    """The configuration of a session of `model`, from the options."""
    return SessionConfig(
        max_length=model.max_length,
        max_answer=args.max_answer,
        max_thought=args.max_thought,
        sampling=Sampling(temperature=args.temperature, top_p=args.top_p),
        seed=args.seed,
        heard=heard,
    )


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


def write_result(folder: Path, result: Mapping[str, Any], draw: Callable[[], object]) -> None:
    """Write `result.json` and then, if matplotlib is installed, what `draw` writes beside it.

    Raises:
        UsageError: a file cannot be written.
    """
    try:
        text = json.dumps(result, indent=2, ensure_ascii=False)
        (folder / "result.json").write_text(text + "\n", encoding="utf-8")
        draw()
    except MissingDependency as error:
        print(f"no pictures: {error}", file=sys.stderr)
    except OSError as error:
        raise UsageError(f"the result cannot be written to {folder}: {error}") from error
