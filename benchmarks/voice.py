"""A conversation by voice in real time: how soon it is quieter, silent, and begins to speak, and what noise does to it.

Claims: the answer is ducked within 150 ms of the first sound of speech (a frame of the detector, and the ramp); it
falls silent as soon as the words say that they are meant for it, or have seemed to for some time; it answers soon after
the last word, since the answer is prepared before silence has told that it was the last; background talk and noise
leave the answer as it is.

How: every trial is a conversation of its own with the model and the engines that `duologue talk` has, fed by the wall
clock from an array. Over an answer that has been running for two seconds one sound is heard. Delays are counted from
the first or last 20 ms of the sound that are within 30 dB of its loudest to the sample that is given out. Silence is
counted from when the answer is not heard any more for good: a pause that led to a cut counts from its beginning, and
one after which it went on does not count, nor does a cut after which it was resumed. Levels are
relative to somebody who speaks into the microphone (-23 dB below full scale). With --oracle, a recogniser that takes no
time knows every word at the moment at which it ends: of synthetic speech by the synthesiser, of recordings as Whisper
finds it when it is given the whole of them. That shows what is left without hearing while somebody speaks.

    python benchmarks/voice.py --audio DIR --out benchmarks/results/voice.json
"""

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import heard
import measuring
import numpy as np

from duologue.core.config import SessionConfig
from duologue.core.trace import Pass
from duologue.engine.engine import Engine
from duologue.evaluation.quantiles import summary
from duologue.evaluation.results import describe_model
from duologue.voice.engines.defaults import Engines, load_engines
from duologue.voice.engines.espeak import EspeakSynthesiser
from duologue.voice.engines.silero import SileroDetector
from duologue.voice.policy import by_voice
from duologue.voice.pump import converse
from duologue.voice.sound import RATE, Samples, silence
from duologue.voice.timeline import Row
from duologue.voice.voice import Voice

LEAD_S = 3.2  # from the beginning of an answer's preparation to the sound over it
TAIL_S = 2.5
DUCK_S, FADE_S = 0.03, 0.02  # until the ramp has ended; that of a pause is as long as that of a cut
BACKGROUND_DB = (0.0, -6.0, -12.0)
NOISE_DB = (0.0, -10.0)


@dataclass(slots=True)
class Bench:
    """What all trials share, and what they cost."""

    model: Any
    engines: Engines
    oracle: bool = False
    passes: list[Pass] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trial:
    """One conversation: the sound began and ended then, and this happened."""

    sound: heard.Sound
    began: float
    ended: float
    rows: list[Row]

    def after(self, begin: float, *kinds: str) -> float | None:
        """When one of these happened first, not before `begin`."""
        return next((row["at"] for row in self.rows if row["type"] in kinds and row["at"] >= begin), None)

    @property
    def pauses(self) -> list[float]:
        """When the answer yielded to the sound."""
        return [row["at"] for row in self.rows if row["type"] == "yielded" and row["at"] >= self.began]

    @property
    def silent(self) -> float | None:
        """From when on nothing was heard any more of the answer that the sound came over; None if more was."""
        since, is_cut, is_resumed = None, False, False
        for row in (row for row in self.rows if row["at"] >= self.began):
            match row["type"]:
                case "yielded" if not is_cut:  # later ones are of what answers the sound
                    since = row["at"]
                case "came_back" if not is_cut:
                    since = None
                case "cut" if not is_cut:
                    since, is_cut = (row["at"] if since is None else since), True
                case "resumed" | "suspended" as kind:
                    is_resumed = kind == "resumed"
                case "sound_begins" if is_resumed:  # what was resumed may be cut before it has sounded
                    since, is_cut, is_resumed = None, False, False
        return since if is_cut and not is_resumed else None

    @property
    def ends_paused(self) -> bool:
        """Whether the answer has yielded at last, and nothing came of it yet."""
        return [row["type"] for row in self.rows if row["type"] in ("yielded", "came_back", "cut")][-1:] == ["yielded"]

    def delay(self, begin: float, *kinds: str) -> float | None:
        """How long after `begin`."""
        at = self.after(begin, *kinds)
        return None if at is None else at - begin


class Oracle:
    """Knows the words of a sound that is heard from second `begins` on."""

    def __init__(self, sound: heard.Sound, begins: float, now: Callable[[], float]) -> None:
        self._sound, self._begins, self._now = sound, begins, now

    def begin(self) -> "Oracle":
        """See `Recogniser`."""
        return self

    async def hear(self, samples: Samples, *, last: bool = False) -> str:
        """See `Recognition`."""
        words = " ".join(word for word, end in self._sound.words if self._begins + end <= self._now())
        return words.rstrip(".,;:?!")  # no recogniser knows so soon that a sentence has ended

    async def aclose(self) -> None:
        """See `Recogniser`."""


async def talk(bench: Bench, sound: heard.Sound, *, asked: str | None) -> Trial:
    """One trial: over the answer to what was `asked`, or, where that is None, in silence."""
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
    bench.rows += [{**row, **about} for row in rows]
    bench.late_s.append(recording.late_s)
    return Trial(sound, lead + sound.begins, lead + sound.ends, rows)


TOPICS = ("a lighthouse", "two friends", "a lost dog", "the sea", "an old clock", "a garden", "a train", "the winter")
STORIES = tuple(f"Tell me a long story about {topic}." for topic in TOPICS)
DRINKS = ("coffee", "an espresso", "a cappuccino", "iced coffee", "a latte", "a mocha", "strong coffee", "a flat white")
MENUS = tuple(f"I would like {drink}. Tell me all about what I can order." for drink in DRINKS)
"""The recorded commands are orders of coffee: said over a story, they could be meant for somebody else in the room."""


async def over_answers(bench: Bench, sounds: Sequence[heard.Sound], asked: Sequence[str]) -> list[Trial]:
    """Each sound over the answer to one of `asked`. A trial in which none was running is done again, once."""
    trials = []
    for index, sound in enumerate(sounds):
        for attempt in range(2):
            trial = await talk(bench, sound, asked=asked[(index + attempt) % len(asked)])
            is_speaking = any(r["type"] == "sound_begins" and r["at"] < trial.began for r in trial.rows)
            ended = trial.after(0, "committed")
            if is_speaking and (ended is None or ended > trial.began):
                trials.append(trial)
                break
        _tell(sound, trial)
    return trials


def _tell(sound: heard.Sound, trial: Trial) -> None:
    what = [f"{r['state']} {r['p']:.2f} “{r['text'][-40:]}”" for r in trial.rows if r["type"] == "decided"][-3:]
    cut = trial.delay(trial.began, "cut")
    if cut is not None and sound.kind not in ("interruption", "assistant_command"):
        what = [f"BY {_cause(trial)}", *what]
    what = [*(f"yields after {at - trial.began:.2f} s" for at in trial.pauses), *what]
    what += ["goes on"] if _goes_on(trial) else []
    progress = f"cut after {cut:.2f} s" if cut is not None else "not cut"
    measuring.progress(f"{sound.kind:14} {sound.level:4.0f} dB  {progress:18} {sound.name[:44]:46} {'; '.join(what)}")


async def answers(bench: Bench, sounds: Sequence[heard.Sound]) -> list[Trial]:
    """Each sound in silence."""
    trials = []
    for sound in sounds:
        trials.append(await talk(bench, sound, asked=None))
        delay = trials[-1].delay(trials[-1].ended, "sound_begins")
        measuring.progress(
            f"{sound.kind:14} answered after {delay if delay is None else round(delay, 2)}  {sound.name}"
        )
    return trials


# ---------------------------------------------------------------------------------------------------- what comes of it


def interrupted(trials: Sequence[Trial]) -> dict[str, Any]:
    """Of sounds that should get through."""
    ducks = [d + DUCK_S for t in trials if (d := t.delay(t.began, "ducked")) is not None]
    silent = [(t, at + FADE_S) for t in trials if (at := t.silent) is not None]
    cuts = [d + FADE_S for t in trials if (d := t.delay(t.began, "cut")) is not None]
    return {
        "trials": len(trials),
        "got_through": len(silent),
        "yielded": sum(bool(t.pauses) for t in trials),
        "onset_to_duck_s": _summary(ducks),
        "onset_to_silence_s": _summary([at - t.began for t, at in silent]),
        "onset_to_cut_s": _summary(cuts),
        "end_of_speech_to_silence_s": _summary([at - t.ended for t, at in silent]),
        "seconds_of_speech": _summary([t.ended - t.began for t in trials]),
    }


def survived(trials: Sequence[Trial]) -> dict[str, Any]:
    """Of sounds that should not. An answer that was cut and went on by itself, where it was heard, has survived, and so
    has one that yielded and went on; neither is untouched. `paused_s` is how long it was silent for nothing.
    """
    cut = [t for t in trials if t.after(t.began, "cut") is not None]
    lost = [t for t in trials if t.ends_paused or (t in cut and not _goes_on(t))]
    back = [d for t in trials if (d := t.delay(t.began, "came_back")) is not None]
    paused = [end - at for t in trials for at in t.pauses if (end := t.after(at, "came_back", "cut")) is not None]
    return {
        "trials": len(trials),
        "survived": len(trials) - len(lost),
        "untouched": sum(t not in cut and not t.pauses for t in trials),
        "yielded": sum(bool(t.pauses) for t in trials),
        "pauses": sum(len(t.pauses) for t in trials),
        "paused_s": _summary(paused),
        "ducked": sum(t.after(t.began, "ducked") is not None for t in trials),
        "onset_to_back_s": _summary(back),
        "cut_by": [
            {"sound": t.sound.name[:60], "text": _cause(t), "lost": t in lost} for t in trials if t in cut or t in lost
        ],
    }


def _goes_on(trial: Trial) -> bool:
    """Whether the last thing that happened to the answer is that it was resumed."""
    kinds = [row["type"] for row in trial.rows if row["type"] in ("suspended", "resumed")]
    return bool(kinds) and kinds[-1] == "resumed"


def _cause(trial: Trial) -> str:
    return next((f"{r['state']} {r['p']:.2f}: {r['text']}" for r in trial.rows if _is_cause(r, trial)), "")


def _is_cause(row: Row, trial: Trial) -> bool:
    return (
        row["type"] == "decided" and row["speaking"] and row["state"] in ("process", "stop") and row["at"] > trial.began
    )


def answered(trials: Sequence[Trial]) -> dict[str, Any]:
    """Of questions in silence: the whole delay, and its parts, each from the end of speech."""
    first = [d for t in trials if (d := t.delay(t.ended, "sound_begins")) is not None]
    parts: dict[str, list[float]] = {"words": [], "decision": [], "released": [], "synthesised": []}
    for trial in trials:
        released = trial.after(trial.ended, "released")
        if released is None:
            continue
        promoted = [r["at"] for r in trial.rows if r["type"] == "promoted" and r["at"] <= released]
        words = [r["at"] for r in trial.rows if r["type"] == "received" and r["text"] and r["at"] <= promoted[-1]]
        spoken = trial.after(released, "synthesised")
        if not words or spoken is None:
            continue
        for name, at in zip(parts, (words[-1], promoted[-1], released, spoken), strict=True):
            parts[name].append(at - trial.ended)
    return {
        "trials": len(trials),
        "answered": len(first),
        "before_the_end": sum((t.after(0, "sound_begins") or t.ended) < t.ended for t in trials),
        "end_of_speech_to_first_sound_s": _summary(first),
        "of_that_until_s": {name: _summary(values) for name, values in parts.items()},
    }


def stages(bench: Bench, speech: Samples) -> dict[str, Any]:
    """Seconds of work for a second of sound."""
    detector, size = SileroDetector(), SileroDetector.frame
    began, frames = time.perf_counter(), len(speech) // size
    for i in range(frames):
        detector(speech[i * size : (i + 1) * size])
    per_frame = (time.perf_counter() - began) / frames
    recognised = [r for r in bench.rows if r["type"] == "recognised"]
    synthesised = [r for r in bench.rows if r["type"] == "synthesised" and r["seconds"] > 0]
    lengths: dict[tuple[int, str], float] = {}
    for row in recognised:
        lengths[row["trial"], row["utterance"]] = row["heard_s"]
    heard_s = sum(lengths.values())
    tokens = sum(p.output_tokens for p in bench.passes)
    seconds = sum(p.seconds for p in bench.passes)
    return {
        "detector": {"real_time_factor": round(per_frame / (size / RATE), 3), "frame_ms": round(per_frame * 1000, 2)},
        "recogniser": {
            "real_time_factor": round(sum(r["took"] for r in recognised) / max(heard_s, 1e-9), 3),
            "decodings_per_second_of_speech": round(len(recognised) / max(heard_s, 1e-9), 2),
            "one_decoding_s": _summary([r["took"] for r in recognised]),
        },
        "synthesiser": {
            "real_time_factor": round(sum(r["took"] for r in synthesised) / sum(r["seconds"] for r in synthesised), 3),
            "one_clause_s": _summary([r["took"] for r in synthesised]),
        },
        "model": {
            "seconds_of_passes_per_second_spoken": round(seconds / sum(r["seconds"] for r in synthesised), 3),
            "tokens_per_second_of_passes": round(tokens / seconds, 1),
        },
    }


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    return summary(values) if values else None


# ------------------------------------------------------------------------------------------------------------- the run


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    chance = random.Random(args.seed)
    loads = [os.getloadavg()[0]]
    engines = await load_engines(recogniser=args.recogniser, threads=args.recogniser_threads)
    model = measuring.load_model(args)
    bench = Bench(model, engines, oracle=args.oracle)
    try:
        sounds = await _sounds(args, engines, chance)
        result: dict[str, Any] = {}
        for name, work in _plan(bench, sounds, args):
            result[name] = await work()
            loads.append(os.getloadavg()[0])
        result["words_to_decision_s"] = _summary([r["latency"] for r in bench.rows if r["type"] == "decided"])
        if args.rows:
            args.rows.write_text("\n".join(json.dumps(row) for row in bench.rows), encoding="utf-8")
        result["stages"] = stages(bench, sounds["questions"][0].samples)
        result["load_averages"] = [round(load, 2) for load in loads]
        result["latest_block_s"] = _summary(bench.late_s)
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
        talk_ = [*heard.recordings(folder, "audiobook", chance, n // 2, longest_s=5.0)]
        talk_ += heard.recordings(folder, "meeting", chance, n // 2, longest_s=5.0)
        sounds["background"] = talk_
        sounds["noise"] = heard.recordings(folder, "noise", chance, 6, longest_s=5.0)
    return sounds


def _plan(
    bench: Bench, sounds: dict[str, list[heard.Sound]], args: argparse.Namespace
) -> list[tuple[str, Callable[[], Awaitable[dict[str, Any]]]]]:
    """What is measured, in this order."""

    def over(
        chosen: Sequence[heard.Sound],
        sum_up: Callable[[Sequence[Trial]], dict[str, Any]],
        asked: Sequence[str] = STORIES,
    ) -> Any:
        async def work() -> dict[str, Any]:
            return sum_up(await over_answers(bench, chosen, asked))

        return work

    def silent(chosen: Sequence[heard.Sound]) -> Any:
        async def work() -> dict[str, Any]:
            return answered(await answers(bench, chosen))

        return work

    plan = [
        ("questions", silent(sounds["questions"])),
        ("interruptions", over(sounds["interruptions"], interrupted)),
        ("commands", silent(sounds["commands"])),
        ("command_interruptions", over(sounds["commands"], interrupted, MENUS)),
        ("command_interruptions_of_stories", over(sounds["commands"], interrupted)),
    ]
    if not args.oracle:
        plan += [
            ("backchannels", over(sounds["backchannels"], survived)),
            ("asides", over(sounds["asides"], survived)),
            ("coughs", over(sounds["coughs"], survived)),
        ]
        for level in NOISE_DB:
            plan.append((f"noise_{level:+.0f}dB", over([s.at(level) for s in sounds["noise"]], survived)))
        for level in BACKGROUND_DB:
            plan.append((f"background_{level:+.0f}dB", over([s.at(level) for s in sounds["background"]], survived)))
    return [item for item in plan if not args.only or item[0].startswith(tuple(args.only.split(",")))]


def rows_of(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table: what, how many, and the figure that matters."""
    rows = []
    for name, value in result.items():
        if not isinstance(value, dict) or "trials" not in value:
            continue
        if "got_through" in value:
            duck, cut = value["onset_to_duck_s"] or {}, value["onset_to_silence_s"] or {}
            text = f"duck {duck.get('p50')} / {duck.get('p95')}, silence {cut.get('p50')} / {cut.get('p95')}"
            outcome = f"{value['got_through']} got through, {value['yielded']} yielded"
            rows.append((name, str(value["trials"]), outcome, text))
        elif "survived" in value:
            outcome = f"{value['survived']} survived, {value['untouched']} untouched, {value['yielded']} yielded"
            rows.append((name, str(value["trials"]), outcome, ""))
        else:
            first = value["end_of_speech_to_first_sound_s"] or {}
            figures = f"{first.get('p50')} / {first.get('p95')}"
            rows.append((name, str(value["trials"]), f"{value['answered']} answered", figures))
    return rows


def main() -> None:
    """Run and write."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--audio", type=Path, required=True, help="folder of recordings with a manifest.jsonl")
    parser.add_argument("--trials", type=int, default=20, help="of the larger sets")
    parser.add_argument("--recogniser", help="a model of faster-whisper")
    parser.add_argument("--recogniser-threads", type=int, default=2)
    parser.add_argument("--oracle", action="store_true", help="a recogniser that knows, and takes no time")
    parser.add_argument("--rows", type=Path, help="write all that happened in all trials here")
    parser.add_argument("--only", help="parts, by the beginning of their names, with commas")
    args = parser.parse_args()
    measurement = measuring.begin(args)
    result = asyncio.run(run(args))
    measuring.finish(args, measurement, result, ("what", "n", "", "seconds, p50 / p95"), rows_of(result))


if __name__ == "__main__":
    main()
