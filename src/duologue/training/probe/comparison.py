"""Compares a trained decider with the prompted one, on the same held-out samples. N samples, S states."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from duologue.core.prompt import Probe
from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample
from duologue.decisions.metrics import DecisionMetrics, rounded
from duologue.decisions.thresholds import Probabilities, decide
from duologue.errors import UsageError
from duologue.models.adapters import Adapter
from duologue.models.prompting import prompted_probe
from duologue.text.template import Template
from duologue.training.layout import Layout
from duologue.training.probe.prefixes import Prefixes, PrefixModel
from duologue.training.runs import max_positions

_NUM_COMPARED = 200  # samples: each costs a pass over the whole prompt
_BATCH = 16  # prompts in a pass


def compare(
    adapter: Adapter,
    model: PrefixModel,
    template: Template,
    samples: Sequence[Sample],
    layouts: Sequence[Layout],
    p: Probabilities,
    *,
    progress: StageProgress = silent,
) -> Mapping[str, Any] | None:
    """How well `adapter`, with probabilities p [N, S], and the prompted `model` decide on up to 200 of the `samples`.

    None if the model cannot be prompted: no single tokens for the answers, or too short a context.
    """
    try:
        probe = prompted_probe(template, adapter.states)
    except UsageError:
        return None
    limit = max_positions(model.model)
    fitting = [i for i, layout in enumerate(layouts) if limit is None or layout.length + len(probe.tokens) <= limit]
    rows = fitting[:: max(1, len(fitting) // _NUM_COMPARED)][:_NUM_COMPARED]
    if not rows:
        return None
    chosen = [samples[i] for i in rows]
    prompted = _prompted(model, probe, [layouts[i] for i in rows], progress)
    return {
        "n": len(rows),
        "adapter": _figures(chosen, decide(p[rows], chosen, adapter.states, adapter.thresholds_for("any"))),
        "prompted": _figures(chosen, decide(prompted, chosen, adapter.states)),
    }


def _prompted(model: PrefixModel, probe: Probe, layouts: Sequence[Layout], progress: StageProgress) -> Probabilities:
    """Probabilities [N, S] of the answers to the prompt."""
    prefixes = Prefixes(model, layouts)
    tokens, watch = torch.tensor(probe.tokens), list(probe.watch)
    head: Any = model.model.get_output_embeddings()
    bias: Tensor | None = getattr(head, "bias", None)
    found = np.zeros((len(layouts), len(watch)), dtype=np.float32)
    done = 0
    for indices in prefixes.batches(_BATCH):
        with torch.no_grad():
            hidden, _ = model.run(prefixes.past(indices), input_ids=tokens.expand(len(indices), -1))
            logits = functional.linear(hidden[:, -1], head.weight[watch], None if bias is None else bias[watch])
        found[indices] = logits.float().softmax(-1).cpu().numpy()
        done += len(indices)
        progress("comparing with the prompted model", done, len(layouts))
    return found


def _figures(samples: Sequence[Sample], decisions: Any) -> dict[str, float | None]:
    result = DecisionMetrics.of(samples, decisions)
    return {
        "mean_recall": rounded(result.mean_recall),
        "answer_f1": rounded(result.answer.f1),
        "false_answer_rate": rounded(result.false_answers),
    }
