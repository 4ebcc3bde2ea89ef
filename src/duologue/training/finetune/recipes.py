"""Hyperparameters for fine-tuning the base, and the DUO paper's values for them."""

from dataclasses import dataclass
from typing import Literal

from duologue.errors import UsageError


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
        if (self.steps is None) == (self.epochs is None):
            raise UsageError(f"give either steps or epochs, not {'both' if self.steps else 'none'}")
        counts = ("batch", "accumulation", "steps", "max_length", "lora_rank", "eval_every", "patience")
        values = {name: getattr(self, name) for name in counts}
        if wrong := [f"{name}={value}" for name, value in values.items() if value is not None and value < 1]:
            raise UsageError(f"{', '.join(wrong)}: must be at least 1")
        rates = (self.lr, self.lr if self.rows_lr is None else self.rows_lr, self.max_grad_norm, self.epochs or 1.0)
        if min(rates) <= 0:
            raise UsageError("lr, rows_lr, max_grad_norm and epochs must be positive")
        if not 0 <= self.warmup < 1 or self.response_weight < 0:
            raise UsageError("warmup must be from 0 to less than 1, and response_weight must not be negative")

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
