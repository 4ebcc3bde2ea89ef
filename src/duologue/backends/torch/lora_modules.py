"""Applies a LoRA at chosen positions of a pass on a PyTorch model, with hooks that exist only during that pass.

Shapes: N tokens of the pass, P positions with the LoRA, R its rank, in and out the widths of a layer.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from duologue.backends.lora import Factors, Lora
from duologue.errors import AdapterMismatch, UnsupportedModel

Tensor: TypeAlias = torch.Tensor


@dataclass(frozen=True, eq=False, slots=True)
class _Layer:
    """One linear layer and its factors, in float32 on the layer's device."""

    path: str
    module: Any
    a: Tensor  # [R, in]
    b: Tensor  # [out, R], including the scale


class LoraModules:
    """The layers of one decoder that a LoRA changes.

    Raises:
        AdapterMismatch: the decoder lacks a layer, or its layer has another shape.
    """

    def __init__(self, decoder: Any, lora: Lora, label: str) -> None:
        self._label = label
        self._layers = [_layer(decoder, path, pair, lora.scale, label) for path, pair in lora.layers.items()]

    @contextmanager
    def at(self, positions: Sequence[int], num_tokens: int) -> Iterator[None]:
        """Apply the LoRA at `positions` of the pass in the body, which has one row of `num_tokens`.

        The layers' outputs at all other positions are neither changed nor computed differently.
        """
        done = Counter[str]()
        where = torch.tensor(positions)
        with ExitStack() as hooks:
            for layer in self._layers:
                handle = layer.module.register_forward_hook(self._hook(layer, where, num_tokens, done))
                hooks.callback(handle.remove)
            yield
        odd = next((layer.path for layer in self._layers if done[layer.path] != 1), None)
        if odd is not None:
            raise UnsupportedModel(
                f"{self._label} does not call its layer {odd!r} exactly once per pass, so a LoRA cannot be applied to "
                "it; leave the layer out of the adapter"
            )

    def _hook(self, layer: _Layer, positions: Tensor, num_tokens: int, done: Counter[str]) -> Any:
        def add(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            before, after = args[0].reshape(-1, args[0].shape[-1]), output.view(-1, output.shape[-1])
            if len(before) != num_tokens:  # before: [N, in], after: [N, out]
                raise UnsupportedModel(
                    f"{self._label} feeds {len(before)} of {num_tokens} tokens to its layer {layer.path!r}, as a "
                    "mixture of experts does, so a LoRA cannot be applied to it; leave the layer out of the adapter"
                )
            done[layer.path] += 1
            where = positions.to(before.device)
            delta = linear(linear(before.index_select(0, where).float(), layer.a), layer.b)
            after.index_add_(0, where, delta.to(output.dtype))  # in place, so that no other position is touched

        return add


def _layer(decoder: Any, path: str, pair: Factors, scale: float, label: str) -> _Layer:
    try:
        module = decoder.get_submodule(path)
    except AttributeError:
        raise AdapterMismatch(
            f"the LoRA changes the layer {path!r}, which {label} does not have; it was trained for another model"
        ) from None
    if not isinstance(module, torch.nn.Linear | Conv1D):
        raise AdapterMismatch(f"the LoRA changes {path!r}, a {type(module).__name__}; only linear layers are supported")
    shape = tuple(module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.T.shape)
    if shape != (pair.b.shape[0], pair.a.shape[1]):
        raise AdapterMismatch(
            f"the LoRA of layer {path!r} is for {pair.a.shape[1]} inputs and {pair.b.shape[0]} outputs; {label} has "
            f"{shape[1]} and {shape[0]}: the adapter was trained for another model"
        )
    a, b = (torch.tensor(matrix, dtype=torch.float32, device=module.weight.device) for matrix in (pair.a, pair.b))
    return _Layer(path, module, a, b * scale)
