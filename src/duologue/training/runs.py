"""What every training run does: read the splits, start the probe, calibrate an adapter, report on it.

N samples, S states.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from duologue.backends.rows import AdapterRows
from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.samples import Sample, read_samples
from duologue.decisions.metrics import adapter_facts
from duologue.decisions.thresholds import Probabilities, calibrate, decide
from duologue.errors import BadData, UsageError
from duologue.models.adapters import ANY_WEIGHTS, Adapter, Fingerprint
from duologue.types import InputState, Token

Say = Callable[[str], None]
"""Receives one line of the report on a run."""

START_WORDS = (" process", " decide", " state", " complete", " answer", " wait", " ignore", " stop", " listening")
"""The probe starts from the mean embedding of the first tokens of these words."""

_NEEDED = (InputState.PROCESS, InputState.IGNORE)
"""Without these two there is nothing to tell apart."""


def read_splits(
    folder: Path, num_samples: int | None = None
) -> tuple[list[Sample], list[Sample], tuple[InputState, ...]]:
    """The first `num_samples` training samples (None: all), the held-out samples, and the states that occur.

    Raises:
        UsageError: a file does not exist.
        BadData: a file cannot be read or is empty; `process` or `ignore` is missing; the splits have different states.
    """
    train, dev = _read(folder / "train.jsonl")[:num_samples], _read(folder / "dev.jsonl")
    present, held_out = ({sample.state for sample in samples} for samples in (train, dev))
    if missing := [state.value for state in _NEEDED if state not in present]:
        raise BadData(f"{folder / 'train.jsonl'} has no sample of {', '.join(missing)} among the first {len(train)}")
    if missing := [state.value for state in InputState if state in present - held_out]:
        raise BadData(f"{folder / 'dev.jsonl'} has no sample of {', '.join(missing)}, but train.jsonl has")
    if unknown := [state.value for state in InputState if state in held_out - present]:
        raise BadData(f"{folder / 'dev.jsonl'} has samples of {', '.join(unknown)}, but train.jsonl has none")
    return train, dev, tuple(state for state in InputState if state in present)


def _read(path: Path) -> list[Sample]:
    if not path.exists():
        raise UsageError(f"{path} does not exist; create it with `duologue data build`")
    samples = list(read_samples(path))
    if not samples:
        raise BadData(f"{path} has no samples")
    return samples


def start_tokens(tokenizer: HfTokenizer) -> list[Token]:
    """Ids whose embeddings the probe starts from."""
    return [tokens[0] for word in START_WORDS if (tokens := tokenizer.encode(word))]


def fingerprint_of(model: PreTrainedModel, tokenizer: HfTokenizer) -> Fingerprint:
    """What an adapter checks before it is used with a model."""
    vocab_size, hidden_size = model.get_input_embeddings().weight.shape
    return Fingerprint.of(
        tokenizer,
        vocab_size=int(vocab_size),
        hidden_size=int(hidden_size),
        num_layers=int(model.config.get_text_config().num_hidden_layers),
    )


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model accepts, in tokens; None where its configuration does not say."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


def adapter_rows(probes: Tensor, states: Tensor) -> AdapterRows:
    """Trained rows, probes [P, D] and states [S, D], as the backends take them."""
    return AdapterRows(*(rows.detach().cpu().numpy().astype(np.float32) for rows in (probes, states)))


def calibrated(adapter: Adapter, samples: Sequence[Sample], p: Probabilities) -> Adapter:
    """`adapter` with thresholds that suit the held-out `samples`, p: [N, S]; its facts say how well it decides."""
    thresholds = calibrate(samples, p, adapter.states)
    held_out = adapter_facts(samples, decide(p, samples, adapter.states, thresholds))
    return replace(adapter, thresholds={ANY_WEIGHTS: thresholds}, facts={**adapter.facts, "dev": held_out})


def count_states(samples: Sequence[Sample]) -> dict[str, int]:
    """Number of samples of each state, in order of occurrence."""
    return dict(Counter(sample.state.value for sample in samples))


def count_sources(samples: Sequence[Sample]) -> dict[str, int]:
    """Number of samples of each source, by name."""
    return dict(sorted(Counter(sample.source for sample in samples).items()))


def describe_splits(train: Sequence[Sample], dev: Sequence[Sample]) -> str:
    """One line for people: sizes and states."""
    states = ", ".join(f"{state} {num}" for state, num in sorted(count_states(train).items()))
    return f"{len(train)} samples to train on, {len(dev)} held out: {states}"


def report_lines(facts: Mapping[str, Any]) -> list[str]:
    """How well an adapter decides on held-out samples, for people."""
    lines = []
    for where in ("idle", "over_an_answer"):
        result = facts["dev"][where]
        recall = ", ".join(f"{state} {_percent(value)}" for state, value in result["recall"].items())
        lines.append(
            f"held out, {where.replace('_', ' ')} (n {result['n']}): recall % {recall}; "
            f"answer F1 {_percent(result['answer_f1'])}, false answers {_percent(result['false_answer_rate'])} %"
        )
    return lines


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
