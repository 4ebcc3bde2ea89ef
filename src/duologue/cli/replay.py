"""`duologue replay`: a scripted conversation on a virtual clock."""

import argparse
import json
from pathlib import Path

from duologue.cli.options import add_model_options, add_talk_options, load_model, number, policy, sampling, whole
from duologue.cli.terminal.cells import counted, shortened, visible
from duologue.core import events as e

_INDENT = 20  # columns before the words of an answer
_LONGEST = 400  # characters of an utterance that are printed

_EPILOG = """\
The file has one JSON object a line:
  {"system": "You are terse."}                       settings; before the first time, optional
  {"at": 0, "say": "what is a duplex model"}          spoken: a slice of 4 to 6 words every period
  {"at": 9, "text": "stop"}                           typed: all of it at once
  {"at": 9, "text": "what about", "utterance": "a", "final": false}     a partial; the next one replaces it
  {"at": 12, "command": "resume"}                     stop, resume or respond
  {"at": 20, "edit": [{"role": "user", "text": "hi"}]}                  replaces the history

A record that `duologue serve --record` kept is told again as it was, without a model.

Nothing depends on how fast this machine is: a forward pass takes PERIOD / PASSES seconds of the virtual clock.

examples:
  duologue replay examples/interruption.jsonl
  duologue replay talk.jsonl --json | tail -1         {"said", "heard", "history", "passes"}
  duologue replay talk.jsonl --period 2 --passes 4    the cycle of the DUO paper
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "replay",
        usage="duologue replay FILE [options]",
        help="run a scripted conversation on a virtual clock",
        description="Run a scripted conversation and print what happens. Deterministic.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the script")
    parser.add_argument(
        "--period", type=number(least=0, above=True), default=2.0, metavar="S", help="seconds of a cycle (default 2)"
    )
    parser.add_argument(
        "--passes", type=whole(least=1), default=10, metavar="K", help="forward passes a cycle (default 10)"
    )
    parser.add_argument(
        "--json", action="store_true", help='an event a line, then {"said", "heard", "history", "passes"}'
    )
    add_model_options(parser)
    add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay the file."""
    from duologue.engine.replay import Replay, read_script
    from duologue.server.record import is_record

    if is_record(args.file):
        return _play(args.file, as_json=args.json)
    script = read_script(args.file, period_s=args.period, seed=args.seed)
    model = load_model(args)
    try:
        replay = Replay(
            script,
            model.backend,
            model.template,
            model.probe,
            policy=policy(args, model),
            period_s=args.period,
            passes=args.passes,
            max_length=model.max_length,
            max_answer=args.max_answer,
            sampling=sampling(args),
            seed=args.seed,
        )
        teller = _Teller()
        for event in replay:
            if args.json:
                print(json.dumps(e.as_dict(event), ensure_ascii=False), flush=True)
            else:
                teller.tell(event)
        outcome = replay.result
        if args.json:
            print(json.dumps(outcome.as_dict(), ensure_ascii=False))
        else:
            teller.end(outcome.trace.num_passes)
        replay.close()
    finally:
        model.close()
    return 0


def _play(path: Path, *, as_json: bool) -> int:
    """Tell again what a server recorded; nothing is computed."""
    from duologue.server.record import read_record

    recorded = read_record(path)
    teller, said, heard = _Teller(), dict[int, str](), dict[int, int]()
    for event in recorded.events:
        if isinstance(event, e.Said):
            said[event.answer] = said.get(event.answer, "")[: event.start] + event.text
        elif isinstance(event, e.Heard):
            heard[event.answer] = event.position
        if as_json:
            print(json.dumps(e.as_dict(event), ensure_ascii=False))
        else:
            teller.tell(event)
    if as_json:
        outcome = {
            "said": "\n".join(said.values()),
            "heard": "\n".join(said.get(answer, "")[:position] for answer, position in heard.items()),
            "history": [{"role": str(turn.role), "text": turn.text} for turn in recorded.ledger.history],
            "passes": None,
        }
        print(json.dumps(outcome, ensure_ascii=False))
    else:
        teller.end(None)
    return 0


class _Teller:
    """Prints events for people: one line a fact, answers as they run."""

    def __init__(self) -> None:
        self._is_open = False  # whether a line of answer text is unfinished
        self._too_long: set[int] = set()  # answers that met their length limit
        self._withdrawn: e.Withdrawn | None = None  # told with the next event: words such as "go on" need no answer

    def tell(self, event: e.Event) -> None:
        """Print what is worth a line."""
        if self._withdrawn is not None and not isinstance(event, e.Resumed):
            self._remark(self._withdrawn.at, "the answer is withdrawn: nothing of it was heard")
        self._withdrawn = event if isinstance(event, e.Withdrawn) else None
        match event:
            case e.Said(at, text=text):
                if not self._is_open:
                    text = text.lstrip(" ")
                    print(f"{at:7.2f}  assistant  ", end="")
                    self._is_open = True
                print(visible(text).replace("\n", "\n" + " " * _INDENT), end="", flush=True)
            case e.Received(at, text=text, final=final) if text.strip():
                self._line(at, f"user       {visible(shortened(text, _LONGEST))}{'' if final else ' …'}")
            case e.Decided(at, decision=decision):
                self._remark(at, f"{decision.state} {decision.p:.2f}")
            case e.Suspended(at, unheard=unheard):
                self._remark(at, f"cut; {counted(len(unheard.split()), 'word')} unheard")
            case e.Resumed(at, exact=exact):
                self._remark(at, "goes on" if exact else "goes on, replayed")
            case e.Dropped(at, reason="patience"):
                self._remark(at, "dropped: never finished")
            case e.TakenBack(at):
                self._remark(at, "the answer is taken back: nothing of it was heard")
            case e.Refused(at, what=what, reason=reason):
                self._remark(at, f"{visible(what)} not done: {reason}")
            case e.Trimmed(at, turns_dropped=dropped):
                self._remark(at, f"left out to make room: the oldest {counted(dropped, 'turn')}")
            case e.Edited(at, history=history):
                self._remark(at, f"the history was replaced by {counted(len(history), 'turn')}")
            case e.Finished(answer=answer, reason="length"):
                self._too_long.add(answer)
            case e.Committed(at, answer=answer):
                self._break()
                if answer in self._too_long:  # not before: the last words come after the event
                    self._remark(at, "the answer met its length limit")
            case _:
                pass

    def end(self, passes: int | None) -> None:
        """Print the sum; None where nothing was computed."""
        if self._withdrawn is not None:
            self._remark(self._withdrawn.at, "the answer is withdrawn: nothing of it was heard")
        self._break()
        if passes is not None:
            print(f"{passes} forward passes")

    def _remark(self, at: float, text: str) -> None:
        self._line(at, f"           [{text}]")

    def _line(self, at: float, text: str) -> None:
        self._break()
        print(f"{at:7.2f}  {text}", flush=True)

    def _break(self) -> None:
        if self._is_open:
            print()
            self._is_open = False
