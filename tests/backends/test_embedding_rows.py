"""Embedding rows among tokens: every backend treats them exactly as the tokens they stand for."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import soak
from duologue.backends.llamacpp.multi_cache import MultiCacheBackend
from duologue.backends.pair import PairBackend
from duologue.backends.reference import ReferenceBackend
from duologue.backends.scripted import ScriptedBackend
from duologue.backends.torch.backend import TorchBackend
from duologue.core.backend import Backend, Draw, Extend
from duologue.errors import UnsupportedModel, UsageError
from duologue.testing.contract import CHECKS, Subject, check_one_pass_whatever_the_number_of_channels
from duologue.testing.random_walk import check_random_operations
from duologue.testing.row_contract import (
    ROW_CHECKS,
    as_rows,
    check_ids_name_rows,
    check_nothing_is_left,
    check_rows_equal_tokens,
    num_alive,
)
from duologue.testing.tiny_models import ARCHITECTURES, WIDTH, embedding_rows, tiny_lora, tiny_model, tiny_rows
from duologue.types import VirtualId

torch.set_num_threads(1)


def subject_of(kind: Callable[..., Backend], model: Any, *, has_lora: bool = False) -> Subject:
    lora = tiny_lora(model) if has_lora else None
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    return Subject(
        lambda **limits: kind(model, rows=tiny_rows(), lora=lora, **limits), num_passes=lambda _: len(passes)
    )


def several_caches(model: Any, *, number: int = 2, **options: Any) -> Backend:
    return MultiCacheBackend([ReferenceBackend(model, **options) for _ in range(number)])


KINDS = {"torch": TorchBackend, "reference": ReferenceBackend, "several caches": several_caches}


@pytest.mark.parametrize("check", ROW_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        *(("torch", name) for name in ARCHITECTURES),
        ("reference", "gemma2"),
        ("reference", "mamba"),
        ("several caches", "llama"),
    ],
)
def test_rows_are_as_tokens(kind: str, architecture: str, check: Callable[..., None]) -> None:
    model = tiny_model(architecture)
    check(subject_of(KINDS[kind], model), partial(embedding_rows, model))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("torch", "llama"), ("torch", "gemma3"), ("reference", "llama"), ("several caches", "llama")],
)
def test_the_contract_is_kept_with_rows_among_tokens(
    kind: str, architecture: str, check: Callable[[Subject], None]
) -> None:
    model = tiny_model(architecture)
    check(as_rows(subject_of(KINDS[kind], model), partial(embedding_rows, model)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_take_no_further_pass(architecture: str) -> None:
    model = tiny_model(architecture)
    subject = as_rows(subject_of(TorchBackend, model), partial(embedding_rows, model))
    check_one_pass_whatever_the_number_of_channels(subject)


@pytest.mark.parametrize("check", [*CHECKS, *ROW_CHECKS], ids=lambda check: check.__name__)
def test_a_lora_applies_at_probes_and_not_at_rows(check: Callable[..., None]) -> None:
    model = tiny_model("llama")
    subject, rows_of = subject_of(TorchBackend, model, has_lora=True), partial(embedding_rows, model)
    if check in ROW_CHECKS:
        check(subject, rows_of)
    else:
        check(as_rows(subject, rows_of))


@pytest.mark.parametrize("has_lora", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_operations_with_rows_agree_with_the_reference_on_tokens(architecture: str, has_lora: bool) -> None:
    model = tiny_model(architecture)
    twin = ReferenceBackend(model, rows=tiny_rows(), lora=tiny_lora(model) if has_lora else None)
    subject = subject_of(TorchBackend, model, has_lora=has_lora)
    check_random_operations(as_rows(subject, partial(embedding_rows, model)), twin, seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_rows(kind: str) -> None:
    model = tiny_model("llama")
    number = soak.size(300, 100_000)
    check_nothing_is_left(subject_of(KINDS[kind], model), partial(embedding_rows, model), num_operations=number)


def test_rows_in_half_precision_are_exact() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    check_rows_equal_tokens(subject_of(TorchBackend, model), partial(embedding_rows, model))


def test_a_script_sees_the_ids_of_rows() -> None:
    seen: list[list[int]] = []

    def speak(held: list[int]) -> int:
        seen.append(held)
        return 7

    def opener(**limits: int) -> ScriptedBackend:
        return ScriptedBackend(speak, lambda held: [1.0], vocab_size=300, embedding_width=4, **limits)

    check_ids_name_rows(Subject(opener), lambda tokens: np.repeat(np.float32(tokens)[:, None], 4, axis=1))
    backend = opener(capacity=64, max_seqs=4, context_length=32)
    rows = backend.embed(np.ones((2, 4), np.float32))
    backend.forward([Extend(backend.fork(None), (5, *rows), draw=Draw())])
    assert seen == [[5, rows[0], rows[0]]]


def test_an_id_carries_its_row_wherever_it_goes() -> None:
    rows = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    backend = ReferenceBackend(tiny_model("llama"))
    before = num_alive()
    made = backend.embed(rows)
    assert [np.frombuffer(one.row, np.float32).tolist() for one in made] == rows.tolist()
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert other == made
        assert [one.row for one in other] == [one.row for one in made]
    assert backend.embed(np.asfortranarray(rows)) == made
    assert backend.embed(rows[::2]) == made[::2]
    assert backend.embed(np.zeros((0, WIDTH), np.float32)) == ()
    seq = backend.fork(None)
    backend.forward([Extend(seq, made)])
    del made, other
    assert num_alive() == before + 3, "the sequence holds them"
    backend.free(seq)
    assert num_alive() == before


def test_what_is_wrong_with_rows_is_said() -> None:
    backend = ReferenceBackend(tiny_model("llama"), rows=tiny_rows())
    good = np.ones((3, WIDTH), np.float32)
    bad = good.copy()
    bad[1, 5] = np.nan
    for rows, message in (
        (good.astype(np.float64), "type 'd', but must be float32"),
        (good[:, :5], r"shape \(3, 5\), but this model takes rows of width 32"),
        (good[0], r"shape \(32,\)"),
        (bad, "row 1 of 3 has a number that is not finite"),
        (torch.ones(3, WIDTH), r"not Tensor; of a torch tensor, pass tensor\.float\(\)"),
    ):
        with pytest.raises(UsageError, match=message):
            backend.embed(rows)
    seq, (token, *_) = backend.fork(None), backend.embed(good)
    for extend, message in (
        (Extend(seq, (int(token),)), "a virtual id is one that Backend.embed returned, not its number"),
        (Extend(seq, (5,), watch=((token,),)), "watches a virtual id"),
        (Extend(seq, (VirtualId(bytes(20)),)), "a row of width 5, but"),
    ):
        with pytest.raises(UsageError, match=message):
            backend.forward([extend])


def test_two_models_take_no_rows() -> None:
    one = ReferenceBackend(tiny_model("llama"))
    pair = PairBackend(one, ReferenceBackend(tiny_model("qwen2")))
    with pytest.raises(UnsupportedModel, match="takes no embedding rows"):
        pair.embed(np.ones((1, WIDTH), np.float32))
    (token,) = one.embed(np.ones((1, WIDTH), np.float32))
    with pytest.raises(UsageError, match="takes no embedding rows"):
        pair.forward([Extend(pair.fork(None), (token,))])
    script = ScriptedBackend(lambda held: 7, lambda held: [1.0], vocab_size=300)
    with pytest.raises(UnsupportedModel, match="scripted backend takes no embedding rows for a script"):
        script.embed(np.ones((1, WIDTH), np.float32))
