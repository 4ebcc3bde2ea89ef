"""Hyperparameters for training around a frozen base, and named sets of them."""

import math
from dataclasses import dataclass, field, replace

from duologue.errors import UsageError

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Names of the linear layers in most architectures."""


@dataclass(frozen=True, slots=True)
class LoraShape:
    """Which linear layers get a LoRA, and of what size."""

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = LINEAR
    first_layer: int = 0  # lower layers get none
    dropout: float = 0.0  # share of a LoRA layer's input that a training step drops

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not self.targets or self.first_layer < 0:
            raise UsageError("a LoRA needs a rank of at least 1, a positive alpha, and at least one target layer")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is a share from 0 to less than 1, got {self.dropout}")


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """Hyperparameters for rows, and for the LoRA that may come with them."""

    epochs: int = 8  # at most
    batch: int = 64
    lr: float = 4e-3  # of the probe's rows, in units of the embeddings' standard deviation; half of it for state rows
    lora_lr: float = 1e-3
    warmup: float = 0.05  # share of the steps; a cosine down to a twentieth follows
    weight_decay: float = 0.0
    accepted_weight: float = 0.4  # weight of an accepted state's probability beside the label's
    balance: float = 0.5  # 0: all samples have the same weight; 1: all states have the same weight
    teacher_weight: float = 0.7  # weight of a teacher's probabilities, if there is one; the labels have the rest
    patience: int = 3  # epochs without a lower held-out loss before training stops
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.patience) < 1 or min(self.lr, self.lora_lr) <= 0:
            raise UsageError("epochs, batch, patience and learning rates must be positive")

    def rate(self, step: int, num_steps: int) -> float:
        """The learning rates at `step`, counted from 0, as a share of their peaks."""
        warmup = max(1, int(num_steps * self.warmup))
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, num_steps - warmup))
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, slots=True)
class ProbeRecipe:
    """A frozen base with rows, and perhaps a LoRA that is active at the probe only."""

    num_probes: int = 1
    lora: LoraShape | None = None
    settings: ProbeSettings = field(default_factory=ProbeSettings)
    presentations: int | None = None
    """Most sample presentations of a run. A large set gets fewer epochs than `settings.epochs`, but at least one."""

    def __post_init__(self) -> None:
        if self.num_probes < 1:
            raise UsageError(f"a probe needs at least one token, got {self.num_probes}")

    def settings_for(self, num_samples: int) -> ProbeSettings:
        """The settings, with the number of epochs that suits `num_samples`."""
        if self.presentations is None:
            return self.settings
        epochs = max(1, round(self.presentations / num_samples))
        return replace(self.settings, epochs=min(self.settings.epochs, epochs))

    @property
    def kind(self) -> str:
        """The kind of adapter that this recipe trains."""
        return "rows" if self.lora is None else "alora"


PROBE_RECIPES = {
    "rows": ProbeRecipe(settings=ProbeSettings(epochs=7, batch=48, lr=1.6e-2)),
    "alora": ProbeRecipe(
        lora=LoraShape(dropout=0.05), settings=ProbeSettings(epochs=3, lora_lr=3e-3), presentations=112_000
    ),
}
