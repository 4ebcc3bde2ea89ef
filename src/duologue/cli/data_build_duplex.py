"""`duologue data build-duplex`: dialogues in time slices, with interruptions, as in Duplex-UltraChat."""

import argparse
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duologue.cli.command import Command, Option, whole
from duologue.cli.options import RAY, spread
from duologue.cli.progress import progress
from duologue.errors import MissingDependency, UsageError
from duologue.models.catalogue import DEFAULT, find

if TYPE_CHECKING:
    from duologue.data.duplex.rewriting import Rewriter
    from duologue.data.duplex.transitions import Transitions

_EPILOG = """\
SOURCE is a JSONL file, plain or gzipped, a folder of them, or a folder with a folder dialogues/. A line is
  {"id": "a", "turns": [{"role": "user", "text": "…"}, {"role": "assistant", "text": "…"}, ...]}
or has messages with role and content. Lines and turns that cannot be used are counted and left out.

Turns are cut into slices: four to six words of the user, ten tokens of the assistant, <idle> where a side is silent.
categories:
  basic                   dialogues as they are
  topic_interweaving      three to five dialogues at once
  generation_termination  the user ends an answer, and goes on with the next turn or with nothing
  regeneration            the user says again what they want, and the assistant begins anew
  dialogue_reset          the user drops a dialogue for another one, four times
  back_on_topic           the user asks about a sentence of the answer; the assistant replies, and goes on

OUT gets train-*.jsonl and dev-*.jsonl. A row has `output`, in the format of Duplex-UltraChat, and for each of its
slices the place of its words in the sources (`trace`, `parts`). statistics.json and report.md have the paper's table.
To continue a build that was killed, repeat the command.

Transition lines come with the package in English and Chinese. Dialogues in other languages are not interrupted,
unless --transitions names a file for them: translate src/duologue/data/duplex/lines/en.txt and call it de.txt.

examples:
  duologue data build-duplex --sources corpora --out slices --dialogues 10000
  duologue data build-duplex --sources a.jsonl --out slices --rewrite-url http://localhost:8000/v1 --rewrite-model NAME
  duologue data build-duplex --sources corpora --out slices --ray auto
"""

COMMAND = Command(
    "cut dialogues into slices, for training time division",
    "Cut dialogues into time slices and interrupt them in the six ways of Duplex-UltraChat.",
    options=(
        Option(
            "--sources", type=Path, nargs="+", required=True, metavar="SOURCE", help="files or folders of dialogues"
        ),
        Option("--out", type=Path, required=True, metavar="OUT", help="folder to write the dialogues to"),
        Option(
            "--dialogues",
            type=whole(least=1),
            metavar="N",
            help="dialogues to train on (default: as many as the sources give if each is used once)",
        ),
        Option("--dev", type=float, default=0.03, metavar="SHARE", help="share of the sources that is held out"),
        Option(
            "--categories",
            nargs="+",
            metavar="NAME",
            help="only these categories (default: all, in the paper's shares)",
        ),
        Option(
            "--language", metavar="CODE", help="language of all sources: en, zh, … (default: found for each dialogue)"
        ),
        Option(
            "--transitions",
            type=Path,
            nargs="+",
            default=[],
            metavar="FILE",
            help="transition lines of your own, in files named after their language",
        ),
        Option("--tokenizer", default=DEFAULT, metavar="MODEL", help="the model whose tokens are counted"),
        Option("--tokenizer-revision", metavar="REV", help="commit, tag or branch of that model, if it is downloaded"),
        Option(
            "--workers",
            type=whole(least=1, most=1024),
            metavar="N",
            help="number of processes; with --ray, on the cluster (default: one for each core)",
        ),
        RAY,
        Option("--seed", type=int, default=0),
    ),
    groups={
        "rewriting (default: by rules)": (
            Option("--rewrite-url", metavar="URL", help="an OpenAI-compatible server that writes interruptions"),
            Option(
                "--rewrite-model",
                metavar="NAME",
                help="the model of that server; without --rewrite-url, a model to load here, in one process",
            ),
            Option("--rewrite-key-env", metavar="VARIABLE", help="environment variable that holds the server's key"),
            Option("--rewrite-timeout", type=float, default=60.0, metavar="S", help="seconds that an answer may take"),
            Option(
                "--at-once",
                type=whole(least=1, most=256),
                default=8,
                metavar="N",
                help="requests of each process at the same time",
            ),
        )
    },
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Build a folder of dialogues and print the report."""
    from duologue.data.duplex.build import Workshop, build
    from duologue.data.duplex.planning import DuplexRecipe
    from duologue.data.duplex.slicer import Slicer
    from duologue.data.workers import Here

    recipe = DuplexRecipe(
        num_dialogues=args.dialogues,
        dev=args.dev,
        **({} if args.categories is None else {"shares": _shares(args.categories)}),
        language=args.language,
        seed=args.seed,
    )
    transitions = _transitions(args)
    if args.language is not None and args.language not in transitions:
        raise UsageError(
            f"--language {args.language} has no transitions; there are {', '.join(transitions)}. Give a file "
            f"{args.language}.txt with --transitions"
        )
    # a model of our own is loaded once, in this process
    is_here = args.rewrite_model is not None and args.rewrite_url is None
    if is_here and args.ray is not None:
        raise UsageError("--ray and a model that is loaded here do not go together; serve it, and give --rewrite-url")
    workers = Here() if is_here else spread(args.ray, args.workers or (None if args.ray else os.cpu_count()))
    with ExitStack() as stack:
        rewriter, at_once = _rewriter(args, stack)
        workshop = Workshop(Slicer(_tokenizer(args)), transitions, rewriter, at_once)
        made_by = {"tokenizer": args.tokenizer, "rewriter": rewriter.name}
        with progress("Building dialogues in slices") as stage:
            build(args.sources, args.out, recipe, workshop, made_by=made_by, workers=workers, progress=stage.count)
    print((args.out / "report.md").read_text(encoding="utf-8"))
    print(f"The dialogues are in {args.out}. Train on them with: duologue train tdm --data {args.out} --out DIR")
    return 0


def _shares(names: list[str]) -> dict[str, float]:
    from duologue.data.duplex.categories import CATEGORIES

    if unknown := [name for name in names if name not in CATEGORIES]:
        raise UsageError(f"no category {unknown[0]!r}; there are {', '.join(CATEGORIES)}")
    return {name: CATEGORIES[name].share for name in names}


def _transitions(args: argparse.Namespace) -> "dict[str, Transitions]":
    from duologue.data.duplex import transitions

    return transitions.shipped() | {path.stem: transitions.read(path) for path in args.transitions}


def _tokenizer(args: argparse.Namespace) -> Any:
    """The tokenizer of the library `tokenizers`, which other processes load quickly."""
    source = find(args.tokenizer, args.tokenizer_revision)
    try:
        from duologue.backends.torch.loading import read_tokenizer
    except ImportError as error:
        raise MissingDependency(
            f"counting tokens needs {error.name}; install it with: pip install 'duologue[torch]'"
        ) from error
    tokenizer = read_tokenizer(source.location, revision=source.revision)
    if not tokenizer.is_fast:
        raise UsageError(f"{args.tokenizer} has no fast tokenizer, which cutting needs; give another --tokenizer")
    fast = tokenizer.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    return fast


def _rewriter(args: argparse.Namespace, stack: ExitStack) -> "tuple[Rewriter, int]":
    """What writes interruptions, and how many rows of a worker may wait for it at the same time."""
    from duologue.data.chat_client import ChatClient
    from duologue.data.duplex.rewriting import ModelRewriter, Rules

    name = args.rewrite_model
    if name is None:
        if args.rewrite_url is not None:
            raise UsageError("--rewrite-url needs --rewrite-model, the name of a model of that server")
        return Rules(), 1
    if args.rewrite_url is not None:
        client = ChatClient(
            args.rewrite_url,
            name,
            purpose="rewriter",
            api_key_env=args.rewrite_key_env,
            timeout_s=args.rewrite_timeout,
        )
        return ModelRewriter(client.ask, name), args.at_once
    from duologue.models.completion import complete
    from duologue.models.model import load

    with progress(f"Loading {name}") as stage:
        model = load(name, adapter="prompted", context_length=4096, progress=stage)
    stack.callback(model.close)
    return ModelRewriter(partial(complete, model), name), 1
