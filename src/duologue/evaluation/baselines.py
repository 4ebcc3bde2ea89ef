"""Baselines on labelled rows: rules without a model, the base model prompted, and a linear probe on hidden states."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from duologue.data.forms import FUNCTION_WORDS, spoken
from duologue.data.samples import Sample
from duologue.decisions.thresholds import decide
from duologue.errors import MissingDependency, UsageError
from duologue.evaluation.labelled_rows import LabelledRows, check_labels, lay_out
from duologue.evaluation.scoring import score
from duologue.evaluation.states import Judgement
from duologue.models.adapters import PROMPTED, prompted
from duologue.models.catalogue import ModelSource
from duologue.models.model import Model
from duologue.models.opening import Progress
from duologue.text.words import words_of
from duologue.types import InputState

_PROCESS, _INCOMPLETE = InputState.PROCESS, InputState.INCOMPLETE


def majority(sample: Sample) -> InputState:
    """Everything is answered."""
    return _PROCESS


def last_word(sample: Sample) -> InputState:
    """A text that ends in a function word is unfinished; any other is answered."""
    words = words_of(spoken(sample.text))
    return _INCOMPLETE if words and words[-1] in FUNCTION_WORDS else _PROCESS


def punctuation(sample: Sample) -> InputState:
    """A text that ends in a full stop, question mark or exclamation mark is answered; any other is unfinished."""
    return _PROCESS if sample.text.rstrip().rstrip("\"')”’").endswith(tuple(".?!。？！")) else _INCOMPLETE


RULES = {"always process": majority, "last word is a function word": last_word, "punctuation": punctuation}
"""Display name → rule. Rules see the text alone."""


def by_rules(samples: Sequence[Sample]) -> Iterator[tuple[str, Judgement]]:
    """The rules by name, each with its decisions on `samples`."""
    for name, rule in RULES.items():
        yield name, Judgement(samples, [rule(sample) for sample in samples])


def by_prompting(
    rows: LabelledRows, model: Model, *, progress: Progress | None = None
) -> Iterator[tuple[str, Judgement | str]]:
    """The base of `model`, prompted without and with examples; where it cannot be prompted, the reason instead."""
    for name, shots in PROMPTED.items():
        try:
            adapter = prompted(states=model.probe.states, shots=shots)
            probe = adapter.probe_for(model.backend.info.vocab_size, model.template)
            asked = replace(model, adapter=adapter, probe=probe)
            p = score(asked, lay_out(rows, asked), progress=progress)
        except UsageError as error:
            yield name, str(error)
        else:
            yield name, Judgement(rows.samples, decide(p, rows.samples, probe.states), probe.states, p)


def linear_probe(
    rows: LabelledRows, train: LabelledRows, model: Model, source: ModelSource, *, progress: Progress | None = None
) -> Judgement:
    """A linear probe on the hidden states of `model`'s base, trained on `train`.

    PyTorch reads the base again from `source`, which `model` was loaded from.

    Raises:
        BadData: a row does not fit into the context, or has a label that the adapter lacks.
        MissingDependency: PyTorch or transformers are not installed.
    """
    try:
        import torch

        from duologue.backends.torch.loading import read_model
        from duologue.training.probe.linear_probe import fit, hidden_states
    except ImportError as error:
        raise MissingDependency(f"a linear probe needs {error.name}: pip install 'duologue[train]'") from error
    states = model.probe.states
    check_labels(train, states)
    check_labels(rows, states)
    layouts = [*lay_out(train, model), *lay_out(rows, model)]
    base, _ = read_model(source.location, revision=source.revision)

    def show(share: float) -> None:
        if progress is not None:
            progress("hidden states for the linear probe", share)

    hidden = hidden_states(base, layouts, progress=show)  # [train + N, width]
    num = len(train.samples)
    labels = torch.tensor([states.index(sample.state) for sample in train.samples])
    p = fit(hidden[:num], labels, len(states))(hidden[num:])
    return Judgement(rows.samples, decide(p, rows.samples, states), states, p)
