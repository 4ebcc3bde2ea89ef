"""Teaches a trained adapter to hear: a projection from what the recogniser's encoder heard to soft tokens.

Base, rows and LoRA stay as they are, and without soft tokens nothing is fed but what was fed before. So decisions on
text are those of the adapter, bit for bit, and one adapter serves both. The LoRA is active at the probe, not at soft
tokens, as in a conversation.

B clips of a batch, N clips, K soft tokens, F features of each, H hidden numbers, D hidden size, S states.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.progress import StageProgress, silent
from duologue.data.samples import Sample, read_samples
from duologue.decisions.metrics import rounded
from duologue.decisions.timing import auc, balance
from duologue.errors import BadData, UsageError, refuse
from duologue.hearing.clips.files import Sounds, read_sounds
from duologue.hearing.projection import SoundProjection
from duologue.models.adapters import Adapter
from duologue.models.card import write_card
from duologue.text.template import Template
from duologue.training.layout import lay_out_within
from duologue.training.probe.prefixes import Past, Prefixes, kv_bytes_per_token, num_tokens
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.runs import Say, fingerprint_of, max_positions
from duologue.training.tensors import state_losses, target_rows
from duologue.types import InputState


@dataclass(frozen=True, slots=True)
class SoundSettings:
    """How the projection is trained."""

    hidden: int = 32  # H: few, since clips are few and voices are many
    lr: float = 2e-3
    weight_decay: float = 0.1
    batch: int = 32
    epochs: int = 10
    patience: int = 3  # epochs without a lower held-out loss
    noise: float = 0.3  # standard deviation of what is added to the standardised features
    seed: int = 0

    def __post_init__(self) -> None:
        refuse(
            [
                (min(self.hidden, self.batch, self.epochs, self.patience) < 1, "counts must be at least 1"),
                (self.lr <= 0, f"lr={self.lr}: must be positive"),
                (self.weight_decay < 0 or self.noise < 0, "weight_decay and noise must not be negative"),
            ]
        )


@dataclass(frozen=True, slots=True)
class SoundRun:
    """What to train on, and what to teach."""

    data: Path  # of `duologue data build-audio`: train.jsonl and dev.jsonl with their sounds
    out: Path
    adapter: Adapter
    settings: SoundSettings = field(default_factory=SoundSettings)
    num_samples: int | None = None  # the first of train.jsonl; None takes all
    memory_gb: float = 8.0  # for the prefixes


class SoundModule(nn.Module):
    """The projection while it is trained: from standardised features [B, K, F] to rows [B, K, D]."""

    def __init__(self, features: Tensor, hidden: int, start: Tensor, unit: float) -> None:
        """`features` [N, K, F] are what it is trained on. Rows start from `start` [D]; they are stored by `unit`."""
        super().__init__()
        count, size = features.shape[1:]
        every = features.reshape(-1, size)
        self.mean, self.spread = every.mean(0), every.std(0).clamp_min(1e-3)
        self.unit = unit
        self.down = nn.Parameter(torch.randn(hidden, size) / size**0.5)
        self.offset = nn.Parameter(torch.zeros(hidden))
        self.up = nn.Parameter(torch.zeros(count, len(start), hidden))
        self.bias = nn.Parameter((start / unit).expand(count, -1).clone())

    def forward(self, features: Tensor, noise: float = 0.0) -> Tensor:
        """Rows [B, K, D] of `features` [B, K, F], with so much `noise` added to them."""
        given = (features - self.mean) / self.spread
        given = given + noise * torch.randn_like(given)
        hidden = torch.tanh(given @ self.down.T + self.offset)
        return (torch.einsum("kdh,bkh->bkd", self.up, hidden) + self.bias) * self.unit

    @torch.no_grad()
    def projection(self) -> SoundProjection:
        """The same as an adapter has it."""
        down = self.down / self.spread
        parts = down, self.offset - down @ self.mean, self.up * self.unit, self.bias * self.unit
        return SoundProjection(*(np.ascontiguousarray(part.detach().numpy(), dtype=np.float32) for part in parts))


@dataclass(frozen=True, slots=True)
class _Clips:
    """Clips of one split, ready to be judged."""

    samples: Sequence[Sample]
    prefixes: Prefixes
    features: Tensor  # [N, K, F]
    targets: Tensor  # [N, S]
    weights: Tensor  # [N]
    ends: Tensor  # [N], 1 where the turn ends
    timing_weights: Tensor  # [N]
    incomplete: int  # the column of that state


def train_sound(
    run: SoundRun,
    model: PreTrainedModel,
    tokenizer: HfTokenizer,
    *,
    progress: StageProgress = silent,
    say: Say = print,
) -> Adapter:
    """Train a projection of sound for `run.adapter`; write and return the adapter with it.

    Raises:
        BadData, UsageError: samples or sounds cannot be read, have other states, or do not fit into memory.
        AdapterMismatch: the adapter belongs to another model.
    """
    run.adapter.check(fingerprint_of(model, tokenizer))
    if run.adapter.rows is None:
        raise UsageError(f"an adapter of kind {run.adapter.kind} has no probe that could learn to hear")
    torch.manual_seed(run.settings.seed)
    probe = ProbeModel.from_adapter(run.adapter, model)
    probe.requires_grad_(False)
    train, dev, recogniser = _read(run, probe, tokenizer, progress)
    say(f"{len(train.samples)} clips, {len(dev.samples)} held out")
    module = SoundModule(train.features, run.settings.hidden, _start(model), probe.unit)
    words_alone = _measured(probe, dev, None)
    say(_line("words alone", words_alone))
    best = _train(run.settings, probe, module, train, dev, progress, say)
    facts = {
        "samples": len(train.samples),
        "recogniser": recogniser,
        "settings": asdict(run.settings),
        "words_alone": words_alone,
        "with_sound": best,
    }
    probe.unload()
    adapter = replace(run.adapter, sound=module.projection(), facts={**run.adapter.facts, "sound": facts})
    adapter.save(run.out)
    write_card(adapter, run.out)
    return adapter


def _start(model: PreTrainedModel) -> Tensor:
    """What soft tokens start from [D]: the mean of all embeddings, which says as little as possible."""
    embed = model.get_input_embeddings()
    every: Tensor = embed(torch.arange(embed.weight.shape[0], device=embed.weight.device))
    return every.detach().float().mean(0).cpu()


def _read(
    run: SoundRun, probe: ProbeModel, tokenizer: HfTokenizer, progress: StageProgress
) -> tuple[_Clips, _Clips, str]:
    """Both splits, and the recogniser that heard them."""
    found: list[tuple[list[Sample], Sounds]] = []
    for split, most in (("train", run.num_samples), ("dev", None)):
        path = run.data / f"{split}.jsonl"
        if not path.exists():
            raise UsageError(f"{path} does not exist; create it with `duologue data build-audio`")
        samples = list(read_samples(path))[:most]
        if not samples:
            raise BadData(f"{path} has no samples")
        found.append((samples, read_sounds(path, len(samples))))
    shapes = [sounds.features.shape[1:] for _, sounds in found]
    if shapes[0] != shapes[1]:
        raise BadData(f"train and dev were heard by different recognisers: features {shapes[0]} and {shapes[1]}")
    made = []
    left = run.memory_gb * 2**30 / kv_bytes_per_token(probe.prefix_model)
    limit = max_positions(probe.base)
    room = None if limit is None else limit - int(probe.probes.shape[0]) - int(shapes[0][0])
    for samples, sounds in found:
        layouts, _ = lay_out_within(samples, Template.from_tokenizer(tokenizer), room)
        left -= num_tokens(layouts)
        if left < 0:
            raise UsageError(
                "the clips do not fit into memory; allow more with --memory-gb, or use fewer with --samples"
            )
        prefixes = Prefixes(probe.prefix_model, layouts, progress=progress)
        made.append(_clips(samples, prefixes, sounds, run.adapter.states))
    return made[0], made[1], found[0][1].recogniser


def _clips(samples: Sequence[Sample], prefixes: Prefixes, sounds: Sounds, states: Sequence[InputState]) -> _Clips:
    for number, sample in enumerate(samples, 1):
        if sample.state not in states:
            raise BadData(f"clip {number} is {sample.state}; this adapter knows {[state.value for state in states]}")
    targets = target_rows(samples, states, 1.0)
    labels = torch.tensor([states.index(sample.state) for sample in samples])
    counts = torch.bincount(labels, minlength=len(states)).clamp_min(1)
    weights = (len(samples) / counts[labels]) ** 0.5
    ends = torch.tensor([int(sample.ends is True) for sample in samples])
    timing_weights = torch.tensor(balance(samples), dtype=torch.float32)
    features = torch.from_numpy(sounds.features)
    column = states.index(InputState.INCOMPLETE)
    return _Clips(samples, prefixes, features, targets, weights / weights.mean(), ends, timing_weights, column)


def _train(
    settings: SoundSettings,
    probe: ProbeModel,
    module: SoundModule,
    train: _Clips,
    dev: _Clips,
    progress: StageProgress,
    say: Say,
) -> dict[str, float | None]:
    """Train `module`, leave the values with the lowest held-out loss in it, and return the figures of these."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    batches = train.prefixes.batches(settings.batch)
    num_steps, step, stale = settings.epochs * len(batches), 0, 0
    best: dict[str, float | None] | None = None
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    for epoch in range(settings.epochs):
        random.Random(f"{settings.seed} {epoch}").shuffle(batches)
        for done, batch in enumerate(batches, 1):
            optimizer.param_groups[0]["lr"] = settings.lr * (1 - step / num_steps)
            rows = module(train.features[batch], settings.noise)
            loss = _loss(_logits(probe, train.prefixes.past(batch), rows), train, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            step += 1
            progress(f"epoch {epoch + 1}: loss {float(loss.detach()):.3f}", done, len(batches))
        figures = _measured(probe, dev, module)
        say(_line(f"epoch {epoch + 1}", figures))
        if best is None or _value(figures) < _value(best):
            best, stale = figures, 0
            kept = {name: value.clone() for name, value in module.state_dict().items()}
        else:
            stale += 1
        if stale >= settings.patience:
            break
    module.load_state_dict(kept)
    assert best is not None, "there is an epoch"
    return best


def _value(figures: dict[str, float | None]) -> float:
    return figures["loss"] or 0.0


def _logits(probe: ProbeModel, past: Past, rows: Tensor | None) -> Tensor:
    """Logits [B, S] or [B, S + 2] at the probe, after soft tokens `rows` [B, K, D] if there are any."""
    fed = (probe.probes * probe.unit).expand(len(past.lengths), -1, -1)
    if rows is not None:
        fed = torch.cat([rows.to(fed.device), fed], 1)
    with _lora_at_probe(probe, 0 if rows is None else rows.shape[1]):
        hidden, _ = probe.prefix_model.run(past, inputs_embeds=fed.to(probe.base.dtype))
    return hidden[:, -1].float() @ torch.cat([*probe.output_rows]).T


@contextmanager
def _lora_at_probe(probe: ProbeModel, num_soft: int) -> Iterator[None]:
    """Switch the LoRA on for all tokens of a pass but the first `num_soft`."""

    def silence(module: Any, args: Any, output: Tensor) -> Tensor:
        """Zero what a first factor [R, in] makes of the soft tokens: output [B, K + P, R]."""
        return functional.pad(output[:, num_soft:], (0, 0, num_soft, 0))

    with ExitStack() as hooks:
        for first, _ in probe.lora_factors:
            hooks.callback(first.register_forward_hook(silence).remove)
        with probe.activated():
            yield


def _loss(logits: Tensor, clips: _Clips, batch: list[int]) -> Tensor:
    """The mean loss [] of a batch: of the states, and of the timing pair where the adapter has one."""
    targets = clips.targets[batch]
    states, timing = logits.cpu().tensor_split([targets.shape[1]], 1)
    loss = (state_losses(states, targets) * clips.weights[batch]).mean()
    if timing.shape[1]:
        losses = functional.cross_entropy(timing, clips.ends[batch], reduction="none")
        loss = loss + 0.5 * (losses * clips.timing_weights[batch]).mean()
    return loss


@torch.no_grad()
def _measured(probe: ProbeModel, clips: _Clips, module: SoundModule | None) -> dict[str, float | None]:
    """The loss, the accuracy, and how well complete and cut clips that may be answered are told apart."""
    num_states = clips.targets.shape[1]
    found = torch.zeros(len(clips.samples), num_states + 2 * (probe.timing is not None))
    for batch in clips.prefixes.batches(64):
        rows = None if module is None else module(clips.features[batch])
        found[batch] = _logits(probe, clips.prefixes.past(batch), rows).cpu()
    p = found[:, :num_states].softmax(-1)
    right = clips.targets.gather(1, p.argmax(1)[:, None])[:, 0] > 0
    incomplete = np.array([sample.state is InputState.INCOMPLETE for sample in clips.samples])
    judged = np.array([sample.state in (InputState.INCOMPLETE, InputState.PROCESS) for sample in clips.samples])
    figures: dict[str, float | None] = {
        "loss": rounded(float(_loss(found, clips, list(range(len(clips.samples)))))),
        "accuracy": rounded(float(right.float().mean())),
        "auc_incomplete": rounded(auc(p.numpy()[judged, clips.incomplete], incomplete[judged])),
    }
    return figures


def _line(what: str, figures: dict[str, float | None]) -> str:
    told = figures["auc_incomplete"]
    return (
        f"{what}: held-out loss {figures['loss']:.4f}, {100 * (figures['accuracy'] or 0):.1f} % right, "
        f"AUC of complete against cut {'–' if told is None else f'{told:.3f}'}"
    )
