"""Every backend keeps the same contract, on every architecture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from duologue.backends.reference import ReferenceBackend
from duologue.backends.torch import TorchBackend
from duologue.contract import (
    CHECKS,
    Subject,
    check_one_pass_whatever_the_number_of_channels,
    check_random_operations,
)
from duologue.core.backend import Backend
from duologue.testing import ARCHITECTURES, tiny_model, tiny_rows

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


def torch_subject(model: Any) -> Subject:
    num_passes = 0

    def count(*_: object) -> None:
        nonlocal num_passes
        num_passes += 1

    model.register_forward_hook(count)

    def opener(**limits: int) -> Backend:
        return TorchBackend(model, rows=tiny_rows(), **limits)

    return Subject(opener, num_passes=lambda backend: num_passes)


@pytest.mark.parametrize("check", [*CHECKS, check_one_pass_whatever_the_number_of_channels], ids=lambda c: c.__name__)
def test_torch_keeps_the_contract(model: Any, check: Callable[[Subject], None]) -> None:
    check(torch_subject(model))


@pytest.mark.parametrize("seed", range(3))
def test_torch_agrees_with_the_reference_on_random_operations(model: Any, seed: int) -> None:
    check_random_operations(torch_subject(model), ReferenceBackend(model, rows=tiny_rows()), seed=seed)


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_the_reference_keeps_the_contract(architecture: str, check: Callable[[Subject], None]) -> None:
    model = tiny_model(architecture)
    check(Subject(lambda **limits: ReferenceBackend(model, rows=tiny_rows(), **limits)))
