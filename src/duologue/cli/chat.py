"""`duologue chat`: a conversation in the terminal, in which one types while the answer is being written."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from duologue.cli.options import add_model_options, add_talk_options, load_model, sampling
from duologue.errors import MissingDependency

if TYPE_CHECKING:
    from duologue.core.events import Event
    from duologue.live import Live

_EPILOG = """\
Type whenever you like. A pause in typing lets the model judge what you have typed so far; Enter ends it. What the
model thinks of your words stands below them: process (it answers), incomplete (it waits), ignore (none of its
business), stop. Bold text has been heard, grey text not yet; red text was cut.

  what is a duplex model⏎      an answer
  mhm⏎                         goes on as if nothing had been said
  wait, what about radios⏎     the answer is cut where you have heard it, and a new one begins
  stop⏎   go on⏎               silence; the same answer goes on

Without a terminal (a pipe, or --plain), lines on standard input are utterances, and events are printed.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "chat",
        help="talk to a model, and interrupt it by typing",
        description="Talk to a model. It listens while it speaks: type at any moment.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rate", type=float, default=4.0, metavar="W", help="words a second that you read; 0: at once (default 4)"
    )
    parser.add_argument("--plain", action="store_true", help="no full screen: lines in, lines out")
    add_model_options(parser)
    add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the model and talk."""
    is_plain = args.plain or not (sys.stdin.isatty() and sys.stdout.isatty())
    if not is_plain:
        _need_terminal()
    print(f"Loading {args.model} …", file=sys.stderr, flush=True)
    model = load_model(args)
    try:
        asyncio.run(_talk(args, model, is_plain))
    finally:
        model.close()
    return 0


def _need_terminal() -> None:
    try:
        import prompt_toolkit  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            'the full screen needs prompt_toolkit: pip install "duologue[demo]"; or use --plain'
        ) from error


async def _talk(args: argparse.Namespace, model: Any, is_plain: bool) -> None:
    from duologue.core.config import SessionConfig
    from duologue.live import Live

    config = SessionConfig(
        max_length=model.max_length,
        sampling=sampling(args),
        seed=args.seed,
        heard="reported" if args.rate > 0 else "shown",
    )
    session = model.session(policy=model.policy(eagerness=args.eagerness), config=config)
    info = model.backend.info
    title = f"{model.name} {info.weights} on {info.name}, {model.adapter.kind}"
    async with Live(model.backend, session, words_per_second=args.rate if args.rate > 0 else None) as live:
        if is_plain:
            await _Plain(live).run()
        else:
            from duologue.cli.terminal import Terminal

            await Terminal(live, title).run()


class _Plain:
    """Lines in, lines out."""

    def __init__(self, live: "Live") -> None:
        self._live = live
        self._text: dict[int, str] = {}
        self._shown: dict[int, int] = {}  # characters printed of each answer
        self._is_open = False  # whether a line of an answer is unfinished

    async def run(self) -> None:
        """Until standard input ends and everything has been said."""
        telling = asyncio.create_task(self._tell())
        number = 0
        async for line in _lines():
            if telling.done():
                break
            if line.strip():
                self._live.hear(line.strip(), utterance=f"line-{number}", final=True)
                number += 1
        while not telling.done() and self._is_busy():
            await asyncio.sleep(0.05)
        await self._live.aclose()
        await telling

    def _is_busy(self) -> bool:
        session = self._live.session
        return session.running is not None or session.input_text is not None

    async def _tell(self) -> None:
        async for event in self._live.events():
            self._print(event)

    def _print(self, event: "Event") -> None:
        from duologue.core import events as e

        match event:
            case e.Said(answer=answer, start=start, text=text):
                self._text[answer] = self._text.get(answer, "")[:start] + text
                if self._live.session.config.heard == "shown":
                    self._write(text)
            case e.Heard(answer=answer, position=position) if self._live.session.config.heard == "reported":
                self._write(self._text[answer][self._shown.get(answer, 0) : position])
                self._shown[answer] = position
            case e.Received(text=text, final=True):
                self._line(f"> {text}")
            case e.Decided(decision=decision):
                self._line(f"  [{decision.state} {decision.p:.2f}]")
            case e.Suspended(unheard=unheard):
                self._line(f"  [cut; {len(unheard.split())} words unheard]")
            case e.Resumed():
                self._line("  [resumed]")
            case e.Refused(reason=reason):
                self._line(f"  [refused: {reason}]")
            case e.Committed():
                self._line("")

    def _write(self, text: str) -> None:
        print(text, end="", flush=True)
        self._is_open = True

    def _line(self, text: str) -> None:
        if self._is_open:
            print()
            self._is_open = False
        if text:
            print(text, flush=True)


async def _lines() -> AsyncIterator[str]:
    """Lines of standard input as they come."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        yield line
