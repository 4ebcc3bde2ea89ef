"""Experiments on how to make a model duplex: variants side by side, on the same samples and the same test rows.

    python experiments/run.py NAME … --data DIR [--out FILE, for one]

DIR is a folder written by `duologue data build`. The base is frozen, so the prefixes of samples and test rows are
computed once and shared by all variants: a variant costs its training steps and nothing else. Thresholds are calibrated
on held-out samples of the training sources; the test rows come from sources that no variant has seen.
"""

import argparse
import json
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import measuring
from document_tables import QUESTIONS, experiment_table

from duologue.backends.torch.loading import read_model
from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.forms import spoken
from duologue.data.samples import Sample, read_samples
from duologue.decisions.metrics import DecisionMetrics
from duologue.decisions.thresholds import Probabilities, calibrate, decide
from duologue.evaluation import results
from duologue.models.catalogue import DEFAULT, find
from duologue.text.template import Template
from duologue.training.finetune.duplex_model import DuplexModel
from duologue.training.finetune.examples import lay_out
from duologue.training.finetune.run import Finetuning
from duologue.training.layout import Layout, Layouts
from duologue.training.probe.linear_probe import fit, hidden_states
from duologue.training.probe.prefixes import Past, Prefixes, PrefixModel
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.probe.training import ProbeTraining, label, score_prefixes
from duologue.training.recipes import FINETUNE_RECIPES, LoraShape, ProbeSettings
from duologue.training.runs import start_tokens
from duologue.types import InputState

STATES = tuple(InputState)
_MAX_KEPT = 3  # sets of prefixes in memory: training, held-out and test samples
INSTRUCTION = " Is this complete, and is it meant for the assistant?"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to train."""

    name: str
    lora: LoraShape | None = None
    settings: ProbeSettings = field(default_factory=lambda: ProbeSettings(epochs=6, patience=6, lr=1.6e-2))
    num_probes: int = 1
    start: str = "words"  # the mean of a few words, the embeddings of an "instruction", or those of the "answer" header
    num_samples: int | None = None  # training samples; None: all
    keep: Callable[[Sample], bool] = lambda sample: True  # which of them are used
    teacher: bool = False  # also learn from the probabilities of the latest variant with a LoRA
    at_every_probe: bool = False  # read the states at all probe tokens, not only at the last
    rows_per_state: int = 1  # output rows; the probability of a state is the sum over its rows


ALORA = Variant("alora, rank 8", lora=LoraShape(), settings=ProbeSettings(epochs=3, patience=3, lora_lr=3e-3))
ROWS = Variant("rows")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def _with_lr(variant: Variant, **rates: float) -> Variant:
    name = ", ".join(f"{key} {value:g}" for key, value in rates.items())
    return replace(variant, name=f"{variant.name}, {name}", settings=replace(variant.settings, **rates))


def _shaped(name: str, **shape: Any) -> Variant:
    return replace(ALORA, name=f"alora, {name}", lora=LoraShape(**shape))


def _with_and_without(name: str, keep: Callable[[Sample], bool]) -> list[Variant]:
    """Rows and alora, on all samples and on those that `keep` selects."""
    return [
        *(replace(kind, name=f"{kind.name}, all samples") for kind in (ROWS, ALORA)),
        *(replace(kind, name=f"{kind.name}, {name}", keep=keep) for kind in (ROWS, ALORA)),
    ]


def _of_sources(eighths: int) -> Callable[[Sample], bool]:
    """Selects the samples of some sources, and as many stop commands, which few sources have."""

    def keep(sample: Sample) -> bool:
        is_stop = sample.state is InputState.STOP
        name = sample.text if is_stop else sample.source
        return (is_stop or name != "own") and zlib.crc32(name.encode()) % 8 < eighths

    return keep


EXPERIMENTS: dict[str, list[Variant]] = {
    "probe_tokens": [
        ROWS,
        replace(ROWS, name="rows, 2 probes", num_probes=2),
        replace(ROWS, name="rows, 4 probes", num_probes=4),
        replace(ROWS, name="rows, 8 probes", num_probes=8),
        replace(ROWS, name="rows, an instruction", start="instruction"),
        replace(ROWS, name="rows, the opener of an answer", start="answer"),
        replace(ALORA, name="alora, 4 probes", num_probes=4),
        replace(ALORA, name="alora, the opener of an answer", start="answer"),
    ],
    "kinds": [
        ROWS,
        ALORA,
        _shaped("rank 2", rank=2, alpha=4),
        _shaped("rank 32", rank=32, alpha=64),
        _shaped("attention only", targets=ATTENTION),
        _shaped("MLP only", targets=MLP),
        _shaped("upper half of the layers", first_layer=15),
    ],
    "positions": [
        ROWS,
        replace(ROWS, name="rows, 4 probes, read at the last", num_probes=4),
        replace(ROWS, name="rows, 4 probes, read at every one", num_probes=4, at_every_probe=True),
    ],
    "state_rows": [
        ROWS,
        replace(ROWS, name="rows, 4 a state", rows_per_state=4),
        replace(ROWS, name="rows, 16 a state", rows_per_state=16),
        ALORA,
        replace(ALORA, name="alora, rank 8, 4 a state", rows_per_state=4),
    ],
    "samples": [
        replace(variant, name=f"{variant.name}, {n} samples", num_samples=n)
        for n in (300, 1000, 3000, 10_000)
        for variant in (ROWS, ALORA)
    ],
    "context": _with_and_without("only alone", lambda sample: not sample.context),
    "hard_negatives": _with_and_without("no asides", lambda sample: sample.kind != "aside"),
    "unseen_sources": [
        *(
            replace(ALORA, name=f"alora, {name}", keep=_of_sources(share), num_samples=2000)
            for name, share in (("three eighths of the sources", 3), ("five eighths", 5), ("all sources", 8))
        ),
        replace(
            ALORA,
            name="alora, all sources, spoken form only",
            keep=lambda sample: _of_sources(8)(sample) and sample.text == spoken(sample.text),
            num_samples=2000,
        ),
        replace(_shaped("all sources, rank 32", rank=32, alpha=64), keep=_of_sources(8), num_samples=2000),
        replace(_shaped("all sources, dropout 0.2", dropout=0.2), keep=_of_sources(8), num_samples=2000),
    ],
    "learning_rates": [
        *(_with_lr(ROWS, lr=rate) for rate in (1e-3, 4e-3, 1.6e-2)),
        *(_with_lr(ALORA, lora_lr=rate) for rate in (3e-4, 1e-3, 3e-3)),
    ],
    "lora_rates": [_with_lr(ALORA, lora_lr=rate) for rate in (1e-3, 3e-3, 6e-3)],
    "rows_to_alora": [
        ALORA,
        replace(ROWS, name="rows, taught by alora", teacher=True),
        replace(ROWS, name="rows, 4 probes, taught by alora", num_probes=4, teacher=True),
        replace(ROWS, name="rows, 16 epochs", settings=ProbeSettings(epochs=16, patience=16, lr=1.6e-2)),
        replace(
            ROWS,
            name="rows, 16 epochs, taught by alora",
            settings=ProbeSettings(epochs=16, patience=16, lr=1.6e-2),
            teacher=True,
        ),
    ],
    "tuned": [ROWS, ALORA],
    "another_model": [ROWS, ALORA],
    "no_probe": [ROWS],
}


class VariantModel(ProbeModel):
    """Reads the states at all probe tokens (the mean of their hidden states), or with several output rows per state."""

    def __init__(self, base: Any, variant: Variant, start: Sequence[int], num_probes: int) -> None:
        super().__init__(base, STATES, start, num_probes=num_probes, lora=variant.lora)
        self._variant = variant
        self.states = nn.Parameter(torch.randn(len(STATES), variant.rows_per_state * self.states.shape[1]) * 0.01)

    def forward(self, past: Past) -> Tensor:
        """See `ProbeModel`."""
        hidden = self.hidden(past).float()
        read = hidden.mean(1) if self._variant.at_every_probe else hidden[:, -1]
        rows = self.states.view(len(STATES), self._variant.rows_per_state, -1)
        return torch.einsum("bd,skd->bsk", read, rows).logsumexp(-1)


class Lab:
    """The base model, the samples, and their prefixes."""

    def __init__(self, args: argparse.Namespace) -> None:
        source = find(args.model)
        self._where = source.location
        base, tokenizer = read_model(self._where)
        self.tokenizer = HfTokenizer(tokenizer)
        self.template = Template.from_tokenizer(self.tokenizer)
        layouts = Layouts(self.template)
        chance = random.Random(args.seed)
        self.train = list(read_samples(args.data / "train.jsonl"))[: args.samples]
        self.dev, self.test = (
            chance.sample(rows, min(number, len(rows)))
            for rows, number in (
                (list(read_samples(args.data / "dev.jsonl")), args.dev),
                (list(read_samples(args.data / "test.jsonl")), args.test),
            )
        )
        self.layouts = {id(s): layouts.of(s) for s in (*self.train, *self.dev, *self.test)}
        self._model = PrefixModel(base)
        self._known: dict[tuple[Layout, ...], Prefixes] = {}
        self.teacher: ProbeModel | None = None

    def base(self) -> Any:
        """A fresh copy of the base."""
        return read_model(self._where)[0]

    def laid(self, samples: Sequence[Sample]) -> list[Layout]:
        """Samples as tokens."""
        return [self.layouts[id(sample)] for sample in samples]

    def prefixes(self, layouts: Sequence[Layout]) -> Prefixes:
        """The KV of everything before the probes, computed once."""
        key = tuple(layouts)
        known = self._known.pop(key, None)
        if known is None:
            while len(self._known) >= _MAX_KEPT:
                del self._known[next(iter(self._known))]  # the least recently used
            measuring.progress(f"prefixes of {len(key)} samples")
            known = Prefixes(self._model, layouts)
        self._known[key] = known
        return known


def run_variant(lab: Lab, variant: Variant, seed: int) -> dict[str, Any]:
    """Train one variant and evaluate it."""
    torch.manual_seed(seed)
    samples = [sample for sample in lab.train if variant.keep(sample)][: variant.num_samples]
    if len(samples) < (variant.num_samples or 0):
        raise SystemExit(f"{variant.name}: only {len(samples)} samples; write --samples {variant.num_samples}")
    start = start_tokens(lab.tokenizer)
    num_probes = variant.num_probes
    if variant.start != "words":
        opener = [*lab.template.user_close, *lab.template.header]
        start = lab.tokenizer.encode(INSTRUCTION) if variant.start == "instruction" else opener
        num_probes = len(start)
    model = VariantModel(lab.base(), variant, start, num_probes)
    settings = replace(variant.settings, seed=seed)
    data = label(samples, lab.laid(samples), STATES, settings)
    dev = label(lab.dev, lab.laid(lab.dev), STATES, settings)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        training = ProbeTraining(
            model, data, dev, settings, Path(folder), max_tokens=1 << 40, compute=lab.prefixes,
            teacher=lab.teacher if variant.teacher else None,
        )  # fmt: skip
        history = training.run(report=lambda epoch: measuring.progress(f"{variant.name}: {epoch}"))
    seconds = time.monotonic() - began
    if variant.lora is not None:
        lab.teacher = model
    p = {
        name: score_prefixes(model, lab.prefixes(lab.laid(rows)))
        for name, rows in (("dev", lab.dev), ("test", lab.test))
    }
    trained = sum(parameter.numel() for parameter in (model.probes, model.states, *model.lora_parameters))
    return {
        "variant": variant.name,
        "samples": len(samples),
        "trained_numbers": trained,
        "epochs": len(history),
        "training_s": round(seconds),
        **_judged(lab, p["dev"], p["test"]),
    }


def run_tuned(lab: Lab, kind: str, seed: int) -> dict[str, Any]:
    """Train the weights of the base too, and evaluate it."""
    settings = replace(
        FINETUNE_RECIPES[kind], steps=None, epochs=1, response_weight=0.0, rows_lr=4e-3, eval_every=10_000, seed=seed
    )
    torch.manual_seed(seed)
    model = DuplexModel(lab.base().float(), len(STATES), start_tokens(lab.tokenizer), settings)
    train_rows, dev_rows, test_rows = (
        lay_out(rows, lab.template, settings.max_length)[0] for rows in (lab.train, lab.dev, lab.test)
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = Finetuning(model, STATES, train_rows, dev_rows, settings, Path(folder))
        run.run(progress=lambda what, done, total: measuring.progress(f"{kind}: {what} {done} of {total}"))
        seconds = time.monotonic() - began
        p = run.score(dev_rows), run.score(test_rows)
    return {
        "variant": f"{kind}, every position",
        "samples": len(lab.train),
        "trained_numbers": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "epochs": 1,
        "training_s": round(seconds),
        **_judged(lab, *p),
    }


def run_linear(lab: Lab) -> dict[str, Any]:
    """A linear layer on the hidden state of the last word."""
    base = lab.base()
    measuring.progress("computing hidden states with their contexts; this takes longer than any variant")
    hidden = {
        name: hidden_states(base, lab.laid(rows))
        for name, rows in (("train", lab.train), ("dev", lab.dev), ("test", lab.test))
    }
    began = time.monotonic()
    labels = torch.tensor([STATES.index(sample.state) for sample in lab.train])
    layer = fit(hidden["train"], labels, len(STATES))
    p = {name: layer(hidden[name]) for name in ("dev", "test")}
    return {
        "variant": "a linear layer at the last word",
        "samples": len(lab.train),
        "trained_numbers": len(STATES) * (hidden["train"].shape[1] + 1),
        "epochs": None,
        "training_s": round(time.monotonic() - began),
        **_judged(lab, p["dev"], p["test"]),
    }


def _judged(lab: Lab, dev: Probabilities, test: Probabilities) -> dict[str, Any]:
    """Metrics on the test rows, with thresholds calibrated on the held-out samples. dev: [D, S], test: [N, S]."""
    decisions = decide(test, lab.test, STATES, calibrate(lab.dev, dev, STATES))
    found: dict[str, Any] = {}
    for name, places in (("idle", {False}), ("over_an_answer", {True}), ("all", {False, True})):
        rows = [i for i, sample in enumerate(lab.test) if sample.speaking in places]
        metrics = DecisionMetrics.of([lab.test[i] for i in rows], [decisions[i] for i in rows]).to_json()
        found[name] = {
            "n": metrics["n"],
            "accuracy": metrics["accuracy"],
            "answer_f1": metrics["answer"]["f1"],
            "false_answers": metrics["false_answer_rate"],
            "recall": metrics["recall"],
        }
    return found


def main() -> int:
    """Run some experiments, or all."""
    parser = measuring.arguments(__doc__, with_model=False)
    parser.add_argument("names", nargs="+", choices=[*EXPERIMENTS, "all"], metavar="NAME")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--samples", type=int, default=6000, help="of the training samples")
    parser.add_argument("--dev", type=int, default=800, help="held-out rows, for thresholds")
    parser.add_argument("--test", type=int, default=1500, help="test rows")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    measurement = measuring.begin(args)
    lab = Lab(args)
    manifest = json.loads((args.data / "manifest.json").read_text(encoding="utf-8"))
    names = list(EXPERIMENTS) if "all" in args.names else args.names
    for name in names:
        found = [run_linear(lab)] if name == "no_probe" else []
        found += [run_variant(lab, variant, args.seed) for variant in EXPERIMENTS[name]]
        found += [run_tuned(lab, kind, args.seed) for kind in ("lora", "full")] if name == "tuned" else []
        figures = {
            "experiment": name, "question": QUESTIONS[name], "data": manifest["recipe"], "base": args.model,
            "results": found,
        }  # fmt: skip
        out = args.out if args.out and len(names) == 1 else Path(__file__).parent / name / "result.json"
        result = measurement.result(figures)
        results.write(result, out)
        print(experiment_table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
