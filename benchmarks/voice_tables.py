"""Tables of the benchmark of the voice."""

from typing import Any, Protocol

from duologue.evaluation.markdown import table

Result = dict[str, Any]


class Results(Protocol):
    """See `tables.Results`."""

    def of(self, benchmark: str) -> Any: ...


_SOUNDS = {
    "questions": "synthetic questions, in silence",
    "commands": "recorded orders of coffee, in silence",
    "interruptions": "synthetic interruptions",
    "command_interruptions": "recorded orders over an answer about coffee",
    "command_interruptions_of_stories": "recorded orders over a story",
    "backchannels": "backchannels",
    "asides": "words to somebody else",
    "coughs": "coughs",
    "noise": "noises",
    "background": "background talk",
}


def voice(results: Results) -> str:
    """What a conversation by voice takes and gives."""
    header = (
        "seconds, p50 / p95",
        "n",
        "outcome",
        "yielded",
        "onset → ducked",
        "onset → silence",
        "end of speech → first sound",
    )
    parts = []
    for name, result in results.of("voice"):
        rows = []
        for key, found in result.items():
            if not isinstance(found, dict) or "trials" not in found:
                continue
            kind, _, level = key.partition("_") if key.startswith(("noise", "background")) else (key, "", "")
            what = _SOUNDS[kind] + (f", {level.replace('dB', ' dB')}" if level else "")
            rows.append((what, found["trials"], *_voice_row(found)))
        how = "a recogniser that knows and takes no time" if result["oracle"] else "Whisper base"
        load = (
            f"load average {min(result['load_averages'])} to {max(result['load_averages'])} on {_cores(result)} cores"
        )
        parts.append(f"With {how}, {load} ([{name}](../benchmarks/results/{name})):")
        parts.append(table(header, rows))
    return "\n\n".join(parts) or "No run has been committed yet."


def _voice_row(found: Result) -> tuple[str, ...]:
    yielded = str(found.get("yielded", ""))
    if "got_through" in found:
        outcome = f"{found['got_through']} got through"
        return outcome, yielded, _seconds(found["onset_to_duck_s"]), _seconds(found["onset_to_silence_s"]), ""
    if "survived" in found:
        return f"{found['survived']} survived, {found['untouched']} untouched", yielded, "", "", ""
    return f"{found['answered']} answered", "", "", "", _seconds(found["end_of_speech_to_first_sound_s"])


def stages(results: Results) -> str:
    """Seconds of work of each stage for a second of sound."""
    header = ("stage", "real-time factor", "one piece takes (s, p50 / p95)")
    for _, result in results.of("voice"):
        if result["oracle"] or "interruptions" not in result:
            continue
        found = result["stages"]
        frame = f"{found['detector']['frame_ms'] / 1000:.4f} (a frame)"
        rows = [
            ("detector", found["detector"]["real_time_factor"], frame),
            ("recogniser", found["recogniser"]["real_time_factor"], _seconds(found["recogniser"]["one_decoding_s"])),
            ("words → decision", "", _seconds(result["words_to_decision_s"])),
            ("model, while it speaks", found["model"]["seconds_of_passes_per_second_spoken"], ""),
            ("synthesiser", found["synthesiser"]["real_time_factor"], _seconds(found["synthesiser"]["one_clause_s"])),
        ]
        return table(header, rows)
    return "No run has been committed yet."


def _seconds(found: dict[str, float] | None) -> str:
    return "–" if found is None else f"{found['p50']:.2f} / {found['p95']:.2f}"


def _cores(result: Result) -> int:
    return int(result["hardware"]["cores"])
