"""`duologue replay`: a scripted conversation on a virtual clock."""

import argparse
import json
from pathlib import Path
from typing import Any

from duologue.cli.options import add_model_options, add_talk_options, load_model, sampling

_EPILOG = """\
The file has one JSON object a line:
  {"system": "You are terse."}                       settings; before the first time, optional
  {"at": 0, "say": "what is a duplex model"}          spoken: a slice of 4 to 6 words every period
  {"at": 9, "text": "stop"}                           typed: all of it at once
  {"at": 9, "text": "what about", "utterance": "a", "final": false}     a partial; the next one replaces it
  {"at": 12, "command": "resume"}                     stop, resume or respond

Nothing depends on how fast this machine is: a forward pass takes PERIOD / PASSES seconds of the virtual clock.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "replay",
        help="run a scripted conversation on a virtual clock",
        description="Run a scripted conversation and print what happens. Deterministic.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the script")
    parser.add_argument("--period", type=float, default=2.0, metavar="S", help="seconds of a cycle (default 2)")
    parser.add_argument("--passes", type=int, default=10, metavar="K", help="forward passes a cycle (default 10)")
    parser.add_argument(
        "--json", action="store_true", help='an event a line, then {"said", "heard", "history", "passes"}'
    )
    add_model_options(parser)
    add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay the file."""
    from duologue.core.events import as_dict
    from duologue.replay import Replay, read_script

    script = read_script(args.file, period_s=args.period, seed=args.seed)
    model = load_model(args)
    try:
        replay = Replay(
            script,
            model.backend,
            model.template,
            model.probe,
            policy=model.policy(eagerness=args.eagerness),
            period_s=args.period,
            passes=args.passes,
            max_length=model.max_length,
            sampling=sampling(args),
            seed=args.seed,
        )
        teller = _Teller()
        for event in replay:
            if args.json:
                print(json.dumps(as_dict(event), ensure_ascii=False), flush=True)
            else:
                teller.tell(as_dict(event))
        outcome = replay.outcome
        if args.json:
            print(json.dumps(outcome.as_dict(), ensure_ascii=False))
        else:
            teller.end(outcome.trace.num_passes)
        replay.close()
    finally:
        model.close()
    return 0


class _Teller:
    """Prints events for people: one line a fact, answers as they run."""

    def __init__(self) -> None:
        self._is_open = False  # whether a line of answer text is unfinished

    def tell(self, event: dict[str, Any]) -> None:
        """Print what is worth a line."""
        match event:
            case {"type": "said", "text": text}:
                if not self._is_open:
                    print(f"{event['at']:7.2f}  assistant: ", end="")
                    self._is_open = True
                print(text.replace("\n", "\n" + " " * 20), end="", flush=True)
            case {"type": "received", "text": text, "final": final} if text:
                self._line(event, f"     user: {text}{'' if final else ' …'}")
            case {"type": "decided"}:
                self._line(event, f"           [{event['state']} {event['p']:.2f}]")
            case {"type": "suspended", "unheard": unheard}:
                self._line(event, f"           [cut; {len(unheard.split())} words unheard]")
            case {"type": "resumed", "exact": exact}:
                self._line(event, f"           [resumed, {'exactly' if exact else 'replayed'}]")
            case {"type": "dropped", "reason": "patience"} | {"type": "taken_back"} | {"type": "withdrawn"}:
                self._line(event, f"           [{event['type'].replace('_', ' ')}]")
            case {"type": "refused", "reason": reason}:
                self._line(event, f"           [refused: {reason}]")
            case {"type": "finished" | "committed"}:
                self._break()

    def end(self, passes: int) -> None:
        """Print the sum."""
        self._break()
        print(f"{passes} forward passes")

    def _line(self, event: dict[str, Any], text: str) -> None:
        self._break()
        print(f"{event['at']:7.2f}  {text.strip() if text.startswith('     user') else text}", flush=True)

    def _break(self) -> None:
        if self._is_open:
            print()
            self._is_open = False
