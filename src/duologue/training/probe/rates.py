"""Learning rates that have the same effect in every model.

A step of AdamW moves each number by about its learning rate. It therefore changes a value by at most the rate times the
sum of the absolute derivatives of that value: its *gain*. Hidden states and weights are several times larger in some
models than in others, and so are the gains: rates that suit one model make another diverge. The rates of a recipe are
those of the default model. In every other model they are scaled by the ratio of the gains, so that a step changes the
logits and the direction of the final hidden state as much as it does there.

P probe tokens, S states, D hidden size, R rank of the LoRA.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from duologue.training.layout import Layout
from duologue.training.probe.prefixes import Prefixes
from duologue.training.probe.probe_model import ProbeModel
from duologue.training.recipes import ProbeSettings

_NUM_MEASURED = 32  # samples
_MAX_FACTOR = 4.0  # most that a rate is raised: in very small models, the ratio of the gains is too large


@dataclass(frozen=True, slots=True)
class Gains:
    """How much a unit step of everything in a group can change, in the geometric mean over some samples."""

    probes: float  # [P, D]: the direction of the final hidden state
    outputs: float  # [S, D]: the logit of a state
    lora: float  # second factors [out, R]: the direction of the final hidden state; infinite without a LoRA

    @classmethod
    def of(cls, model: ProbeModel, layouts: Sequence[Layout]) -> "Gains":
        """Measure the gains at the current values of `model`, after the first few of `layouts`."""
        prefixes = Prefixes(model.prefix_model, layouts[:_NUM_MEASURED])
        chance = torch.Generator().manual_seed(0)
        seconds = model.lora_parameters[1::2]  # the first factors have no effect while the second ones are zero
        found = []
        for index in range(len(prefixes)):
            hidden = model.hidden(prefixes.past([index]))[0, -1].float()  # [D]
            direction = torch.randn(hidden.shape, generator=chance).to(hidden.device)
            grads = torch.autograd.grad(direction @ hidden / hidden.norm(), [model.probes, *seconds])
            lora = sum(float(grad.abs().sum()) for grad in grads[1:]) if seconds else math.inf
            found.append([float(grads[0].abs().sum()), float(hidden.detach().abs().sum()), lora])
        return cls(*torch.tensor(found).log().mean(0).exp().tolist())


DEFAULT_GAINS = Gains(probes=19.0, outputs=595.0, lora=820.0)
"""The gains of the default model with the default LoRA. The rates of the recipes were chosen there."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Peak learning rates of the groups that are trained."""

    probes: float
    outputs: float  # state rows and timing pair
    lora: float  # 0 without a LoRA

    @classmethod
    def of(cls, gains: Gains, settings: ProbeSettings, *, divisor: float = 1.0) -> "Rates":
        """The rates of `settings` in a model with these gains, divided by `divisor`."""

        def scaled(rate: float, default: float, gain: float) -> float:
            return rate * min(_MAX_FACTOR, default / gain) / divisor

        return cls(
            probes=scaled(settings.lr, DEFAULT_GAINS.probes, gains.probes),
            outputs=scaled(settings.lr / 2, DEFAULT_GAINS.outputs, gains.outputs),
            lora=scaled(settings.lora_lr, DEFAULT_GAINS.lora, gains.lora),
        )
