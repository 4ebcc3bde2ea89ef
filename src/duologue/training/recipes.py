"""Ways to train what makes a model duplex, by name."""

from dataclasses import dataclass, field

from duologue.errors import UsageError
from duologue.training.loop import Settings
from duologue.training.probe_model import LoraShape


@dataclass(frozen=True, slots=True)
class ProbeRecipe:
    """A frozen base, with rows around it and perhaps a LoRA that is active at the probe alone."""

    num_probes: int = 1
    lora: LoraShape | None = None
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if self.num_probes < 1:
            raise UsageError(f"a probe needs at least one token, got {self.num_probes}")

    @property
    def kind(self) -> str:
        """Of the adapter that comes out."""
        return "rows" if self.lora is None else "alora"


PROBE_RECIPES = {
    "rows": ProbeRecipe(settings=Settings(epochs=8)),
    "alora": ProbeRecipe(lora=LoraShape(), settings=Settings(epochs=4)),
}
