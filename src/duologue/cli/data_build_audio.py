"""`duologue data build-audio`: builds clips from texts and recordings."""

import argparse
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duologue.cli.command import Command, Option, whole
from duologue.cli.progress import progress
from duologue.errors import UsageError

if TYPE_CHECKING:
    from duologue.hearing.clips.build import ClipRecipe, NamedVoice

_EPILOG = """\
--texts is a folder of `duologue data build`: its whole texts are spoken, each in one of the voices and in a random
room, and also cut, at the end of a word or within one. --recordings is a folder with manifest.jsonl:
  {"id", "file", "kind", "source", "speaker"}    used whole, and cut in a pause, between words and within a word
assistant_command and wake_word are said to an assistant; for other kinds, this is unknown.

The words of a clip are those that the recogniser hears in it. OUT gets train.jsonl, dev.jsonl and test.jsonl, each with
a .safetensors file beside it that has the sound of its lines as features of the recogniser's encoder, and report.md,
which shows what a classifier of room and microphone alone can tell.

examples:
  duologue data build-audio --texts samples --out clips
  duologue data build-audio --recordings audio --test assistant_command --out clips
  duologue data build-audio --texts samples --voices piper espeak:en-gb --test-voices espeak:en-gb --out clips
"""

COMMAND = Command(
    "build clips: how texts and recordings sound",
    "Build clips from texts and recordings: the words, their sound, and whether to answer.",
    options=(
        Option("--texts", type=Path, metavar="DIR", help="folder of `duologue data build`"),
        Option("--recordings", type=Path, metavar="DIR", help="folder of recordings with manifest.jsonl"),
        Option("--out", type=Path, required=True, metavar="OUT", help="folder to write the clips to"),
        Option(
            "--train", type=whole(least=0), default=600, metavar="N", help="texts to speak for training (default 600)"
        ),
        Option("--dev", type=whole(least=0), default=100, metavar="N", help="the same, held out (default 100)"),
        Option(
            "--test-texts", type=whole(least=0), default=100, metavar="N", help="the same for the test (default 100)"
        ),
        Option(
            "--voices",
            nargs="+",
            default=["piper"],
            metavar="VOICE",
            help="piper, a Piper .onnx file, espeak, or espeak:NAME with a voice of espeak-ng (default piper)",
        ),
        Option("--test-voices", nargs="+", default=[], metavar="VOICE", help="those of --voices for the test only"),
        Option("--kinds", nargs="+", default=[], metavar="KIND", help="kinds of recordings to use (default: all)"),
        Option("--test", nargs="+", default=[], metavar="NAME", help="kinds and sources for the test only"),
        Option("--held-out", nargs="+", default=[], metavar="NAME", help="the same for dev.jsonl"),
        Option("--recogniser", metavar="MODEL", help="a faster-whisper model (default: whisper-base)"),
        Option("--recogniser-threads", type=whole(least=1, most=64), default=2, metavar="N", help="default 2"),
        Option("--language", default="en", metavar="CODE", help="spoken language (default en)"),
        Option("--keep-sound", action="store_true", help="also write each clip as a WAV file to OUT/sound"),
        Option("--seed", type=int, default=0),
    ),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Build a folder of clips and print the report."""
    from duologue.hearing.clips.build import ClipRecipe

    if args.texts is None and args.recordings is None:
        raise UsageError("give --texts, --recordings or both: what the clips are made of")
    for name, folder in (("--texts", args.texts), ("--recordings", args.recordings)):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{name} {folder} is not a folder")
    if unknown := sorted(set(args.test_voices) - set(args.voices)):
        raise UsageError(f"--test-voices {' '.join(unknown)}: not among --voices")
    recipe = ClipRecipe(
        texts=args.texts,
        recordings=args.recordings,
        num_texts={"train": args.train, "dev": args.dev, "test": args.test_texts},
        test=frozenset(args.test),
        dev=frozenset(args.held_out),
        test_voices=frozenset(args.test_voices),
        kinds=frozenset(args.kinds),
        seed=args.seed,
    )
    asyncio.run(_build(args, recipe))
    print((args.out / "report.md").read_text(encoding="utf-8"))
    print(f"The clips are in {args.out}. Train on them with: duologue train alora --audio --data {args.out} --out DIR")
    return 0


async def _build(args: argparse.Namespace, recipe: "ClipRecipe") -> None:
    from duologue.hearing.clips.build import ClipBuilder
    from duologue.voice.engines.whisper import WhisperRecogniser

    async with AsyncExitStack() as stack:
        recogniser = WhisperRecogniser(args.recogniser, threads=args.recogniser_threads, language=args.language)
        stack.push_async_callback(recogniser.aclose)
        voices = [_voice(name) for name in args.voices] if args.texts is not None else []
        for voice in voices:
            stack.push_async_callback(voice.synthesiser.aclose)
        with progress("Building clips") as stage:
            await ClipBuilder(
                recipe,
                args.out,
                recogniser,
                voices,
                recogniser_name=args.recogniser or "whisper-base",
                keeps_sound=args.keep_sound,
                progress=stage.count,
            ).build()


def _voice(name: str) -> "NamedVoice":
    from duologue.hearing.clips.build import NamedVoice
    from duologue.voice.engines.espeak import EspeakSynthesiser
    from duologue.voice.engines.piper import PiperSynthesiser

    kind, _, which = name.partition(":")
    synthesiser: Any
    if kind == "espeak":
        synthesiser = EspeakSynthesiser(which or "en-us")
    elif name == "piper":
        synthesiser = PiperSynthesiser()
    elif Path(name).is_file():
        synthesiser = PiperSynthesiser(Path(name))
    else:
        raise UsageError(f"no voice {name!r}; choose piper, a Piper .onnx file, espeak or espeak:NAME")
    return NamedVoice(name, synthesiser)
