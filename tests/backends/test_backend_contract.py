"""Every backend passes the same contract on every architecture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from duologue.backends.lora import Lora
from duologue.backends.reference import ReferenceBackend
from duologue.backends.torch.backend import TorchBackend
from duologue.core.backend import Backend, Extend
from duologue.errors import AdapterMismatch, UnsupportedModel
from duologue.testing.contract import (
    CHECKS,
    Subject,
    check_lora_leaves_the_base_alone,
    check_one_pass_whatever_the_number_of_channels,
)
from duologue.testing.random_walk import check_random_operations
from duologue.testing.tiny_models import ARCHITECTURES, VOCAB_SIZE, tiny_lora, tiny_model, tiny_rows

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


def torch_subject(model: Any, *, has_lora: bool = False) -> Subject:
    lora = tiny_lora(model) if has_lora else None
    num_passes = 0

    def count(*_: object) -> None:
        nonlocal num_passes
        num_passes += 1

    model.register_forward_hook(count)

    def opener(**limits: int) -> Backend:
        return TorchBackend(model, rows=tiny_rows(), lora=lora, **limits)

    return Subject(opener, num_passes=lambda backend: num_passes)


@pytest.mark.parametrize("check", [*CHECKS, check_one_pass_whatever_the_number_of_channels], ids=lambda c: c.__name__)
def test_torch_keeps_the_contract(model: Any, check: Callable[[Subject], None]) -> None:
    check(torch_subject(model))


@pytest.mark.parametrize("seed", range(3))
def test_torch_agrees_with_the_reference_on_random_operations(model: Any, seed: int) -> None:
    check_random_operations(torch_subject(model), ReferenceBackend(model, rows=tiny_rows()), seed=seed)


@pytest.mark.parametrize("check", [*CHECKS, check_one_pass_whatever_the_number_of_channels], ids=lambda c: c.__name__)
def test_torch_keeps_the_contract_with_a_lora(check: Callable[[Subject], None]) -> None:
    check(torch_subject(tiny_model("llama"), has_lora=True))


@pytest.mark.parametrize("seed", range(3))
def test_torch_agrees_with_the_reference_with_a_lora(model: Any, seed: int) -> None:
    twin = ReferenceBackend(model, rows=tiny_rows(), lora=tiny_lora(model))
    check_random_operations(torch_subject(model, has_lora=True), twin, seed=seed)


def test_a_lora_leaves_the_base_of_torch_alone(model: Any) -> None:
    check_lora_leaves_the_base_alone(torch_subject(model, has_lora=True), torch_subject(model))


@pytest.mark.parametrize("has_lora", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "mamba"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_the_reference_keeps_the_contract(architecture: str, check: Callable[[Subject], None], has_lora: bool) -> None:
    model = tiny_model(architecture)
    lora = tiny_lora(model) if has_lora else None
    check(Subject(lambda **limits: ReferenceBackend(model, rows=tiny_rows(), lora=lora, **limits)))


def test_a_lora_leaves_the_base_of_the_reference_alone(model: Any) -> None:
    with_and_without = [
        Subject(lambda lora=lora, **limits: ReferenceBackend(model, rows=tiny_rows(), lora=lora, **limits))
        for lora in (tiny_lora(model), None)
    ]
    check_lora_leaves_the_base_alone(*with_and_without)


@pytest.mark.parametrize("backend", [ReferenceBackend, TorchBackend])
def test_a_lora_for_another_model_is_refused(backend: Any) -> None:
    model, lora = tiny_model("llama"), tiny_lora(tiny_model("llama"))
    for path, message in (("layers.7.mlp.up_proj", "does not have"), ("layers.0.mlp", "only linear layers")):
        odd = Lora({path: lora.layers["layers.0.mlp.up_proj"]}, 1.0)
        with pytest.raises(AdapterMismatch, match=message):
            backend(model, rows=tiny_rows(), lora=odd, capacity=64)
    odd = Lora({"layers.0.mlp.down_proj": lora.layers["layers.0.mlp.up_proj"]}, 1.0)
    with pytest.raises(AdapterMismatch, match="32 inputs and 48 outputs"):
        backend(model, rows=tiny_rows(), lora=odd, capacity=64)


@pytest.mark.parametrize("num_calls", [0, 2])
def test_a_lora_on_a_layer_that_is_not_called_once_is_refused(monkeypatch: pytest.MonkeyPatch, num_calls: int) -> None:
    model = tiny_model("llama")
    backend = ReferenceBackend(model, rows=tiny_rows(), lora=tiny_lora(model))
    attention = model.get_decoder().layers[0].self_attn
    layer = attention.o_proj
    monkeypatch.setitem(attention._modules, "o_proj", _Around(layer, num_calls))
    seq = backend.fork(None)
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.self_attn\.o_proj"):
        backend.forward([Extend(seq, (5, VOCAB_SIZE), watch=((VOCAB_SIZE + 1,),))])
    assert backend.length(seq) == 0
    assert not layer._forward_hooks


class _Around(torch.nn.Module):
    """Uses a layer's weights directly, as a fused kernel does, and calls the layer itself this many times."""

    def __init__(self, layer: torch.nn.Module, num_calls: int) -> None:
        super().__init__()
        self.weight = layer.weight
        self.calls = [layer] * num_calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for call in self.calls:
            call(x)
        return torch.nn.functional.linear(x, self.weight)
