"""A conversation by voice in real time: delays until it ducks, falls silent and answers, and what noise does to it.

Claims: the answer is ducked within 150 ms of the first sound of speech (one frame of the detector, and the ramp). It
falls silent once the words are recognised as addressed to the assistant, or have seemed so for some time. It answers
soon after the last word, because the answer is prepared before silence shows that the word was the last. Background
talk and noise leave the answer as it is.

How: every trial is a conversation of its own with the model and the engines of `duologue talk`, fed in real time from
an array. One sound is heard over an answer that has been running for two seconds. Delays run from the first or last
20 ms of the sound within 30 dB of its loudest to the sample that is played. An answer is silent when it is not heard
any more for good: a pause that leads to a cut counts from its beginning; a pause after which the answer goes on does
not count, nor does a cut after which it is resumed. Levels are relative to somebody who speaks into the microphone
(-23 dB below full scale). With --oracle, an ideal recogniser knows every word at the moment it ends: of synthetic
speech from the synthesiser, of recordings as Whisper finds them in the whole. That shows the delay without recognition.

    python benchmarks/voice.py --audio DIR --out benchmarks/results/voice.json
"""

import argparse
import asyncio
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import heard
import measuring
import numpy as np
from document_tables import VOICE_HEADER, voice_rows
from voice_trials import Trial, answered, interrupted, stages, summary_or_none, survived

from duologue.core.config import SessionConfig
from duologue.engine.engine import Engine
from duologue.engine.trace import Pass
from duologue.evaluation.results import describe_model
from duologue.models.model import Model
from duologue.voice.engines.defaults import Engines, load_engines
from duologue.voice.engines.espeak import EspeakSynthesiser
from duologue.voice.engines.silero import SileroDetector
from duologue.voice.policy import by_voice
from duologue.voice.recording import converse
from duologue.voice.sound import RATE, Samples, silence
from duologue.voice.timeline import Row
from duologue.voice.voice import Voice

LEAD_S = 3.2  # from the preparation of an answer to the sound over it
TAIL_S = 2.5
BACKGROUND_DB = (0.0, -6.0, -12.0)
NOISE_DB = (0.0, -10.0)

TOPICS = ("a lighthouse", "two friends", "a lost dog", "the sea", "an old clock", "a garden", "a train", "the winter")
STORIES = tuple(f"Tell me a long story about {topic}." for topic in TOPICS)
DRINKS = ("coffee", "an espresso", "a cappuccino", "iced coffee", "a latte", "a mocha", "strong coffee", "a flat white")
MENUS = tuple(f"I would like {drink}. Tell me all about what I can order." for drink in DRINKS)
"""The recorded commands are orders of coffee: said over a story, they may well be meant for somebody else."""


@dataclass(slots=True)
class Bench:
    """What all trials share, and what they record."""

    model: Model
    engines: Engines
    oracle: bool = False
    file: Path | None = None  # gets the rows of each trial at its end
    passes: list[Pass] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)


class Oracle:
    """An ideal recogniser of one sound, which is heard from second `begins` on. See `Recogniser` and `Recognition`."""

    def __init__(self, sound: heard.Sound, begins: float, now: Callable[[], float]) -> None:
        self._sound, self._begins, self._now = sound, begins, now

    def begin(self) -> "Oracle":
        return self

    async def hear(self, samples: Samples, *, last: bool = False) -> str:
        words = " ".join(word for word, end in self._sound.words if self._begins + end <= self._now())
        return words.rstrip(".,;:?!")  # no recogniser knows so soon that a sentence has ended

    async def aclose(self) -> None:
        pass


async def talk(bench: Bench, sound: heard.Sound, *, asked: str | None) -> Trial:
    """One trial: over the answer to `asked`, or in silence if that is None."""
    config = SessionConfig(max_length=2048, max_answer=220, heard="reported")
    session = bench.model.session(policy=by_voice(bench.model.policy()), config=config)
    lead = 0.8 if asked is None else LEAD_S
    user = np.concatenate([silence(int(lead * RATE)), sound.samples, silence(int(TAIL_S * RATE))])
    nows: list[Callable[[], float]] = []
    recogniser = Oracle(sound, lead, lambda: nows[0]()) if bench.oracle else bench.engines.recogniser

    def sink(record: object) -> None:
        if isinstance(record, Pass):
            bench.passes.append(record)

    engine = Engine(bench.model.backend)
    handle = engine.open(session, sink=sink)
    async with engine, Voice(handle, SileroDetector(), recogniser, bench.engines.synthesiser) as voice:
        nows.append(lambda: voice.now)
        voice.follow(handle.events())
        if asked is not None:
            handle.hear(asked, utterance="written", final=True)
        recording = await converse(voice, user, is_over=lambda: True, longest_s=0.0)
        rows = voice.timeline.rows
    about = {"trial": len(bench.late_s), "kind": sound.kind, "level": sound.level, "began": lead + sound.begins}
    new = [{**row, **about} for row in rows]
    bench.rows += new
    if bench.file is not None:
        with bench.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
    bench.late_s.append(recording.late_s)
    return Trial(sound, lead + sound.begins, lead + sound.ends, rows)


async def over_answers(bench: Bench, sounds: Sequence[heard.Sound], asked: Sequence[str]) -> list[Trial]:
    """Each sound over the answer to one of `asked`. A trial in which no answer was running is repeated once."""
    trials = []
    for index, sound in enumerate(sounds):
        for attempt in range(2):
            trial = await talk(bench, sound, asked=asked[(index + attempt) % len(asked)])
            is_speaking = any(r["type"] == "sound_begins" and r["at"] < trial.began for r in trial.rows)
            ended = trial.after(0, "committed")
            if is_speaking and (ended is None or ended > trial.began):
                trials.append(trial)
                break
        _report(trial)
    return trials


def _report(trial: Trial) -> None:
    sound, cut = trial.sound, trial.delay(trial.began, "cut")
    what = [f"{r['state']} {r['p']:.2f} “{r['text'][-40:]}”" for r in trial.rows if r["type"] == "decided"][-3:]
    if cut is not None and sound.kind not in ("interruption", "assistant_command"):
        what = [f"BY {trial.cause}", *what]
    what = [*(f"yields after {at - trial.began:.2f} s" for at in trial.pauses), *what]
    what += ["goes on"] if trial.goes_on else []
    outcome = f"cut after {cut:.2f} s" if cut is not None else "not cut"
    measuring.progress(f"{sound.kind:14} {sound.level:4.0f} dB  {outcome:18} {sound.name[:44]:46} {'; '.join(what)}")


async def in_silence(bench: Bench, sounds: Sequence[heard.Sound]) -> list[Trial]:
    """Each sound in silence."""
    trials = []
    for sound in sounds:
        trials.append(await talk(bench, sound, asked=None))
        delay = trials[-1].delay(trials[-1].ended, "sound_begins")
        shown = "not answered" if delay is None else f"answered after {delay:.2f} s"
        measuring.progress(f"{sound.kind:14} {shown}  {sound.name}")
    return trials


# ------------------------------------------------------------------------------------------------------------- the run


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """All parts, or those that --only names."""
    chance = random.Random(args.seed)
    loads = [os.getloadavg()[0]]
    engines = await load_engines(recogniser=args.recogniser, threads=args.recogniser_threads)
    model = measuring.load_model(args)
    bench = Bench(model, engines, oracle=args.oracle, file=args.rows)
    if args.rows:
        args.rows.write_text("", encoding="utf-8")
    try:
        sounds = await _sounds(args, engines, chance)
        result: dict[str, Any] = {}
        for name, chosen, asked, figures in _plan(sounds, oracle=args.oracle):
            if args.only and not name.startswith(tuple(args.only.split(","))):
                continue
            trials = await (in_silence(bench, chosen) if asked is None else over_answers(bench, chosen, asked))
            result[name] = figures(trials)
            loads.append(os.getloadavg()[0])
        result["words_to_decision_s"] = summary_or_none([r["latency"] for r in bench.rows if r["type"] == "decided"])
        result["stages"] = stages(bench.passes, bench.rows, sounds["questions"][0].samples)
        result["load_averages"] = [round(load, 2) for load in loads]
        result["latest_block_s"] = summary_or_none(bench.late_s)
        return {"model": describe_model(model), "oracle": args.oracle, **result}
    finally:
        model.close()
        await engines.aclose()


async def _sounds(args: argparse.Namespace, engines: Engines, chance: random.Random) -> dict[str, list[heard.Sound]]:
    n, voice = args.trials, engines.synthesiser
    sounds = {
        "questions": await heard.said(heard.questions(chance, n), "question", voice, chance),
        "interruptions": await heard.said(heard.interruptions(chance, n), "interruption", voice, chance),
        "backchannels": await heard.said(heard.backchannels(n // 2), "backchannel", voice, chance),
        "asides": await heard.said(heard.asides(chance, min(12, n // 2)), "aside", voice, chance),
        "coughs": heard.coughs(args.seed, n // 2),
    }
    robot, folder = EspeakSynthesiser(), args.audio
    sounds["backchannels"] += await heard.said(heard.backchannels(n // 2), "backchannel", robot, chance)
    commands = heard.recordings(folder, "assistant_command", chance, n, longest_s=9.0)
    sounds["commands"] = heard.with_words(commands) if args.oracle else commands
    if not args.oracle:
        sounds["background"] = [
            *heard.recordings(folder, "audiobook", chance, n // 2, longest_s=5.0),
            *heard.recordings(folder, "meeting", chance, n // 2, longest_s=5.0),
        ]
        sounds["noise"] = heard.recordings(folder, "noise", chance, 6, longest_s=5.0)
    return sounds


def _plan(
    sounds: dict[str, list[heard.Sound]], *, oracle: bool
) -> list[tuple[str, list[heard.Sound], Sequence[str] | None, Callable[[Sequence[Trial]], dict[str, Any]]]]:
    """Name of each part, its sounds, what is asked before (None: the sounds come in silence), and its figures."""
    plan = [
        ("questions", sounds["questions"], None, answered),
        ("interruptions", sounds["interruptions"], STORIES, interrupted),
        ("commands", sounds["commands"], None, answered),
        ("command_interruptions", sounds["commands"], MENUS, interrupted),
        ("command_interruptions_of_stories", sounds["commands"], STORIES, interrupted),
    ]
    if not oracle:
        plan += [(name, sounds[name], STORIES, survived) for name in ("backchannels", "asides", "coughs")]
        for name, levels in (("noise", NOISE_DB), ("background", BACKGROUND_DB)):
            for level in levels:
                plan.append((f"{name}_{level:+.0f}dB", [s.at(level) for s in sounds[name]], STORIES, survived))
    return plan


def main() -> None:
    """Run it."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--audio", type=Path, required=True, help="folder of recordings with a manifest.jsonl")
    parser.add_argument("--trials", type=int, default=20, help="of the larger sets")
    parser.add_argument("--recogniser", help="a faster-whisper model")
    parser.add_argument("--recogniser-threads", type=int, default=2)
    parser.add_argument("--oracle", action="store_true", help="an ideal recogniser that takes no time")
    parser.add_argument("--rows", type=Path, help="write the events of each trial to this file as it ends")
    parser.add_argument("--only", help="parts to run, by the beginning of their names, separated by commas")
    args = parser.parse_args()
    measurement = measuring.begin(args)
    result = asyncio.run(run(args))
    measuring.finish(args, measurement, result, VOICE_HEADER, voice_rows(result))


if __name__ == "__main__":
    main()
