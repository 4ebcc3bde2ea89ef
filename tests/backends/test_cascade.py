"""A cascade on llama.cpp: what it decides, which passes it makes, and what it leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
import llama_cpp

from duologue.backends.llamacpp.backend import LlamaCppBackend, open_caches
from duologue.backends.llamacpp.gguf_convert import convert
from duologue.backends.llamacpp.gguf_lora import write_lora
from duologue.core.backend import Backend, Draw, Extend, Step, num_passes
from duologue.errors import EngineError, UsageError
from duologue.testing.contract import (
    CHECKS,
    Subject,
    check_cascade,
    check_one_pass_whatever_the_number_of_channels,
    ids,
)
from duologue.testing.tiny_models import VOCAB_SIZE, WIDTH, tiny_lora, tiny_model, tiny_rows
from tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.llamacpp

ARCHITECTURES = ("llama", "qwen2", "gemma3", "gemma2")
PROBE, STATES, TIMING = VOCAB_SIZE, tuple(range(VOCAB_SIZE + 1, VOCAB_SIZE + 5)), (VOCAB_SIZE + 5, VOCAB_SIZE + 6)
GROUPS = (STATES, TIMING)
ROWS, FIRST = tiny_rows(timing=True), tiny_rows(timing=True, seed=5)
EXACT: dict[str, Any] = {"kv_type": "f32", "flash_attention": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each architecture, files with the rows of an adapter, of a cascade, and of both; and the LoRA."""
    folder, paths = tmp_path_factory.mktemp("gguf"), {}
    for name in ARCHITECTURES:
        bare = write_tiny_gguf(tiny_model(name), name, folder / f"{name}.gguf")
        for kind, sets in (("lora", [ROWS]), ("rows", [FIRST]), ("both", [ROWS, FIRST])):
            paths[f"{name}-{kind}"] = folder / f"{name}-{kind}.gguf"
            convert(bare, paths[f"{name}-{kind}"], rows=sets[0], cascade=sets[1] if sets[1:] else None)
        paths[f"{name}-factors"] = folder / f"{name}-factors.gguf"
        write_lora(bare, tiny_lora(tiny_model(name)), paths[f"{name}-factors"])
    return paths


def options_of(files: dict[str, Path], kind: str, limit: float, name: str = "llama") -> dict[str, Any]:
    """What opens the cascade ("both"), the adapter without it ("lora"), or the rows of the cascade alone ("rows")."""
    lora = {} if kind == "rows" else {"lora_path": files[f"{name}-factors"]}
    cascade = {"cascade_limit": limit} if kind == "both" else {}
    return {"threads": 1, **lora, **cascade, **EXACT}


@pytest.fixture
def opened(files: dict[str, Path]) -> Any:
    backends = []

    def open_backend(kind: str = "both", limit: float = 0.5, name: str = "llama", **options: Any) -> LlamaCppBackend:
        path = files[f"{name}-{kind}"]
        sizes = {"capacity": 128, "max_seqs": 6}
        backends.append(LlamaCppBackend(path, **{**sizes, **options_of(files, kind, limit, name), **options}))
        return backends[-1]

    yield open_backend
    for backend in backends:
        backend.close()


def subject(files: dict[str, Path], kind: str, limit: float = 0.0, name: str = "llama") -> Subject:
    def opener(**limits: int) -> Backend:
        return LlamaCppBackend(files[f"{name}-{kind}"], **options_of(files, kind, limit, name), **limits)

    tolerance = 1e-3 if name.startswith("gemma") else 1e-4
    return Subject(opener, tolerance=tolerance, tie=10 * tolerance)


def judged(backend: Backend, tokens: tuple[int, ...], *, with_words: bool = True) -> Step:
    """The step of a probe after `tokens` in a new sequence; without words, these are cached before."""
    seq = backend.fork(None)
    if not with_words:
        backend.forward([Extend(seq, tokens)])
    (step,) = backend.forward([Extend(seq, (*(tokens if with_words else ()), PROBE), watch=GROUPS)])
    backend.free(seq)
    return step


def median(backend: Backend) -> float:
    """A limit under which some words are sure, and some are not."""
    return float(np.median([max(judged(backend, ids(seed, 9)).p[0]) for seed in range(9)]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_probe_is_judged_by_the_rows_or_by_the_lora(opened: Any, name: str) -> None:
    rows, lora = opened("rows", name=name), opened("lora", name=name)
    limit = median(rows)
    both, apart = opened(limit=limit, name=name), []
    for seed in range(9):
        first, second, step = (judged(backend, ids(seed, 9)) for backend in (rows, lora, both))
        is_sure = max(first.p[0]) >= limit
        apart.append(not is_sure)
        assert (step.is_apart, len(step.passes)) == (not is_sure, 1 if is_sure else 2)
        for got, expected in zip(step.p, (first if is_sure else second).p, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-4)
    assert 2 <= sum(apart) <= 7


def test_what_follows_soft_tokens_is_left_to_the_lora(opened: Any) -> None:
    lora, both = opened("lora"), opened(limit=0.0)  # its rows are always sure
    soft = both.embed(np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32))
    words = ids(1, 9)
    step, expected = (judged(backend, (*words, *soft)) for backend in (both, lora))
    assert step.is_apart
    np.testing.assert_allclose(step.p[0], expected.p[0], atol=1e-5)
    assert np.abs(np.subtract(step.p[0], judged(lora, words).p[0])).max() > 1e-3, "soft tokens matter"


def test_the_limit_decides_and_a_probe_without_words_is_left_to_the_lora(opened: Any) -> None:
    rows, lora = opened("rows"), opened("lora")
    words = ids(1, 9)
    for limit, expected in ((0.0, rows), (1.0, lora)):
        both = opened(limit=limit)
        np.testing.assert_allclose(judged(both, words).p[0], judged(expected, words).p[0], atol=1e-5)
        step = judged(both, words, with_words=False)
        assert (step.is_apart, len(step.passes)) == (True, 1), "there is no pass of words that it could share"
        np.testing.assert_allclose(step.p[0], judged(lora, words).p[0], atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("limit", [0.0, 0.4, 1.0])
def test_one_probe_is_judged_the_same_whatever_else_is_in_the_pass(opened: Any, name: str, limit: float) -> None:
    alone, together = opened(limit=limit, name=name), opened(limit=limit, name=name)
    seqs = [together.fork(None) for _ in range(5)]
    batch = [Extend(seq, (*ids(seed, 9), PROBE), watch=GROUPS) for seed, seq in enumerate(seqs[:4])]
    steps = together.forward([*batch, Extend(seqs[4], ids(7, 5), draw=Draw())])
    for seed, step in enumerate(steps[:4]):
        expected = judged(alone, ids(seed, 9))
        assert step.is_apart == expected.is_apart
        np.testing.assert_allclose(step.p[0], expected.p[0], atol=1e-3)
    assert num_passes(steps) == 1 + any(step.is_apart for step in steps)
    assert steps[4].passes == steps[0].passes[:1]


def test_other_ids_are_read_with_the_lora(opened: Any) -> None:
    both, lora = opened(limit=0.0), opened("lora")
    for watch in (((5, 6),), ((STATES[0], 5),), (STATES, (5, 6))):
        found = []
        for backend in (both, lora):
            seq = backend.fork(None)
            found.append(backend.forward([Extend(seq, (*ids(1, 9), PROBE), watch=watch)])[0])
        assert found[0].is_apart
        np.testing.assert_allclose(np.concatenate(found[0].p), np.concatenate(found[1].p), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_rolled_back_probe_leaves_nothing(opened: Any, name: str, limit: float) -> None:
    both, lora = opened(limit=limit, name=name), opened("lora", name=name)
    drawn = []
    for backend in (both, lora):
        seq = backend.fork(None)
        for number, token in enumerate(ids(3, 14)):
            backend.forward([Extend(seq, (token, PROBE), watch=GROUPS)])
            backend.truncate(seq, number + 1)
        assert backend.usage().kv_entries == 14
        drawn.append(backend.forward([Extend(seq, (9,), draw=Draw())])[0])
    assert drawn[0].tokens == drawn[1].tokens
    assert drawn[0].margin == pytest.approx(drawn[1].margin, abs=1e-4)


def test_answers_are_those_of_the_base_and_decisions_those_of_the_rows_or_the_lora(files: dict[str, Path]) -> None:
    for name in ARCHITECTURES:
        rows, lora = (subject(files, kind, name=name) for kind in ("rows", "lora"))
        check_cascade(lambda limit, name=name: subject(files, "both", limit, name), rows, lora)


@pytest.mark.parametrize("limit", [0.0, 0.45, 1.0])
@pytest.mark.parametrize("check", [*CHECKS, check_one_pass_whatever_the_number_of_channels], ids=lambda c: c.__name__)
def test_the_contract_is_kept(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, check: Callable[[Subject], None], limit: float
) -> None:
    decode, calls = llama_cpp.llama_decode, []
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda *args: calls.append(1) or decode(*args))

    def opener(**limits: int) -> Backend:
        return open_caches(files["llama-both"], 2, **options_of(files, "both", limit), **limits)

    check(Subject(opener, num_passes=lambda _: len(calls)))


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_pass_undoes_the_probe_of_the_cascade(
    opened: Any, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    backend, decode, calls = opened(limit=1.0), llama_cpp.llama_decode, []
    expected = judged(backend, ids(1, 9))
    seq = backend.fork(None)
    with monkeypatch.context() as patch:
        fail = lambda *args: calls.append(1) or decode(*args) or 2 * (len(calls) == failing)  # noqa: E731
        patch.setattr(llama_cpp, "llama_decode", fail)
        with pytest.raises(EngineError):
            backend.forward([Extend(seq, (*ids(1, 9), PROBE), watch=GROUPS)])
    assert (len(calls), backend.length(seq), backend.usage().kv_entries) == (failing, 0, 0)
    (step,) = backend.forward([Extend(seq, (*ids(1, 9), PROBE), watch=GROUPS)])
    np.testing.assert_allclose(step.p[0], expected.p[0], atol=1e-5)


def test_a_cascade_without_its_rows_or_its_lora_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    sizes = {"capacity": 64, "threads": 1}
    with pytest.raises(UsageError, match="no rows of a cascade"):
        LlamaCppBackend(files["llama-lora"], lora_path=files["llama-factors"], cascade_limit=0.5, **sizes)
    with pytest.raises(UsageError, match="with a LoRA"):
        LlamaCppBackend(files["llama-both"], cascade_limit=0.5, **sizes)
    with pytest.raises(UsageError, match=r"1\.5 is not a probability"):
        LlamaCppBackend(files["llama-both"], lora_path=files["llama-factors"], cascade_limit=1.5, **sizes)
    bare = write_tiny_gguf(tiny_model("llama"), "llama", tmp_path / "bare.gguf")
    with pytest.raises(UsageError, match="other shapes"):
        convert(bare, tmp_path / "out.gguf", rows=ROWS, cascade=tiny_rows())
