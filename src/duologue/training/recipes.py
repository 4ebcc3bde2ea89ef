"""Ways to train what makes a model duplex, by name: around a frozen base, and with the base."""

from dataclasses import dataclass, field, replace
from typing import Literal

from duologue.errors import UsageError
from duologue.training.probe.loop import Settings
from duologue.training.probe.probe_model import LoraShape


@dataclass(frozen=True, slots=True)
class ProbeRecipe:
    """A frozen base, with rows around it and perhaps a LoRA that is active at the probe alone."""

    num_probes: int = 1
    lora: LoraShape | None = None
    settings: Settings = field(default_factory=Settings)
    looks: int | None = None
    """At samples, in all: what has many of them is seen less often than `settings.epochs`, once at least."""

    def __post_init__(self) -> None:
        if self.num_probes < 1:
            raise UsageError(f"a probe needs at least one token, got {self.num_probes}")

    def settings_for(self, num_samples: int) -> Settings:
        """The settings, with the epochs that suit so many samples."""
        if self.looks is None:
            return self.settings
        return replace(self.settings, epochs=min(self.settings.epochs, max(1, round(self.looks / num_samples))))

    @property
    def kind(self) -> str:
        """Of the adapter that comes out."""
        return "rows" if self.lora is None else "alora"


PROBE_RECIPES = {
    "rows": ProbeRecipe(settings=Settings(epochs=7, batch=48, lr=1.6e-2)),
    "alora": ProbeRecipe(lora=LoraShape(dropout=0.05), settings=Settings(epochs=3, lora_lr=3e-3), looks=112_000),
}


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """How the weights of a model are trained for states and responses.

    A step takes `batch` × `accumulation` samples on each process, as if they had been one batch.
    """

    kind: Literal["full", "lora"]
    """full: every weight, cross-entropy on the response. lora: low-rank additions to all linear layers, KL divergence
    from what the model without them would say there."""
    lr: float
    """Largest learning rate, of AdamW."""
    batch: int
    """Samples in one pass of one process."""
    accumulation: int = 1
    """Passes before a step."""
    steps: int | None = None
    """Steps in all; either this or `epochs`."""
    epochs: float | None = None
    """Times every sample is seen."""
    schedule: Literal["constant", "linear"] = "constant"
    """linear: down to nothing at the last step."""
    warmup: float = 0.0
    """Share of the steps in which the rate grows from nothing."""
    rows_lr: float | None = None
    """Rate of the added rows (probe and states); None: as the rest."""
    max_length: int = 512
    """Tokens of a sequence; longer ones lose their oldest turns."""
    response_weight: float = 1.0
    """What the loss of a response token counts beside that of a state; 0 trains the states alone."""
    accepted_weight: float = 0.4
    """What the probability of a state that would be right too counts."""
    lora_rank: int = 32
    lora_alpha: int = 64
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    precision: Literal["bf16", "f32"] = "bf16"
    """bf16: passes compute in bfloat16 while the weights that are trained stay float32; the result is written so."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    eval_every: int = 100
    """Steps between two looks at the held-out samples; each writes a checkpoint."""
    patience: int | None = None
    """Looks without a better loss before it ends with the best weights; None: all steps, and the last weights."""
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise UsageError(f"give either steps or epochs, not {'both' if self.steps else 'none'}")
        counts = {
            "batch": self.batch,
            "accumulation": self.accumulation,
            "steps": 1 if self.steps is None else self.steps,
            "max_length": self.max_length,
            "lora_rank": self.lora_rank,
            "eval_every": self.eval_every,
            "patience": 1 if self.patience is None else self.patience,
        }
        if wrong := [f"{name}={count}" for name, count in counts.items() if count < 1]:
            raise UsageError(f"{', '.join(wrong)}: must be at least 1")
        rates = (self.lr, self.lr if self.rows_lr is None else self.rows_lr, self.max_grad_norm, self.epochs or 1.0)
        if not all(rate > 0 for rate in rates):
            raise UsageError("lr, rows_lr, max_grad_norm and epochs must be positive")
        if not 0 <= self.warmup < 1 or self.response_weight < 0:
            raise UsageError("warmup is a share of the steps (0 to 1), and response_weight is not negative")

    def rate(self, step: int, num_steps: int) -> float:
        """Share of `lr` at `step`, counted from 0."""
        warmup = int(self.warmup * num_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 1.0 if self.schedule == "constant" else (num_steps - step) / (num_steps - warmup)


FINETUNE_RECIPES: dict[str, FinetuneSettings] = {
    "full": FinetuneSettings(kind="full", lr=8e-6, batch=5, steps=2000, max_length=512),
    "lora": FinetuneSettings(kind="lora", lr=1e-4, batch=2, accumulation=8, epochs=6, schedule="linear", warmup=0.1),
}
"""The hyperparameters of the paper's text model (full) and audio model (lora), where it gives them.
Change some with `dataclasses.replace`."""
