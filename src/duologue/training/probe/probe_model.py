"""What is trained around a frozen base: rows of the probe, the states and the timing pair, and perhaps a LoRA.

B samples, P probe tokens, D hidden size, S states. Everything before the probe is cached (`prefixes`), so only the
probe's tokens pass through the model. A LoRA that is active for them alone is an activated LoRA: the KV of all other
tokens stays the base's. So it is switched on only while the probe passes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from duologue.backends.lora import Factors, Lora
from duologue.backends.rows import AdapterRows
from duologue.errors import UsageError
from duologue.models.adapters import Adapter
from duologue.training.probe.prefixes import Past, PrefixModel
from duologue.training.recipes import LoraShape
from duologue.training.runs import adapter_rows
from duologue.types import InputState


class ProbeModel(nn.Module):
    """A frozen base with trainable rows and perhaps a LoRA: from prefixes to logits of the states."""

    def __init__(
        self,
        base: PreTrainedModel,
        states: Sequence[InputState],
        start: Sequence[int],
        *,
        num_probes: int = 1,
        lora: LoraShape | None = None,
        timing: bool = False,
    ) -> None:
        """A single probe token starts from the mean embedding of the ids `start`; several start from one id each.

        `timing` adds the rows of the timing pair.
        """
        super().__init__()
        self.base = base.eval()
        for name, parameter in base.named_parameters():
            if ".lora_" not in name:  # of another model around the same base
                parameter.requires_grad_(False)
        embed = base.get_input_embeddings()
        every_id = torch.arange(embed.weight.shape[0], device=embed.weight.device)
        embedding = embed(every_id).detach().float()  # as they are fed: some models scale them
        chosen = embedding[list(start)]
        self.unit = float(embedding.std())  # probes are stored in this unit, so that one learning rate fits all models
        rows = chosen.mean(0, keepdim=True) if num_probes == 1 else chosen[torch.arange(num_probes) % len(chosen)]
        self.probes = nn.Parameter(rows / self.unit)  # [P, D]
        # [S, D], drawn on the CPU: the same on every device
        self.states = nn.Parameter((torch.randn(len(states), embedding.shape[1]) * 0.01).to(embedding.device))
        self.timing = nn.Parameter(torch.zeros(2, embedding.shape[1], device=embedding.device)) if timing else None
        self._layers: dict[str, LoraLayer] = {}
        if lora is not None:
            self._inject(lora)
        self.prefix_model = PrefixModel(base)

    @classmethod
    def from_adapter(cls, adapter: Adapter, base: PreTrainedModel) -> "ProbeModel":
        """The model that `adapter` was trained as. Raises `UsageError` if it was not trained."""
        rows, lora = adapter.rows, adapter.lora
        if rows is None:
            raise UsageError(f"an adapter of kind {adapter.kind} has no trained rows to learn from")
        shape = None
        if lora is not None:
            names = tuple(sorted({path.rpartition(".")[2] for path in lora.layers}))
            first = min(int(part) for path in lora.layers for part in path.split(".") if part.isdigit())
            shape = LoraShape(lora.rank, round(lora.scale * lora.rank), names, first)
        model = cls(base, adapter.states, [0], num_probes=rows.num_probes, lora=shape, timing=rows.timing is not None)
        model.set_adapter(rows, lora)
        return model

    @property
    def lora_parameters(self) -> list[nn.Parameter]:
        """Factors [R, in] and [out, R] of each LoRA layer, with rank R, in a fixed order; empty without a LoRA."""
        return [cast(nn.Parameter, part.weight) for layer in self._layers.values() for part in _factors(layer)]

    @property
    def output_rows(self) -> list[nn.Parameter]:
        """The rows [S, D] of the states and, if there are any, [2, D] of the timing pair."""
        return [self.states] if self.timing is None else [self.states, self.timing]

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        """Everything that is trained, in a fixed order: probes [P, D], output rows, factors of the LoRA."""
        return [self.probes, *self.output_rows, *self.lora_parameters]

    def train(self, mode: bool = True) -> "ProbeModel":
        """Switch the LoRA's dropout on or off. The base always stays in evaluation mode."""
        for layer in self._layers.values():
            layer.lora_dropout.train(mode)
        self.training = mode
        return self

    def forward(self, past: Past) -> Tensor:
        """Logits [B, S] at the last probe token after each prefix, or [B, S + 2] with a timing pair."""
        return self.hidden(past)[:, -1].float() @ torch.cat([*self.output_rows]).T

    def probabilities(self, past: Past) -> Tensor:
        """The same as probabilities; states and timing pair sum to 1 each."""
        groups = self(past).split([len(rows) for rows in self.output_rows], -1)
        return torch.cat([logits.softmax(-1) for logits in groups], -1)

    def hidden(self, past: Past) -> Tensor:
        """Final hidden states [B, P, D] of the probe tokens after each prefix."""
        fed = (self.probes * self.unit).to(self.base.dtype).expand(len(past.lengths), -1, -1)
        with self.activated():
            return self.prefix_model.run(past, inputs_embeds=fed)[0]

    @property
    def lora_factors(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """The two factors of each LoRA layer, as modules."""
        return [_factors(layer) for layer in self._layers.values()]

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Switch the LoRA on for the passes in the body."""
        self._activate(True)
        try:
            yield
        finally:
            self._activate(False)

    def _activate(self, is_active: bool) -> None:
        """Switch the LoRA. Unlike `enable_adapters`, this keeps the gradients of its factors."""
        for layer in self._layers.values():
            layer._disable_adapters = not is_active

    def rows(self) -> AdapterRows:
        """The rows as the backends take them."""
        return adapter_rows(self.probes * self.unit, *self.output_rows)

    def lora(self) -> Lora | None:
        """The LoRA as the backends take it."""
        if not self._layers:
            return None
        layers = {
            path: Factors(*(part.weight.detach().cpu().numpy().astype(np.float16) for part in _factors(layer)))
            for path, layer in self._layers.items()
        }
        return Lora(layers, float(next(iter(self._layers.values())).scaling["default"]))

    def apply_temperatures(self, *temperatures: float) -> None:
        """Divide the logits of the states, and of the timing pair, by these from now on."""
        with torch.no_grad():
            for rows, temperature in zip(self.output_rows, temperatures, strict=True):
                rows.div_(temperature)

    def set_adapter(self, rows: AdapterRows, lora: Lora | None) -> None:
        """Continue from what was trained before. A timing pair that `rows` lacks starts anew.

        Raises:
            UsageError: the LoRA has other layers or another rank.
        """
        theirs = {} if lora is None else dict(lora.layers)
        if self._layers.keys() != theirs.keys():
            raise UsageError("the adapter to start from has a LoRA in other layers than this run")
        factors = [part for path in self._layers for part in (theirs[path].a, theirs[path].b)]
        values = [torch.from_numpy(rows.probes) / self.unit, torch.from_numpy(rows.states)]
        if self.timing is not None:
            values.append(self.timing.detach().clone() if rows.timing is None else torch.from_numpy(rows.timing))
        values += [torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in factors]
        if [value.shape for value in values] != [parameter.shape for parameter in self.trained_parameters]:
            raise UsageError("the adapter to start from has a LoRA of another rank than this run")
        self.restore(values)

    def copied(self) -> list[Tensor]:
        """The present values of `trained_parameters`."""
        return [parameter.detach().clone() for parameter in self.trained_parameters]

    @torch.no_grad()
    def restore(self, values: Sequence[Tensor]) -> None:
        """Set `trained_parameters` to these values."""
        for parameter, value in zip(self.trained_parameters, values, strict=True):
            parameter.copy_(value)

    def unload(self) -> None:
        """Remove the LoRA from the base; this object must not be used afterwards."""
        for path, layer in self._layers.items():
            self.base.base_model.set_submodule(path, layer.base_layer)

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
        for parameter in self.lora_parameters:
            parameter.data = parameter.data.float()  # half precision would lose small steps
        self._activate(False)
        self.eval()


def _factors(layer: LoraLayer) -> tuple[nn.Linear, nn.Linear]:
    """The two factors of a LoRA layer, weights [R, in] and [out, R] for rank R."""
    return layer.lora_A["default"], layer.lora_B["default"]
