"""`duologue chat`: a conversation in the terminal. The user types while the answer is written."""

import argparse
import asyncio
import importlib.util
import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from duologue.cli.command import Command, Option, number
from duologue.cli.options import CONVERSATION, SPEAKER, load_model, session_config
from duologue.cli.terminal.commands import About, Commands
from duologue.errors import MissingDependency

if TYPE_CHECKING:
    from duologue.client import Talk
    from duologue.engine.handle import Handle
    from duologue.models.model import Model

_EPILOG = """\
Type at any moment. When you pause, the model judges the words typed so far; Enter ends the utterance. The decision is
shown below your words: process (it answers), incomplete (it waits), ignore (not meant for it) or stop. Bold text has
been heard, grey text has not, and red text was cut off.

  what is a duplex model⏎      it answers
  mhm⏎                         the answer continues as if nothing had been said
  wait, what about radios⏎     the answer is cut off where you have read it, and a new one begins
  stop⏎   go on⏎               silence; then the same answer continues

A pasted text is one message, and is sent with Enter. Up brings back what was typed. Ctrl-C stops an answer; in silence
it leaves, as Ctrl-D does. Commands begin with a slash: /help lists them, /save FILE keeps the conversation.

Without a terminal (in a pipe, or with --plain), each line of standard input is an utterance, and events are printed. A
line that arrives during an answer is heard over it. Lines that arrive together are answered one after another.

examples:
  duologue chat                                        the default model
  duologue chat -m ./model.gguf                        any other model: the default one listens and decides
  duologue chat --system "You are a terse pirate."     with a system prompt
  printf 'hello\\nwho are you\\n' | duologue chat        without a screen
  duologue chat --speaker http://127.0.0.1:8000/v1 --speaker-model qwen3     answers from an endpoint
  duologue chat --url http://127.0.0.1:8080            on a server
"""
_RATE = 4.0


COMMAND = Command(
    "chat with a model, and interrupt it by typing",
    "Chat with a model that listens while it speaks. Type at any moment.",
    options=(
        Option(
            "--rate",
            type=number(least=0, most=1000),
            metavar="W",
            help=f"your reading speed in words per second; 0: instant (default {_RATE:g}; in a pipe 0)",
        ),
        Option(
            "--url",
            metavar="URL",
            help="talk to a server (`duologue serve`) instead of loading a model; the token is read from "
            "DUOLOGUE_TOKEN",
        ),
        Option("--plain", action="store_true", help="no full screen: lines in, lines out"),
    ),
    groups={"model": SPEAKER, "conversation": CONVERSATION},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Load the model and chat."""
    is_typed = _is_terminal(0)
    is_plain = args.plain or not (is_typed and _is_terminal(1)) or os.environ.get("TERM", "dumb") == "dumb"
    if not is_plain and importlib.util.find_spec("prompt_toolkit") is None:
        raise MissingDependency(
            'the full-screen chat needs prompt_toolkit: pip install "duologue[demo]"; or use --plain'
        )
    rate = args.rate if args.rate is not None else _RATE if is_typed else 0.0
    if args.url is not None:
        asyncio.run(_talk_to_server(args, rate, is_plain))
        return 0
    with closing(load_model(args)) as model:
        asyncio.run(_talk(args, model, rate, is_plain))
    return 0


def _is_terminal(fd: int) -> bool:
    """Whether standard input (0) or output (1) is a terminal. A closed one is not."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


async def _talk(args: argparse.Namespace, model: "Model", rate: float, is_plain: bool) -> None:
    config = session_config(args, model, heard="reported" if rate else "shown")
    session = model.session(policy=model.policy(eagerness=args.eagerness), config=config)
    async with model.engine() as engine:
        talk = engine.open(session, words_per_second=rate or None)
        about = About(model.title, set_eagerness=lambda value: talk.adjust(model.policy(eagerness=value)))
        await _converse(talk, about, is_plain=is_plain, is_paced=bool(rate))


async def _talk_to_server(args: argparse.Namespace, rate: float, is_plain: bool) -> None:
    try:
        from duologue.client import connect
    except ImportError as error:
        raise MissingDependency('--url needs websockets: pip install "duologue[server]"') from error
    settings = {
        "hearing": rate or "shown", "eagerness": args.eagerness, "max_answer": args.max_answer, "system": args.system,
        "temperature": args.temperature, "top_p": args.top_p, "seed": args.seed,
    }  # fmt: skip
    token = os.environ.get("DUOLOGUE_TOKEN")
    async with await connect(args.url, token=token, settings=settings) as talk:
        title = f"{talk.model} on {args.url}"
        about = About(title, set_eagerness=lambda value: talk.change(eagerness=value))
        await _converse(talk, about, is_plain=is_plain, is_paced=bool(rate))


async def _converse(talk: "Handle | Talk", about: About, *, is_plain: bool, is_paced: bool) -> None:
    commands = Commands(talk, about)
    if is_plain:
        from duologue.cli.terminal.plain import Plain

        await Plain(talk, is_paced=is_paced, commands=commands).run(sys.stdin, sys.stdout)
        return
    from duologue.cli.terminal.screen import Terminal

    terminal = Terminal(talk, about.title, commands)
    try:
        await terminal.run()
    finally:
        # the full screen vanishes; the conversation stays readable above the next prompt
        width = os.get_terminal_size(1).columns if _is_terminal(1) else 100
        if text := terminal.transcript.text(min(width, 110)):
            print(text, flush=True)
