"""Trials of the voice benchmark: what happened in one conversation, and the figures of many."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import heard

from duologue.engine.trace import Pass
from duologue.evaluation.quantiles import summary
from duologue.voice.engines.silero import SileroDetector
from duologue.voice.sound import RATE, Samples
from duologue.voice.timeline import Row

DUCK_S, FADE_S = 0.03, 0.02  # until the ramp has ended; a pause fades as long as a cut


@dataclass(frozen=True, slots=True)
class Trial:
    """One conversation: the sound, when it began and ended, and all that happened."""

    sound: heard.Sound
    began: float
    ended: float
    rows: list[Row]

    def after(self, begin: float, *kinds: str) -> float | None:
        """When one of these events first happened, at `begin` or later."""
        return next((row["at"] for row in self.rows if row["type"] in kinds and row["at"] >= begin), None)

    def delay(self, begin: float, *kinds: str) -> float | None:
        """How long after `begin` one of these events first happened."""
        at = self.after(begin, *kinds)
        return None if at is None else at - begin

    @property
    def pauses(self) -> list[float]:
        """When the answer yielded to the sound."""
        return [row["at"] for row in self.rows if row["type"] == "yielded" and row["at"] >= self.began]

    @property
    def silent(self) -> float | None:
        """When the answer that was talked over fell silent for good; None if it did not."""
        since, is_cut, is_resumed = None, False, False
        for row in (row for row in self.rows if row["at"] >= self.began):
            match row["type"]:
                case "yielded" if not is_cut:  # later pauses are of the answer to the sound
                    since = row["at"]
                case "came_back" if not is_cut:
                    since = None
                case "cut" if not is_cut:
                    since, is_cut = (row["at"] if since is None else since), True
                case "resumed" | "suspended" as kind:
                    is_resumed = kind == "resumed"
                case "sound_begins" if is_resumed:  # a resumed answer may be cut before it has sounded
                    since, is_cut, is_resumed = None, False, False
        return since if is_cut and not is_resumed else None

    @property
    def goes_on(self) -> bool:
        """Whether the last thing that happened to the answer is that it was resumed."""
        return self._last("suspended", "resumed") == "resumed"

    @property
    def ends_paused(self) -> bool:
        """Whether the answer yielded at the end, with no consequence yet."""
        return self._last("yielded", "came_back", "cut") == "yielded"

    @property
    def cause(self) -> str:
        """The decision that ended the answer."""
        for row in self.rows:
            is_late = row["type"] == "decided" and row["at"] > self.began
            if is_late and row["speaking"] and row["state"] in ("process", "stop"):
                return f"{row['state']} {row['p']:.2f}: {row['text']}"
        return ""

    def _last(self, *kinds: str) -> str | None:
        return next((row["type"] for row in reversed(self.rows) if row["type"] in kinds), None)


def interrupted(trials: Sequence[Trial]) -> dict[str, Any]:
    """Figures of sounds that should get through."""
    ducks = [d + DUCK_S for t in trials if (d := t.delay(t.began, "ducked")) is not None]
    silent = [(t, at + FADE_S) for t in trials if (at := t.silent) is not None]
    cuts = [d + FADE_S for t in trials if (d := t.delay(t.began, "cut")) is not None]
    return {
        "trials": len(trials),
        "got_through": len(silent),
        "yielded": sum(bool(t.pauses) for t in trials),
        "onset_to_duck_s": summary_or_none(ducks),
        "onset_to_silence_s": summary_or_none([at - t.began for t, at in silent]),
        "onset_to_cut_s": summary_or_none(cuts),
        "end_of_speech_to_silence_s": summary_or_none([at - t.ended for t, at in silent]),
        "seconds_of_speech": summary_or_none([t.ended - t.began for t in trials]),
    }


def survived(trials: Sequence[Trial]) -> dict[str, Any]:
    """Figures of sounds that should not get through.

    An answer has survived if it was not cut, or was cut and went on by itself from where it was heard, or yielded and
    went on. It is untouched if it was neither cut nor yielded. `paused_s` is how long it was silent for nothing.
    """
    cut = [t for t in trials if t.after(t.began, "cut") is not None]
    lost = [t for t in trials if t.ends_paused or (t in cut and not t.goes_on)]
    back = [d for t in trials if (d := t.delay(t.began, "came_back")) is not None]
    paused = [end - at for t in trials for at in t.pauses if (end := t.after(at, "came_back", "cut")) is not None]
    return {
        "trials": len(trials),
        "survived": len(trials) - len(lost),
        "untouched": sum(t not in cut and not t.pauses for t in trials),
        "yielded": sum(bool(t.pauses) for t in trials),
        "pauses": sum(len(t.pauses) for t in trials),
        "paused_s": summary_or_none(paused),
        "ducked": sum(t.after(t.began, "ducked") is not None for t in trials),
        "onset_to_back_s": summary_or_none(back),
        "cut_by": [
            {"sound": t.sound.name[:60], "text": t.cause, "lost": t in lost} for t in trials if t in cut or t in lost
        ],
    }


def answered(trials: Sequence[Trial]) -> dict[str, Any]:
    """Figures of questions in silence: the whole delay and its parts, each from the end of speech."""
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
        "end_of_speech_to_first_sound_s": summary_or_none(first),
        "of_that_until_s": {name: summary_or_none(values) for name, values in parts.items()},
    }


def stages(passes: Sequence[Pass], rows: Sequence[Row], speech: Samples) -> dict[str, Any]:
    """Seconds of work of each stage per second of sound. The detector is timed on `speech`, alone."""
    detector, size = SileroDetector(), SileroDetector.frame
    began, frames = time.perf_counter(), len(speech) // size
    for i in range(frames):
        detector(speech[i * size : (i + 1) * size])
    per_frame = (time.perf_counter() - began) / frames
    recognised = [r for r in rows if r["type"] == "recognised"]
    synthesised = [r for r in rows if r["type"] == "synthesised" and r["seconds"] > 0]
    lengths = {(row["trial"], row["utterance"]): row["heard_s"] for row in recognised}
    heard_s = max(sum(lengths.values()), 1e-9)
    spoken_s = sum(r["seconds"] for r in synthesised)
    pass_s = sum(p.seconds for p in passes)
    return {
        "detector": {"real_time_factor": round(per_frame / (size / RATE), 3), "frame_ms": round(per_frame * 1000, 2)},
        "recogniser": {
            "real_time_factor": round(sum(r["took"] for r in recognised) / heard_s, 3),
            "decodings_per_second_of_speech": round(len(recognised) / heard_s, 2),
            "one_decoding_s": summary_or_none([r["took"] for r in recognised]),
        },
        "synthesiser": {
            "real_time_factor": round(sum(r["took"] for r in synthesised) / spoken_s, 3),
            "one_clause_s": summary_or_none([r["took"] for r in synthesised]),
        },
        "model": {
            "seconds_of_passes_per_second_spoken": round(pass_s / spoken_s, 3),
            "tokens_per_second_of_passes": round(sum(p.output_tokens for p in passes) / pass_s, 1),
        },
    }


def summary_or_none(values: Sequence[float]) -> dict[str, float] | None:
    """`summary`, or None without values."""
    return summary(values) if values else None
