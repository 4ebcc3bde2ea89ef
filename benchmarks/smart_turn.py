"""A public end-of-turn detector that works on sound, Pipecat's Smart Turn, beside the adapter that works on words.

Claim: none. An end-of-turn detector does not know who is addressed, so it answers complete sentences said to others.
This measures how many, and how well it tells complete from cut utterances.

How: Piper speaks every row (cut rows end at the cut; 0.2 s of silence follow, as a speech detector leaves them), and
Smart Turn says whether it is complete: process, or incomplete. Piper speaks a cut text as if it were complete, which
misleads a detector that relies on intonation. So recordings of orders follow, whole, and cut at the end of a word as
found by Whisper, after half to nine tenths of the words. Smart Turn hears them; the adapter reads the words so far.

    pip install --no-deps pipecat-ai loguru wait_for2
    python benchmarks/smart_turn.py samples/test-tenth.jsonl --audio DIR --out benchmarks/results/smart-turn.json
"""

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import heard
import measuring
import numpy as np

from duologue.data.samples import Sample
from duologue.decisions.metrics import DecisionMetrics
from duologue.evaluation.labelled_rows import LabelledRows, read
from duologue.evaluation.results import describe_model
from duologue.evaluation.states import judge_model
from duologue.types import InputState
from duologue.voice.engines.piper import PiperSynthesiser
from duologue.voice.sound import RATE, Samples, resampled, silence

PROCESS, INCOMPLETE = InputState.PROCESS, InputState.INCOMPLETE


class SmartTurn:
    """Version 3.2, as shipped with Pipecat."""

    def __init__(self) -> None:
        # not a dependency of the tests
        from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3

        self._analyzer: Any = LocalSmartTurnAnalyzerV3()
        self._analyzer.set_sample_rate(RATE)

    def state(self, samples: Samples) -> InputState:
        """Process if the turn sounds complete, else incomplete."""
        heard_ = np.concatenate([samples, silence(RATE // 5)]).astype(np.float32)
        return PROCESS if self._analyzer._predict_endpoint(heard_)["prediction"] else INCOMPLETE


async def spoken_rows(rows: Sequence[Sample], detector: SmartTurn) -> list[InputState]:
    """The decision of the detector on each row, spoken by Piper."""
    piper = PiperSynthesiser()
    found = []
    try:
        for number, row in enumerate(rows, 1):
            speech = await piper.speak(row.text)
            found.append(detector.state(resampled(speech.samples, speech.rate, RATE)))
            if number % 50 == 0:
                measuring.progress(f"{number} of {len(rows)} rows spoken")
    finally:
        await piper.aclose()
    return found


def recordings(folder: Path, chance: random.Random, count: int) -> list[tuple[Sample, Samples]]:
    """Recorded orders, each whole and cut, with their words."""
    found = []
    sounds = heard.with_words(heard.recordings(folder, "assistant_command", chance, count, longest_s=9.0))
    for sound in (sound for sound in sounds if len(sound.words) >= 6):
        at = chance.randint(len(sound.words) // 2, len(sound.words) * 9 // 10)
        for state, num in ((PROCESS, len(sound.words)), (INCOMPLETE, at)):
            text = " ".join(word for word, _ in sound.words[:num]).rstrip(".,;:?!")
            end = int(sound.words[num - 1][1] * RATE)  # the silence that follows in the recording would give it away
            found.append((Sample(text, state, "recordings", "order"), sound.samples[:end]))
    return found


def main() -> None:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    detector, chance = SmartTurn(), random.Random(args.seed)
    rows = read(args.file)
    orders = recordings(args.audio, chance, args.orders)
    cut = LabelledRows(args.audio, tuple(sample for sample, _ in orders), tuple(range(1, len(orders) + 1)))
    model = measuring.load_model(args)
    try:
        by_words = {"rows": judge_model(rows, model)[0].decisions, "orders": judge_model(cut, model)[0].decisions}
        described = describe_model(model)
    finally:
        model.close()
    by_sound = {
        "rows": asyncio.run(spoken_rows(rows.samples, detector)),
        "orders": [detector.state(sound) for _, sound in orders],
    }
    result: dict[str, Any] = {"model": described}
    table = []
    for name, judged in (("rows", rows), ("orders", cut)):
        found = {"smart turn": by_sound[name], "adapter": by_words[name]}
        result[name] = {
            who: DecisionMetrics.of(judged.samples, decisions).to_json() for who, decisions in found.items()
        }
        for who, values in result[name].items():
            table.append((f"{name}, {who}", values["n"], values["answer"]["f1"], json.dumps(values["recall"])))
    measuring.finish(args, measurement, result, ("", "n", "answer F1", "recall"), table)


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("file", type=Path, help="rows to decide on")
    parser.add_argument("--audio", type=Path, required=True, help="folder of recordings with a manifest.jsonl")
    parser.add_argument("--orders", type=int, default=40, help="recordings, each whole and cut")
    return parser.parse_args()


if __name__ == "__main__":
    main()
