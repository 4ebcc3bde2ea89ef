"""How well complete and cut turns are told apart by their words, by their sound, and by both.

Claim: the recogniser's encoding tells more than the words alone whether a speaker has finished, also for speakers and a
domain that nothing was trained on: as soft tokens of an adapter that hears, or, without one, beside the decision.

How: the clips of `duologue data build-audio --keep-sound` that are to be answered or are cut off. Words and sound come
from the same recogniser. AUC is that of p(incomplete) against p(process). *Sound alone* is a linear head on the same
features, trained on the same clips, and *words + head* the mean of its rank and that of the words. *Smart Turn* hears
the same sound. *Cut-offs* are cut clips that would be answered at the threshold at which nine of ten complete ones are.
The room alone is what a classifier tells from the quietest frames: if it were far from 0.5, the other figures would
mean little. Intervals are paired, over recordings.

    duologue data build-audio --texts samples --recordings audio --test assistant_command --keep-sound --out clips
    duologue train alora --audio --data clips --out hearing
    python benchmarks/acoustic.py clips --adapter hearing --smart-turn FILE.onnx --out benchmarks/results/acoustic.json
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import numpy.typing as npt

from duologue.decisions.timing import auc
from duologue.evaluation.labelled_rows import LabelledRows, lay_out, read, with_sounds
from duologue.evaluation.results import describe_model
from duologue.evaluation.scoring import score
from duologue.hearing.clips.artifacts import room_aucs
from duologue.hearing.clips.files import read_sounds
from duologue.models.model import Model
from duologue.types import InputState
from duologue.voice.sound import RATE, Samples, library, read_sound

Floats = npt.NDArray[np.float64]
PENALTIES = (1e2, 1e3, 1e4, 1e5)
NUM_RESAMPLES = 2000
ORDER = ("whole", "pause", "word end", "in a word")  # in which the builder cuts a recording
SEEN_S = 8  # of sound that Smart Turn hears


class SmartTurn:
    """Version 3.2 as an ONNX file."""

    def __init__(self, path: Path) -> None:
        runtime = library("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = runtime.InferenceSession(str(path), options)
        self._extractor = library("faster_whisper.feature_extractor").FeatureExtractor(chunk_length=SEEN_S)

    def p_goes_on(self, sound: Samples) -> float:
        """The probability that the turn is not complete; sound: [S]."""
        last = sound[-SEEN_S * RATE :]
        given = np.pad(last, (SEEN_S * RATE - len(last), 0))
        given = (given - given.mean()) / np.sqrt(given.var() + 1e-7)
        mel = self._extractor(given.astype(np.float32), padding=0)[:, : SEEN_S * 100].astype(np.float32)
        (p,) = self._session.run(None, {self._session.get_inputs()[0].name: mel[None]})
        return 1.0 - float(np.reshape(p, -1)[0])


def chosen(rows: LabelledRows, source: str) -> list[int]:
    """The rows whose source contains `source`, and which are complete and to be answered, or cut."""
    states = (InputState.PROCESS, InputState.INCOMPLETE)
    return [i for i, sample in enumerate(rows.samples) if source in sample.source and sample.state in states]


def groups_of(kinds: list[str]) -> list[int]:
    """Which rows are of the same recording: they follow each other in the order of their kinds."""
    found, number, before = [], -1, len(ORDER)
    for kind in kinds:
        at = ORDER.index(kind)
        number += at <= before
        before = at
        found.append(number)
    return found


def p_incomplete(model: Model, rows: LabelledRows) -> Floats:
    """p(incomplete) of each row, of that and p(process): [N]."""
    states = model.probe.states
    p = score(model, lay_out(rows, model)).astype(np.float64)
    incomplete, process = (p[:, states.index(state)] for state in (InputState.INCOMPLETE, InputState.PROCESS))
    return np.asarray(incomplete / np.maximum(incomplete + process, 1e-12))


def head(folder: Path, features: npt.NDArray[np.float32]) -> Floats:
    """Scores of `features` [N, K, F] by a ridge regression on the training clips; its penalty suits dev.jsonl."""
    parts = {}
    for split in ("train", "dev"):
        rows = read(folder / f"{split}.jsonl")
        kept = chosen(rows, "")
        sounds = read_sounds(rows.path, max(rows.lines)).features[kept]
        cut = np.array([rows.samples[i].state is InputState.INCOMPLETE for i in kept])
        parts[split] = sounds.reshape(len(kept), -1).astype(np.float64), cut
    x, y = parts["train"]
    mean, spread = x.mean(0), x.std(0) + 1e-3
    best: tuple[float, Floats] = (-1.0, np.zeros(x.shape[1]))
    for penalty in PENALTIES:
        design = (x - mean) / spread
        weights = np.linalg.solve(design.T @ design + penalty * np.eye(x.shape[1]), design.T @ (y - y.mean()))
        told = auc(((parts["dev"][0] - mean) / spread) @ weights, parts["dev"][1]) or 0.0
        best = max(best, (told, weights), key=lambda one: one[0])
    return np.asarray(((features.reshape(len(features), -1) - mean) / spread) @ best[1])


def ranks(p: Floats) -> Floats:
    """The rank of each row [N], ties at their mean, from 0 to 1."""
    _, which, counts = np.unique(p, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[which] / max(1, len(p) - 1))


def cut_offs(p: Floats, cut: npt.NDArray[np.bool_]) -> float:
    """The share of cut rows that would be answered where nine of ten complete ones are."""
    return float((p[cut] <= np.quantile(p[~cut], 0.9)).mean())


def interval(one: Floats, other: Floats, cut: npt.NDArray[np.bool_], groups: list[int], seed: int) -> dict[str, float]:
    """AUC(one) - AUC(other), and its 95 % interval over resampled recordings."""
    chance = np.random.default_rng(seed)
    rows = [np.flatnonzero(np.array(groups) == group) for group in sorted(set(groups))]
    differences = []
    for _ in range(NUM_RESAMPLES):
        picked = np.concatenate([rows[i] for i in chance.integers(0, len(rows), len(rows))])
        pair = [auc(p[picked], cut[picked]) for p in (one, other)]
        if pair[0] is not None and pair[1] is not None:
            differences.append(pair[0] - pair[1])
    low, high = np.quantile(differences, (0.025, 0.975))
    whole = (auc(one, cut) or 0.0) - (auc(other, cut) or 0.0)
    return {"difference": round(whole, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def figures(scores: Mapping[str, Floats], kinds: list[str], groups: list[int], seed: int) -> dict[str, Any]:
    """All figures of one set of rows."""
    which, cut = np.array(kinds), np.array([kind != "whole" for kind in kinds])
    result: dict[str, Any] = {"n": len(kinds), "whole": int((~cut).sum()), "recordings": len(set(groups))}
    for name, p in scores.items():
        by_kind = {
            kind: round(auc(p[~cut | (which == kind)], cut[~cut | (which == kind)]) or 0.0, 4)
            for kind in ORDER[1:]
            if (which == kind).any()
        }
        result[name] = {"auc": round(auc(p, cut) or 0.0, 4), "by_kind": by_kind, "cut_offs": round(cut_offs(p, cut), 4)}
    for name in ("words and sound", "words + head"):
        if name in scores:
            result[f"{name} - words"] = interval(scores[name], scores["words"], cut, groups, seed)
    return result


def main() -> None:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    rows = read(args.clips / f"{args.split}.jsonl")
    kept = chosen(rows, args.source)
    some = LabelledRows(rows.path, tuple(rows.samples[i] for i in kept), tuple(rows.lines[i] for i in kept))
    kinds = [sample.kind for sample in some.samples]
    groups = groups_of(kinds)
    sounds = read_sounds(rows.path, max(rows.lines))
    model = measuring.load_model(args)
    try:
        scores = {"words": p_incomplete(model, some)}
        if model.hears:
            scores["words and sound"] = p_incomplete(model, with_sounds(some))
        described = describe_model(model)
    finally:
        model.close()
    scores["sound alone"] = head(args.clips, sounds.features[kept])
    scores["words + head"] = (ranks(scores["words"]) + ranks(scores["sound alone"])) / 2
    if args.smart_turn is not None:
        detector = SmartTurn(args.smart_turn)
        files = [args.clips / "sound" / f"{args.split}-{line:05}.wav" for line in some.lines]
        scores["Smart Turn 3.2"] = np.array([detector.p_goes_on(read_sound(file)) for file in files])
    result = {
        "model": described,
        "split": args.split,
        "source": args.source,
        "clips": json.loads((args.clips / "report.json").read_text(encoding="utf-8")),
        "training": model.adapter.facts.get("sound"),
        "room_alone": room_aucs(sounds.rooms[kept], [one.state for one in some.samples], list(map(str, groups))),
        **figures(scores, kinds, groups, args.seed),
    }
    table = [
        (name, result[name]["auc"], *(result[name]["by_kind"].values()), result[name]["cut_offs"]) for name in scores
    ]
    header = ("", "AUC", *(kind for kind in ORDER[1:] if kind in kinds), "cut-offs at 90 %")
    measuring.finish(args, measurement, result, header, table)


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("clips", type=Path, help="folder of `duologue data build-audio`")
    parser.add_argument("--split", default="test", help="rows to decide on (default test)")
    parser.add_argument("--source", default="", help="only rows whose source contains this")
    parser.add_argument("--smart-turn", type=Path, metavar="FILE", help="the detector as an ONNX file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
