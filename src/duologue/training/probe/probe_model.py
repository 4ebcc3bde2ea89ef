"""What is trained around a frozen base: rows of the probe and the states, and for `alora` a LoRA at the probe alone.

B samples, P probe tokens, D hidden size, S states. What comes before the probe is cached (`prefixes`), so that only the
probe's tokens pass through the model: a LoRA that is switched on for them is an activated LoRA, and the KV of
everything else stays the base's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from duologue.backends.lora import Factors, Lora
from duologue.backends.rows import Rows
from duologue.errors import UsageError
from duologue.models.adapters import Adapter
from duologue.training.probe.prefix_attention import Past, PrefixModel
from duologue.types import InputState

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Names of the linear layers that most architectures have."""


@dataclass(frozen=True, slots=True)
class LoraShape:
    """Which linear layers get how much."""

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = LINEAR
    first_layer: int = 0  # layers below stay without
    dropout: float = 0.0  # share of what goes into a LoRA layer that a step leaves out

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not self.targets or self.first_layer < 0:
            raise UsageError("a LoRA needs a rank of at least 1, a positive alpha, and layers to put it in")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is a share from 0 to less than 1, got {self.dropout}")


class ProbeModel(nn.Module):
    """A frozen base with trainable rows and perhaps a LoRA: prefixes in, logits of the states out."""

    def __init__(
        self,
        base: PreTrainedModel,
        states: Sequence[InputState],
        start: Sequence[int],
        *,
        num_probes: int = 1,
        lora: LoraShape | None = None,
    ) -> None:
        """`start` are ids whose mean embedding the probe starts from; several probes start from one id each."""
        super().__init__()
        self.base = base.requires_grad_(False).eval()
        embedding = base.get_input_embeddings().weight.detach().float()
        chosen = embedding[list(start)]
        self.unit = float(embedding.std())  # the probe is kept in this unit, so that one learning rate fits all models
        rows = chosen.mean(0, keepdim=True) if num_probes == 1 else chosen[torch.arange(num_probes) % len(chosen)]
        self.probes = nn.Parameter(rows / self.unit)  # [P, D]
        first = torch.randn(len(states), embedding.shape[1]) * 0.01  # drawn on the CPU: the same on every device
        self.states = nn.Parameter(first.to(embedding.device))  # [S, D]
        self._layers: dict[str, LoraLayer] = {}
        if lora is not None:
            self._inject(lora)
        self.prefix_model = PrefixModel(base)

    @property
    def lora_parameters(self) -> list[nn.Parameter]:
        """Of the LoRA, in a fixed order; empty without one."""
        return [cast(nn.Parameter, part.weight) for layer in self._layers.values() for part in _parts(layer)]

    def train(self, mode: bool = True) -> "ProbeModel":
        """Whether the LoRA drops out what it is to drop out. The base never does."""
        for layer in self._layers.values():
            layer.lora_dropout.train(mode)
        self.training = mode
        return self

    def forward(self, past: Past) -> Tensor:
        """Logits [B, S] at the last probe token after each prefix."""
        return self.hidden(past)[:, -1].float() @ self.states.T

    def hidden(self, past: Past) -> Tensor:
        """Final hidden states [B, P, D] of the probe tokens after each prefix."""
        fed = (self.probes * self.unit).to(self.base.dtype).expand(len(past.lengths), -1, -1)
        hidden, _ = self.prefix_model.run(past, inputs_embeds=fed)
        return hidden

    @contextmanager
    def base_alone(self) -> Iterator[None]:
        """The base as it is, for what comes before a probe."""
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)
            for parameter in self.lora_parameters:
                parameter.requires_grad_(True)

    def rows(self) -> Rows:
        """The rows as the backends take them."""
        return Rows(
            probes=(self.probes * self.unit).detach().cpu().numpy().astype(np.float32),
            states=self.states.detach().cpu().numpy().astype(np.float32),
        )

    def lora(self) -> Lora | None:
        """The LoRA as the backends take it."""
        if not self._layers:
            return None
        layers = {
            path: Factors(*(part.weight.detach().cpu().numpy().astype(np.float16) for part in _parts(layer)))
            for path, layer in self._layers.items()
        }
        return Lora(layers, float(next(iter(self._layers.values())).scaling["default"]))

    def cool(self, temperature: float) -> None:
        """Divide the logits of the states by `temperature`, for good."""
        with torch.no_grad():
            self.states.div_(temperature)

    def set_adapter(self, rows: Rows, lora: Lora | None) -> None:
        """Take over what was trained before.

        Raises:
            UsageError: the LoRA has other layers or another rank.
        """
        ours = self._layers
        theirs = {} if lora is None else dict(lora.layers)
        if ours.keys() != theirs.keys():
            raise UsageError("the adapter to begin from has a LoRA in other layers than this run")
        values = [torch.from_numpy(rows.probes) / self.unit, torch.from_numpy(rows.states)]
        for path in ours:
            values += [
                torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in (theirs[path].a, theirs[path].b)
            ]
        if [v.shape for v in values] != [v.shape for v in self.trained()]:
            raise UsageError("the adapter to begin from has a LoRA of another rank than this run")
        self.restore(values)

    @classmethod
    def of(cls, adapter: Adapter, base: PreTrainedModel) -> "ProbeModel":
        """With what an adapter has learnt. Raises `UsageError` for one without rows."""
        rows, lora = adapter.rows, adapter.lora
        if rows is None:
            raise UsageError(f"an adapter of kind {adapter.kind} has learnt nothing that training could use")
        shape = None
        if lora is not None:
            names = tuple(sorted({path.rpartition(".")[2] for path in lora.layers}))
            first = min(int(part) for path in lora.layers for part in path.split(".") if part.isdigit())
            shape = LoraShape(lora.rank, round(lora.scale * lora.rank), names, first)
        model = cls(base, adapter.states, [0], num_probes=int(rows.probes.shape[0]), lora=shape)
        model.set_adapter(rows, lora)
        return model

    def give_back(self) -> PreTrainedModel:
        """The base without the LoRA; this object is of no use afterwards."""
        for path, layer in self._layers.items():
            self.base.base_model.set_submodule(path, layer.base_layer)
        self._layers = {}
        return self.base

    def trained(self) -> list[Tensor]:
        """Copies of everything that is trained, in a fixed order."""
        return [p.detach().clone() for p in (self.probes, self.states, *self.lora_parameters)]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Take over what `trained` gave."""
        with torch.no_grad():
            for parameter, value in zip((self.probes, self.states, *self.lora_parameters), values, strict=True):
                parameter.copy_(value)

    def _inject(self, shape: LoraShape) -> None:
        config = LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=shape.dropout,
            target_modules=list(shape.targets),
            layers_to_transform=list(range(shape.first_layer, self.base.config.get_text_config().num_hidden_layers)),
        )
        try:
            inject_adapter_in_model(config, self.base)
        except ValueError as error:
            raise UsageError(
                f"the LoRA does not fit this model: {error}; name its linear layers with --targets"
            ) from error
        modules = self.base.base_model.named_modules()
        self._layers = dict(sorted((name, module) for name, module in modules if isinstance(module, LoraLayer)))
        for layer in self._layers.values():
            for part in _parts(layer):
                part.float()  # small steps would be lost in half precision
        self.eval()


def _parts(layer: LoraLayer) -> tuple[nn.Linear, nn.Linear]:
    return layer.lora_A["default"], layer.lora_B["default"]
