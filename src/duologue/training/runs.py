"""What every training run needs: its splits, the start of its probe, its files, and the calibration of its adapter.

The files are a log of the steps, a picture of the losses, and a checkpoint to continue a killed run from. N samples,
S states.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from duologue.backends.rows import AdapterRows
from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.jsonl import complete_lines, read_rows
from duologue.data.samples import Sample, read_samples
from duologue.decisions.calibration import chance_loss, expected_calibration_error, mean_loss, reliability
from duologue.decisions.cascade import cascade_facts, find_limit
from duologue.decisions.metrics import adapter_facts, rounded
from duologue.decisions.thresholds import Probabilities, accepted, calibrate, decide
from duologue.errors import BadData, MissingDependency, UsageError
from duologue.models.adapters import ANY_WEIGHTS, Adapter, Fingerprint
from duologue.pictures import new_figure
from duologue.types import InputState, Token

Say = Callable[[str], None]
"""Receives one line of the report on a run."""

START_WORDS = (" process", " decide", " state", " complete", " answer", " wait", " ignore", " stop", " listening")
"""The probe starts from the mean embedding of the first tokens of these words."""

_CHECKPOINT = "checkpoint.pt"
_NEEDED = frozenset((InputState.PROCESS, InputState.IGNORE))
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
    for name, wrong, complaint in (
        ("train.jsonl", _NEEDED - present, f"has no sample of %s among the first {len(train)}"),
        ("dev.jsonl", present - held_out, "has no sample of %s, but train.jsonl has"),
        ("dev.jsonl", held_out - present, "has samples of %s, but train.jsonl has none"),
    ):
        if wrong:
            raise BadData(f"{folder / name} {complaint % ', '.join(state for state in InputState if state in wrong)}")
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


def adapter_rows(*rows: Tensor) -> AdapterRows:
    """Trained rows as the backends take them: probes [P, D], states [S, D] and perhaps timing [2, D]."""
    return AdapterRows(*(matrix.detach().cpu().numpy().astype(np.float32) for matrix in rows))


def calibrated(adapter: Adapter, samples: Sequence[Sample], p: Probabilities) -> Adapter:
    """`adapter` with thresholds that suit the held-out `samples`, p: [N, S]; its facts say how well it decides."""
    thresholds = calibrate(samples, p, adapter.states)
    held_out = adapter_facts(samples, decide(p, samples, adapter.states, thresholds))
    right, error = (
        accepted(samples, adapter.states),
        expected_calibration_error(reliability(samples, p, adapter.states)),
    )
    held_out["all"] |= {
        "loss": rounded(mean_loss(p, right)),
        "chance": rounded(chance_loss(right)),
        "ece": rounded(error),
    }
    return replace(adapter, thresholds={ANY_WEIGHTS: thresholds}, facts={**adapter.facts, "dev": held_out})


def with_cascade(
    adapter: Adapter, rows: Adapter, samples: Sequence[Sample], first: Probabilities, second: Probabilities
) -> Adapter:
    """`adapter` with `rows` as its cascade, and a limit that suits the held-out `samples`; its facts say what it saves.

    Without the cascade if the rows are never sure enough. first, second: [N, S], by the rows and by the adapter.
    """
    thresholds = adapter.thresholds_for(ANY_WEIGHTS)
    limit = find_limit(samples, first, second, adapter.states, thresholds)
    found = cascade_facts(samples, first, second, adapter.states, thresholds, limit)
    is_useful = found["apart"] < 1
    return replace(
        adapter,
        cascade=rows if is_useful else None,
        cascade_limit=limit if is_useful else None,
        facts={**adapter.facts, "cascade": {"limit": limit, **found}},
    )


def count_states(samples: Sequence[Sample]) -> dict[str, int]:
    """Number of samples of each state, in order of occurrence."""
    return dict(Counter(sample.state.value for sample in samples))


def count_sources(samples: Sequence[Sample]) -> dict[str, int]:
    """Number of samples of each source, by name."""
    return dict(sorted(Counter(sample.source for sample in samples).items()))


def describe_splits(train: Sequence[Sample], dev: Sequence[Sample]) -> str:
    """One line for people: sizes and states."""
    states = ", ".join(f"{state} {num}" for state, num in sorted(count_states(train).items()))
    in_dialogue, speaking = sum(bool(sample.context) for sample in train), sum(sample.speaking for sample in train)
    return (
        f"{len(train)} samples to train on, {len(dev)} held out: {states}; {in_dialogue} in a dialogue, {speaking} of "
        "them over a running answer"
    )


def report_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """How well an adapter decides on held-out samples, for people."""
    for where in ("idle", "over_an_answer"):
        result = facts["dev"][where]
        recall = ", ".join(f"{state} {_percent(value)}" for state, value in result["recall"].items())
        yield (
            f"held out, {where.replace('_', ' ')} (n {result['n']}): recall % {recall}; "
            f"answer F1 {_percent(result['answer_f1'])}, false answers {_percent(result['false_answer_rate'])} %"
        )
    every = facts["dev"]["all"]
    yield f"held out, loss {every['loss']:.3f} ({every['chance']:.3f} by chance), ECE {_percent(every['ece'])} %"
    if (compared := facts.get("compared")) is not None:
        ours, theirs = compared["adapter"], compared["prompted"]
        yield (
            f"held out (n {compared['n']}): mean recall {_percent(ours['mean_recall'])} %, "
            f"of the prompted model {_percent(theirs['mean_recall'])} %"
        )
    if (cascade := facts.get("cascade")) is not None:
        yield _cascade_line(cascade)
    if (timing := facts.get("timing")) is not None:
        yield f"held out, timing (n {timing['n']}): AUC {_percent(timing['auc'])} %"
    if (sound := facts.get("sound")) is not None:
        before, after = sound["words_alone"], sound["with_sound"]
        yield (
            f"held-out clips: AUC of complete against cut {_percent(before['auc_incomplete'])} % by words alone, "
            f"{_percent(after['auc_incomplete'])} % with sound; loss {before['loss']:.3f} and {after['loss']:.3f}"
        )


def _cascade_line(facts: Mapping[str, Any]) -> str:
    if facts["apart"] == 1:
        return "held out, cascade: its rows are never sure enough, so the adapter has none"
    parts = (
        f"{where.replace('_', ' ')} {_percent(facts[where]['apart'])} %, answer F1 "
        f"{_percent(facts[where]['answer_f1_cascade'])} instead of {_percent(facts[where]['answer_f1_lora'])}"
        for where in ("idle", "over_an_answer")
    )
    return (
        f"held out, cascade (limit {facts['limit']:g}): {_percent(facts['apart'])} % of decisions take a pass of their "
        f"own on llama.cpp; {'; '.join(parts)}"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


_CURVES = {  # field of the log: label, style
    "loss": ("training loss", "C0-"),
    "dev_loss": ("held-out loss", "C1o-"),
    "dev_accuracy": ("held-out accuracy", "C2s--"),
}


class Validated(Protocol):
    """A dataclass that says how good a model is after some step."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def dev_loss(self) -> float:
        """The held-out loss."""


V = TypeVar("V", bound=Validated)


@final
class RunFolder(Generic[V]):
    """Progress, log, checkpoint and best weights of a run. In distributed runs one process writes and all of them read.

    The training loop counts `step`; it logs each step and records each validation.
    """

    def __init__(
        self,
        log: Path,
        made_with: Mapping[str, Any],
        trained: Mapping[str, Parameter],
        optimizer: Any,
        validation: Callable[..., V],
        *,
        keeps_best: bool = True,
        is_writer: bool = True,
    ) -> None:
        """Continue from the checkpoint that a killed run left beside `log`, or start a new run with an empty log.

        Args:
            made_with: settings and data that must be those of the killed run.
            trained: what is trained, by name; restored together with the state of `optimizer`.
            validation: makes a validation from its fields.
            keeps_best: whether `restore_best` will be called.

        Raises:
            UsageError: the checkpoint belongs to another run.
        """
        self._log, self._checkpoint, self._best = log, log.with_name(_CHECKPOINT), log.with_name("best.pt")
        self._made_with = {**made_with, "format of checkpoints": 2}
        self._trained, self._optimizer = trained, optimizer
        self._keeps_best, self._is_writer = keeps_best, is_writer
        self.history: list[V] = []
        self.step = 0
        self._began = time.monotonic()
        if self._checkpoint.exists():
            self._resume(validation)
        elif is_writer:
            log.unlink(missing_ok=True)

    @property
    def seconds(self) -> float:
        """Duration of the run so far, including the processes that it continues."""
        return time.monotonic() - self._began

    @property
    def num_stale(self) -> int:
        """How many validations have followed the best one, which is the first minimum of the held-out loss."""
        losses = [validation.dev_loss for validation in self.history]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def log(self, **row: Any) -> None:
        """Append a line to the log."""
        if self._is_writer:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def record(self, validation: V) -> None:
        """Log a validation, and write the checkpoint and the weights, if they are the best.

        Raises:
            UsageError: a file cannot be written.
        """
        self.history.append(validation)
        # without seconds, so that equal runs write equal logs
        self.log(**{name: figure for name, figure in asdict(validation).items() if name != "seconds"})
        if not self._is_writer:
            return
        weights = {name: parameter.detach() for name, parameter in self._trained.items()}
        if self._keeps_best and self.num_stale == 0:
            _save(self._best, weights)
        _save(
            self._checkpoint,
            {
                "made_with": self._made_with,
                "step": self.step,
                "weights": weights,
                "optimizer": self._optimizer.state_dict(),
                "history": [asdict(past) for past in self.history],
                "seconds": self.seconds,
            },
        )

    def restore_best(self) -> None:
        """Set what is trained to the weights of the best validation, if there was one and they are kept."""
        if self._keeps_best and self._best.exists():
            self._restore(torch.load(self._best, weights_only=True, map_location="cpu"))

    def finish(self, picture: Path, say: Callable[[str], None]) -> None:
        """Plot the log, and remove what only an unfinished run needs.

        A missing library must not lose a trained adapter, so `say` only reports why there is no plot.
        """
        try:
            plot(self._log, picture)
        except MissingDependency as error:
            say(str(error))
        self.discard()

    def discard(self) -> None:
        """Remove what a run needs to continue."""
        for path in (self._checkpoint, self._best):
            path.unlink(missing_ok=True)

    def _resume(self, validation: Callable[..., V]) -> None:
        """Restore the state of the checkpoint, and drop log lines of later steps, which will be repeated."""
        state = torch.load(self._checkpoint, weights_only=True, map_location="cpu")
        if different := [name for name, value in self._made_with.items() if state["made_with"].get(name) != value]:
            raise UsageError(
                f"{self._checkpoint} belongs to a run with another {', '.join(different)}; "
                "use the same settings to continue it, or another --out to start anew"
            )
        self._restore(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.history = [validation(**row) for row in state["history"]]
        self.step = state["step"]
        self._began -= state["seconds"]
        if self._is_writer:
            lines = complete_lines(self._log, b'{"step": ')
            self._log.write_bytes(b"".join([line for line in lines if json.loads(line)["step"] <= self.step]))

    @torch.no_grad()
    def _restore(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(weights[name])


def is_unfinished(folder: Path) -> bool:
    """Whether `folder` has a checkpoint of a run that was killed."""
    return (folder / _CHECKPOINT).exists()


def setting_of_checkpoint(folder: Path, name: str) -> Any:
    """What an unfinished run in `folder` was `made_with`; None without such a run or such a setting."""
    path = folder / _CHECKPOINT
    if not path.exists():
        return None
    return torch.load(path, weights_only=True, map_location="cpu")["made_with"].get(name)


def _save(path: Path, state: Any) -> None:
    """Replace `path` with `state` atomically: a kill during the write leaves the old file intact."""
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises either when the disk is full
        raise UsageError(f"cannot write {path}: {error}; free some space and repeat the command") from error


def plot(log: Path, out: Path) -> None:
    """Draw training loss, held-out loss and held-out accuracy over the steps into the PNG file `out`.

    Each line of `log` is a JSON object with `step` and any of `loss`, `dev_loss` and `dev_accuracy` (0 to 1).

    Raises:
        BadData: the log cannot be read, or has nothing to draw.
        MissingDependency: matplotlib is not installed.
    """
    curves: dict[str, list[tuple[float, float]]] = {}  # the points (step, value) of each curve
    for number, row in read_rows(log):
        for name in _CURVES.keys() & row.keys():
            try:
                curves.setdefault(name, []).append((float(row["step"]), float(row[name])))
            except (KeyError, TypeError, ValueError):
                raise BadData(f"{log}, line {number}: expected numbers for step and {name}, got {row}") from None
    if not curves:
        raise BadData(f"{log} has no line with {', '.join(_CURVES)}; nothing to draw")
    figure = new_figure(7.0, 4.0)
    losses = figure.subplots()
    losses.set(xlabel="step", ylabel="loss")
    losses.locator_params(axis="x", integer=True)
    accuracies = losses.twinx()
    accuracies.set(ylabel="accuracy", ylim=(0, 1))
    drawn = []
    for name, (label, style) in _CURVES.items():
        if name in curves:
            axes = accuracies if name == "dev_accuracy" else losses
            drawn += axes.plot(*zip(*curves[name], strict=True), style, markersize=3, linewidth=1, label=label)
    losses.legend(handles=drawn, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=len(drawn), frameon=False)
    figure.savefig(out, dpi=150, format="png")
