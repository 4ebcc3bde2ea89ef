"""`duologue replay`: a scripted conversation on a virtual clock."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from duologue.cli.command import Command, Option, number, whole
from duologue.cli.options import CONVERSATION, SPEAKER, load_model
from duologue.cli.terminal.lines import EventPrinter
from duologue.core import events as e
from duologue.core.backend import Sampling
from duologue.core.policy import ECHO_S
from duologue.errors import UsageError

if TYPE_CHECKING:
    from duologue.models.model import Model
    from duologue.speakers.remote import SteppedSpeaker


def _script(name: str) -> Path:
    """The file at `name`, or else the example of that name: the package has those of the repository's `examples/`."""
    path = Path(name)
    return path if path.exists() else _examples().get(path.stem, path)


def _examples() -> dict[str, Path]:
    package = Path(__file__).parents[1]
    folders = package / "examples", package.parents[1] / "examples"
    return {found.stem: found for folder in folders for found in sorted(folder.glob("*.jsonl"))}


_EPILOG = """\
The file has one JSON object per line:
  {"system": "You are terse."}                       settings; optional, before the first time
  {"at": 0, "say": "what is a duplex model"}          spoken: a slice of 4 to 6 words per period
  {"at": 9, "text": "stop"}                           typed: all at once
  {"at": 9, "text": "what about", "utterance": "a", "final": false}     a partial; the next one replaces it
  {"at": 12, "command": "resume"}                     stop, resume or respond
  {"at": 20, "edit": [{"role": "user", "text": "hi"}]}                  replaces the history

A record of `duologue serve --record` is printed as it happened, without a model.

The result does not depend on the speed of the machine: a forward pass takes PERIOD / PASSES seconds of virtual time.

examples:
  duologue replay interruption                        an example of the package; also: asides, stop_and_go_on
  duologue replay talk.jsonl --json | tail -1         {"said", "heard", "history", "passes"}
  duologue replay talk.jsonl --period 2 --passes 4    the values of the DUO paper
  duologue replay talk.jsonl --speaker http://127.0.0.1:8000/v1 --speaker-model qwen3     answers from an endpoint
"""


COMMAND = Command(
    "run a scripted conversation on a virtual clock",
    "Run a scripted conversation and print its events. The same script gives the same events.",
    options=(
        Option("file", type=_script, metavar="FILE", help="the script, or the name of an example of the package"),
        Option(
            "--period",
            type=number(least=0, above=True),
            default=2.0,
            metavar="S",
            help="seconds per period (default 2)",
        ),
        Option("--passes", type=whole(least=1), default=10, metavar="K", help="forward passes per period (default 10)"),
        Option("--json", action="store_true", help='one event per line, then {"said", "heard", "history", "passes"}'),
    ),
    groups={"model": SPEAKER, "conversation": CONVERSATION},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Replay the file."""
    from duologue.engine.replay import Replay, read_script
    from duologue.server.record import is_record

    if not args.file.exists() and not args.file.suffix:
        raise UsageError(f"there is no file {args.file}, and no such example; examples: {', '.join(_examples())}")
    if is_record(args.file):
        return _print_record(args.file, as_json=args.json)
    script = read_script(args.file, period_s=args.period, seed=args.seed)
    with closing(load_model(args)) as model, _stepped(model) as speaker:
        replay = Replay(
            script,
            model.backend,
            model.format,
            model.probe,
            policy=model.policy(eagerness=args.eagerness, echo_s=ECHO_S),
            period_s=args.period,
            passes=args.passes,
            max_length=model.max_length,
            max_answer=args.max_answer,
            max_thought=args.max_thought,
            sampling=Sampling(temperature=args.temperature, top_p=args.top_p),
            seed=args.seed,
            make=model.factory(),
            speaker=speaker,
        )
        _print(replay, as_json=args.json)
        if args.json:
            print(json.dumps(replay.result.as_dict(), ensure_ascii=False))
        else:
            print(f"{replay.result.trace.num_passes} forward passes")
        replay.close()
    return 0


@contextmanager
def _stepped(model: "Model") -> "Iterator[SteppedSpeaker | None]":
    """What answers on the virtual clock, if answers come from elsewhere."""
    if model.speaker is None:
        yield None
        return
    from duologue.speakers.remote import SteppedSpeaker

    with closing(SteppedSpeaker(model.speaker)) as speaker:
        yield speaker


def _print(events: Iterable[e.Event], *, as_json: bool) -> None:
    printer = EventPrinter(sys.stdout, has_times=True)
    for event in events:
        if as_json:
            print(json.dumps(e.as_dict(event), ensure_ascii=False), flush=True)
        else:
            printer.tell(event)
    printer.end()


def _print_record(path: Path, *, as_json: bool) -> int:
    """Print what a server recorded. Nothing is computed."""
    from duologue.engine.replay import AnswerTexts
    from duologue.engine.trace import Trace
    from duologue.server.record import read_record

    recorded = read_record(path)
    _print(recorded.events, as_json=as_json)
    if as_json:
        texts = AnswerTexts()
        for event in recorded.events:
            texts(event)
        result = texts.result(recorded.ledger.history, Trace()).as_dict()
        print(json.dumps({**result, "passes": None}, ensure_ascii=False))  # nothing was computed
    return 0
