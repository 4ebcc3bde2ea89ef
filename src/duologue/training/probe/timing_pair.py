"""Fits the timing pair of a trained adapter to samples; its decisions stay as they are, bit for bit.

Beside the states, the pair is learned in passing. For final hidden states that no longer change, logistic regression
finds the best pair there is. It is pulled towards the pair that was there, since samples are few for so many numbers.

N samples, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample
from duologue.decisions.calibration import fit_temperature
from duologue.decisions.metrics import rounded
from duologue.decisions.timing import balance, is_learnable, needs_timing, timing_facts
from duologue.errors import BadData, UsageError
from duologue.models.adapters import Adapter
from duologue.models.card import write_card
from duologue.text.template import Template
from duologue.training.layout import Layout, lay_out_within
from duologue.training.probe.prefixes import Prefixes, kv_bytes_per_token, shards
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.runs import Say, fingerprint_of, max_positions, read_splits

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""Of the pull, tried in turn: the loss of a change that moves all logits by about one."""
FIT = "timing_fit"
"""Its name among the facts of an adapter."""

_BATCH = 64
_MAX_STEPS = 100


@dataclass(frozen=True, slots=True)
class TimingRun:
    """What to fit, and to what."""

    data: Path  # train.jsonl, dev.jsonl
    out: Path
    adapter: Adapter
    num_samples: int | None = None  # the first of train.jsonl; None takes all
    memory_gb: float = 8.0  # for the prefixes


@dataclass(frozen=True, slots=True)
class _Split:
    """Samples whose words look complete, and what the model makes of them."""

    samples: Sequence[Sample]
    hidden: Tensor  # [N, D]
    ends: Tensor  # [N], 1 where the turn ends with the words
    weights: Tensor  # [N]


def train_timing(
    run: TimingRun,
    model: PreTrainedModel,
    tokenizer: HfTokenizer,
    *,
    progress: StageProgress = silent,
    say: Say = print,
) -> Adapter:
    """Fit the timing pair of `run.adapter`; write and return the adapter with it.

    Of several strengths of the pull, the one with the lowest held-out loss is taken. The pair stays if none lowers it.

    Raises:
        BadData, UsageError: see `read_splits`; samples do not say whether turns end; the adapter was not trained.
        AdapterMismatch: the adapter belongs to another model.
    """
    adapter = run.adapter
    adapter.check(fingerprint_of(model, tokenizer))
    if adapter.cascade is not None and not adapter.has_timing:
        raise UsageError("the rows of the adapter's cascade have no timing pair; train them anew with --into")
    probe = ProbeModel.from_adapter(adapter, model)
    start = torch.zeros(2, probe.probes.shape[1]) if probe.timing is None else probe.timing.detach().cpu()
    read, dev_read, _ = read_splits(run.data, run.num_samples)
    train, dev = (_split(run, probe, tokenizer, samples, progress) for samples in (read, dev_read))
    probe.unload()
    before, pair, strength = _loss(dev, start), start, None
    for candidate in STRENGTHS:
        found = fit_pair(train.hidden, train.ends, train.weights, start, candidate)
        if _loss(dev, found) < _loss(dev, pair):
            pair, strength = found, candidate
    p = (dev.hidden @ pair.T).softmax(-1).numpy()
    ends = dev.ends.numpy().astype(bool)
    temperature = fit_temperature(p, np.stack([~ends, ends], 1), dev.weights.numpy())
    say(f"held-out loss {before:.4f} before, {_loss(dev, pair / temperature):.4f} now")
    facts: dict[str, Any] = {
        "samples": len(train.samples),
        "strength": strength,
        "loss": {"before": rounded(before), "now": rounded(_loss(dev, pair / temperature))},
    }
    timing = {"temperature": round(temperature, 3), **timing_facts(dev.samples, p[:, 1])}
    assert adapter.rows is not None, "a probe model has rows"
    adapter = replace(
        adapter,
        rows=replace(adapter.rows, timing=(pair / temperature).numpy()),
        facts={**adapter.facts, "timing": timing, FIT: facts},
    )
    adapter.save(run.out)
    write_card(adapter, run.out)
    return adapter


def fit_pair(hidden: Tensor, ends: Tensor, weights: Tensor, start: Tensor, strength: float) -> Tensor:
    """The pair [2, D] with the lowest weighted cross-entropy, pulled towards `start` [2, D].

    hidden: [N, D]; ends: [N], 0 or 1; weights: [N].
    """
    change = torch.zeros_like(start[0], requires_grad=True)  # [D], of the difference of the two logits
    logits, pull = hidden @ (start[1] - start[0]), strength * hidden.square().mean()
    optimizer = torch.optim.LBFGS([change], max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        losses = functional.binary_cross_entropy_with_logits(logits + hidden @ change, ends.float(), weights)
        value = losses * len(weights) / weights.sum() + pull * change.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return start + torch.stack([-change, change]).detach() / 2


def _split(
    run: TimingRun, probe: ProbeModel, tokenizer: HfTokenizer, samples: Sequence[Sample], progress: StageProgress
) -> _Split:
    whole = needs_timing(samples)
    chosen = [sample for sample, is_whole in zip(samples, whole, strict=True) if is_whole]
    if not is_learnable(chosen):
        raise BadData(f"{run.data} has no complete words of which some end a turn and some do not, in both splits")
    limit = max_positions(probe.base)
    room = None if limit is None else limit - len(probe.probes)
    layouts, _ = lay_out_within(chosen, Template.from_tokenizer(tokenizer), room)
    max_tokens = max(1, int(run.memory_gb * 2**30 / kv_bytes_per_token(probe.prefix_model)))
    ends = torch.tensor([int(sample.ends is True) for sample in chosen])
    weights = torch.tensor(balance(chosen), dtype=torch.float32)
    return _Split(chosen, _hidden(probe, layouts, max_tokens, progress), ends, weights)


@torch.no_grad()
def _hidden(model: ProbeModel, layouts: Sequence[Layout], max_tokens: int, progress: StageProgress) -> Tensor:
    """Final hidden states [N, D] of the last probe token, with at most `max_tokens` tokens of prefixes in memory."""
    found = torch.zeros(len(layouts), model.probes.shape[1])
    for part in shards(layouts, max_tokens):
        prefixes = Prefixes(model.prefix_model, layouts[part.start : part.stop], name="prefixes", progress=progress)
        for indices in prefixes.batches(_BATCH):
            hidden = model.hidden(prefixes.past(indices))[:, -1].float().cpu()
            found[[part.start + index for index in indices]] = hidden
    return found


def _loss(split: _Split, pair: Tensor) -> float:
    """The weighted cross-entropy of a pair [2, D]."""
    losses = functional.cross_entropy(split.hidden @ pair.T, split.ends, reduction="none")
    return float((losses * split.weights).sum() / split.weights.sum())
