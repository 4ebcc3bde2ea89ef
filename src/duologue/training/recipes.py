"""Hyperparameters of all ways of training, and named sets of them."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from duologue.errors import refuse

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
        refuse(
            [
                (
                    self.rank < 1 or self.alpha <= 0 or not self.targets or self.first_layer < 0,
                    "a LoRA needs a rank of at least 1, a positive alpha, and at least one target layer",
                ),
                (not 0 <= self.dropout < 1, f"dropout is a share from 0 to less than 1, got {self.dropout}"),
            ]
        )


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """Hyperparameters for rows, and for the LoRA that may come with them.

    Learning rates are those of the default model; `training.probe.rates` scales them to others.
    """

    epochs: int = 8  # at most
    batch: int = 64
    lr: float = 4e-3  # of the probe's rows, in units of the embeddings' standard deviation; half of it for state rows
    lora_lr: float = 1e-3
    warmup: float = 0.05  # share of the steps; a cosine down to a twentieth follows
    weight_decay: float = 0.0
    accepted_weight: float = 0.4  # weight of an accepted state's probability beside the label's
    timing_weight: float = 0.5  # of the loss of the timing pair beside that of the state, on samples that know it
    balance: float = 0.5  # 0: all samples have the same weight; 1: all states have the same weight
    teacher_weight: float = 0.7  # weight of a teacher's probabilities, if there is one; the labels have the rest
    patience: int = 3  # epochs without a lower held-out loss before training stops; only if all prefixes fit at once
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (self.epochs, self.batch, self.patience, self.lr, self.lora_lr)
        refuse([(min(numbers) <= 0, "epochs, batch, patience and learning rates must be positive")])

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
    cascade: ProbeSettings | None = None
    """How the rows of a cascade are trained in the steps of the LoRA, which teaches them; None: there are none."""

    def __post_init__(self) -> None:
        refuse(
            [
                (self.num_probes < 1, f"a probe needs at least one token, got {self.num_probes}"),
                (self.cascade is not None and self.lora is None, "a cascade needs a LoRA that is asked after its rows"),
            ]
        )

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


_ROWS = ProbeSettings(epochs=7, batch=48, lr=1.6e-2)

PROBE_RECIPES = {
    "rows": ProbeRecipe(settings=_ROWS),
    "alora": ProbeRecipe(
        lora=LoraShape(dropout=0.05),
        settings=ProbeSettings(epochs=3, lora_lr=3e-3),
        presentations=112_000,
        cascade=_ROWS,
    ),
}


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """How the weights of a model are trained for states and responses.

    A step takes `batch` × `accumulation` samples on each process, as if they were one batch.
    """

    kind: Literal["full", "lora"]
    """full: every weight, with cross-entropy on the response. lora: low-rank updates of all linear layers, with the KL
    divergence from the responses of the unchanged base."""
    lr: float
    """Peak learning rate of AdamW."""
    batch: int
    """Samples per forward pass and process."""
    accumulation: int = 1
    """Forward passes per step."""
    steps: int | None = None
    """Total number of steps; give either this or `epochs`."""
    epochs: float | None = None
    """Passes over the samples."""
    schedule: Literal["constant", "linear"] = "constant"
    """linear: decays to zero at the last step."""
    warmup: float = 0.0
    """Share of the steps in which the rate rises linearly from zero."""
    rows_lr: float | None = None
    """Learning rate of the added rows (probe and states); None: `lr`."""
    max_length: int = 512
    """Tokens in a sequence; longer ones lose their oldest turns."""
    response_weight: float = 1.0
    """Weight of a response token's loss beside that of a state; 0 trains the states only."""
    accepted_weight: float = 0.4
    """Weight of an accepted state's probability beside the label's."""
    lora_rank: int = 32
    lora_alpha: int = 64
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Larger gradients are scaled down to this norm."""
    precision: Literal["bf16", "f32"] = "bf16"
    """bf16: passes compute in bfloat16, trained weights stay in float32, and the result is saved in bfloat16."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of storing them: less memory, a third more time."""
    eval_every: int = 100
    """Steps between two validations on the held-out samples; each writes a checkpoint."""
    patience: int | None = None
    """Validations without a lower loss before training stops with the best weights; None: all steps, last weights."""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("batch", "accumulation", "steps", "max_length", "lora_rank", "eval_every", "patience")
        rates = ("lr", "rows_lr", "max_grad_norm", "epochs")
        given = {name: value for name in (*counts, *rates) if (value := getattr(self, name)) is not None}
        refuse(
            [
                ("steps" in given and "epochs" in given, "give either steps or epochs, not both"),
                ("steps" not in given and "epochs" not in given, "give either steps or epochs, not none"),
                *((given.get(name, 1) < 1, f"{name}={given.get(name)}: must be at least 1") for name in counts),
                *((given.get(name, 1) <= 0, f"{name}={given.get(name)}: must be positive") for name in rates),
                (not 0 <= self.warmup < 1, f"warmup={self.warmup}: must be from 0 to less than 1"),
                (self.response_weight < 0, f"response_weight={self.response_weight}: must not be negative"),
            ]
        )

    def rate(self, step: int, num_steps: int) -> float:
        """The learning rate at `step`, counted from 0, as a share of `lr`."""
        warmup = int(self.warmup * num_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 1.0 if self.schedule == "constant" else (num_steps - step) / (num_steps - warmup)


FINETUNE_RECIPES: dict[str, FinetuneSettings] = {
    "full": FinetuneSettings(kind="full", lr=8e-6, batch=5, steps=2000, max_length=512),
    "lora": FinetuneSettings(kind="lora", lr=1e-4, batch=2, accumulation=8, epochs=6, schedule="linear", warmup=0.1),
}
"""The hyperparameters of the paper's text model (full) and audio model (lora), as far as it gives them.
Change some with `dataclasses.replace`."""

TDM_RECIPES: dict[str, FinetuneSettings] = {
    "full": FINETUNE_RECIPES["full"],
    "lora": FinetuneSettings(kind="lora", lr=5e-4, batch=5, steps=2000, schedule="linear", warmup=0.1),
}
"""Time division with the paper's small budget: 10,000 samples, 2,000 steps of five, and for `full` its rate."""

TDM_SAMPLES = 10_000
