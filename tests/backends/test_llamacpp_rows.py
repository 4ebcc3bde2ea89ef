"""Embedding rows among tokens on llama.cpp: as the tokens they stand for, in one pass, in every cache."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("torch")
import llama_cpp
from gguf import GGMLQuantizationType

import soak
from duologue.backends.llamacpp.backend import LlamaCppBackend, open_caches
from duologue.backends.llamacpp.gguf_convert import WEIGHTS, convert
from duologue.backends.llamacpp.gguf_embeddings import EmbeddingMatrix
from duologue.backends.llamacpp.gguf_facts import INPUT
from duologue.backends.llamacpp.gguf_header import read_header
from duologue.backends.llamacpp.gguf_lora import write_lora
from duologue.backends.llamacpp.gguf_one_pass import write_one_pass
from duologue.backends.lora import adapter_digest
from duologue.backends.reference import ReferenceBackend
from duologue.core.backend import Backend, Draw, Extend, num_passes
from duologue.errors import BrokenModel, EngineError, UnsupportedModel, UsageError
from duologue.testing.contract import CHECKS, WORDS, Subject, check_one_pass_whatever_the_number_of_channels, ids
from duologue.testing.random_walk import check_random_operations
from duologue.testing.row_contract import ROW_CHECKS, as_rows, check_nothing_is_left
from duologue.testing.tiny_models import WIDTH, embedding_rows, tiny_lora, tiny_model, tiny_rows
from tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.llamacpp

NEAR = 5e-3  # keys and values are kept in 16 bits
EXACT = {"kv_type": "f32", "flash_attention": False}
APART = {"prefill_capacity": 48}  # KV entries


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    paths = {}
    for name in ("llama", "qwen2", "gemma3", "gemma2"):
        bare = paths[f"{name}-bare"] = write_tiny_gguf(tiny_model(name), name, folder / f"{name}.gguf")
        paths[name] = folder / f"{name}-rows.gguf"
        convert(bare, paths[name], rows=tiny_rows())
        write_lora(bare, tiny_lora(tiny_model(name)), folder / f"{name}-lora.gguf")
    return paths


@pytest.fixture
def subject(files, monkeypatch):
    decode, calls = llama_cpp.llama_decode, []
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda *args: calls.append(1) or decode(*args))

    def of(name: str, *, has_lora: bool = False, number: int = 1, **options) -> Subject:
        def opener(**limits) -> Backend:
            lora_path = files[name].with_name(f"{name}-lora.gguf") if has_lora else None
            return open_caches(files[name], number, threads=1, lora_path=lora_path, **options, **limits)

        tolerance = 1e-4 if "kv_type" in options and name != "gemma3" else 1e-3 if "kv_type" in options else NEAR
        return Subject(opener, tolerance=tolerance, tie=10 * tolerance, num_passes=lambda _: len(calls))

    return of


def rows_of(name: str):
    return partial(embedding_rows, tiny_model(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("gemma3", {}),
        ("llama", APART),
        ("llama", {"has_lora": True}),
        ("gemma3", {"has_lora": True}),
        ("llama", {"has_lora": True, "number": 2, **APART}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
@pytest.mark.parametrize("check", ROW_CHECKS, ids=lambda check: check.__name__)
def test_rows_are_as_tokens(subject, name, options, check):
    check(subject(name, **options), rows_of(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", EXACT),
        ("gemma3", {}),
        ("llama", EXACT | APART),
        ("llama", EXACT | {"has_lora": True}),
        ("llama", EXACT | APART | {"has_lora": True, "number": 2}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
@pytest.mark.parametrize("check", [*CHECKS, check_one_pass_whatever_the_number_of_channels], ids=lambda c: c.__name__)
def test_the_contract_is_kept_with_rows_among_tokens(subject, name, options, check):
    check(as_rows(subject(name, **options), rows_of(name)))


@pytest.mark.parametrize("has_lora", [False, True])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_random_operations_with_rows_agree_with_the_reference_on_tokens(subject, monkeypatch, number, seed, has_lora):
    monkeypatch.setattr("duologue.backends.llamacpp.backend.MIN_PREFILL", 2)
    model = tiny_model("llama")
    twin = ReferenceBackend(model, rows=tiny_rows(), lora=tiny_lora(model) if has_lora else None)
    fed = as_rows(subject("llama", has_lora=has_lora, number=number, **EXACT, **APART), rows_of("llama"))
    check_random_operations(fed, twin, seed=seed, num_operations=150)


@pytest.mark.parametrize(
    ("name", "options"), [("llama", {}), ("gemma3", {}), ("llama", APART), ("llama", {"number": 2})]
)
def test_nothing_is_left_of_rows(subject, name, options):
    number = soak.size(2000, 100_000)
    check_nothing_is_left(subject(name, **options), rows_of(name), num_operations=number)


@pytest.mark.parametrize("weights", [*WEIGHTS, None])
def test_tokens_beside_rows_are_exact_in_every_type(tmp_path, files, weights):
    """They are read from the file then, and must be what llama.cpp reads."""
    path = tmp_path / f"{weights}.gguf"
    convert(files["llama-bare"], path, weights=weights)
    backend = LlamaCppBackend(path, capacity=128, max_seqs=4, threads=1)
    (row,) = backend.embed(np.ones((1, WIDTH), np.float32))
    results = []
    for is_beside in (False, True):
        first, second = backend.fork(None), backend.fork(None)
        batch = [Extend(first, ids(7, 30), draw=Draw(num_alternatives=5)), Extend(second, (row if is_beside else 5,))]
        results.append(backend.forward(batch)[0])
        backend.free(first)
        backend.free(second)
    backend.close()
    assert results[0] == results[1]


def test_a_pass_with_rows_is_one_pass(subject):
    with subject("llama").open() as backend:
        (row,) = backend.embed(np.ones((1, WIDTH), np.float32))
        seqs = [backend.fork(None) for _ in range(3)]
        batch = [Extend(seqs[0], (row, 5, row)), Extend(seqs[1], (7,), draw=Draw()), Extend(seqs[2], (row,) * 4)]
        assert num_passes(backend.forward(batch)) == 1


def test_a_failed_pass_with_rows_leaves_everything_as_it_was(subject, monkeypatch):
    fed, decode = subject("llama"), llama_cpp.llama_decode
    with fed.open() as backend:
        seq, other = backend.fork(None), backend.fork(None)
        backend.forward([Extend(seq, WORDS)])
        rows = backend.embed(rows_of("llama")(WORDS))
        before = backend.usage()
        with monkeypatch.context() as patch:
            patch.setattr(llama_cpp, "llama_decode", lambda *args: decode(*args) or 2)
            with pytest.raises(EngineError):
                backend.forward([Extend(seq, rows), Extend(other, (5,))])
        assert backend.usage() == before
        fed.require_fresh(backend, seq, WORDS, ids(5, 4), "after a failed pass with rows")


def test_a_one_pass_file_takes_no_rows_and_says_what_does(tmp_path, files):
    path, rows, lora = tmp_path / "one-pass.gguf", tiny_rows(), tiny_lora(tiny_model("llama"))
    write_one_pass(files["llama"], lora, path, digest=adapter_digest(rows, lora))
    backend = LlamaCppBackend(path, capacity=64, threads=1)
    assert backend.info.embedding_width == 0
    with pytest.raises(UnsupportedModel, match=r"one-pass file.*of which probes then take a pass of their own"):
        backend.embed(np.ones((1, WIDTH), np.float32))
    ordinary = LlamaCppBackend(files["llama"], capacity=64, threads=1)
    (row,) = ordinary.embed(np.ones((1, WIDTH), np.float32))
    with pytest.raises(UsageError, match="takes no embedding rows"):
        backend.forward([Extend(backend.fork(None), (5, row))])
    ordinary.close()
    backend.close()


def test_what_llama_cpp_would_change_is_refused(files):
    backend = LlamaCppBackend(files["gemma2"], capacity=64, threads=1)
    with pytest.raises(UnsupportedModel, match=r"scales embedding rows .*gemma2"):
        backend.embed(np.ones((1, WIDTH), np.float32))
    backend.close()
    header = read_header(files["llama"])
    for kind in GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q6_K:
        other = replace(header, kinds={**header.kinds, INPUT: int(kind)})
        with pytest.raises(UnsupportedModel, match=f"embeddings of type {kind.name}"):
            EmbeddingMatrix(files["llama"], other)
    cut = replace(header, offsets={**header.offsets, INPUT: files["llama"].stat().st_size})
    with pytest.raises(BrokenModel, match="ends before its embeddings"):
        EmbeddingMatrix(files["llama"], cut)
