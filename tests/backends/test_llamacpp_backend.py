# ruff: noqa: E402 - what may be missing is looked for before it is imported
"""The llama.cpp backend on tiny GGUF models, compared with the same models in torch and with itself."""

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
torch = pytest.importorskip("torch")
import llama_cpp
from gguf import GGUFWriter

from duologue.backends.llamacpp import library
from duologue.backends.llamacpp.backend import LlamaCppBackend, open_caches
from duologue.backends.llamacpp.gguf_convert import convert
from duologue.backends.llamacpp.gguf_lora import write_lora
from duologue.backends.llamacpp.multi_cache import MultiCacheBackend
from duologue.backends.reference import ReferenceBackend
from duologue.backends.rows import AdapterRows
from duologue.core.backend import Draw, Extend, Sampling, Usage, num_passes
from duologue.errors import (
    AdapterMismatch,
    BrokenModel,
    CacheFull,
    ContextOverflow,
    EngineError,
    ModelNotFound,
    UnknownSeq,
    UnsupportedModel,
    UsageError,
)
from duologue.testing.contract import (
    CHECKS,
    Subject,
    check_lora_leaves_the_base_alone,
    check_one_pass_whatever_the_number_of_channels,
)
from duologue.testing.random_walk import check_random_operations
from duologue.testing.tiny_models import VOCAB_SIZE, tiny_lora, tiny_model, tiny_rows
from tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.llamacpp

ARCHITECTURES = ("llama", "qwen2", "gemma3", "gemma2")
PROBE = VOCAB_SIZE
STATES = tuple(range(VOCAB_SIZE + 1, VOCAB_SIZE + 5))
NEAR = 5e-3  # keys and values are kept in 16 bits
EXACT = {"kv_type": "f32", "flash_attention": False}
APART = {"prefill_capacity": 48}  # KV entries


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    paths = {}
    for name in ARCHITECTURES:
        bare = write_tiny_gguf(tiny_model(name), name, folder / f"{name}.gguf")
        paths[name] = folder / f"{name}-rows.gguf"
        convert(bare, paths[name], rows=tiny_rows())
        write_lora(bare, tiny_lora(tiny_model(name)), folder / f"{name}-lora.gguf")
    return paths


def lora_of(path: Path) -> Path:
    """The LoRA beside a model file with rows."""
    return path.with_name(path.name.replace("-rows", "-lora"))


@pytest.fixture
def opened(files):
    backends = []

    def open_backend(name="llama", **options) -> LlamaCppBackend:
        backends.append(LlamaCppBackend(files[name], **{"capacity": 128, "max_seqs": 6, "threads": 1, **options}))
        return backends[-1]

    yield open_backend
    for backend in backends:
        backend.close()


def ids(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(4, VOCAB_SIZE), k=count))


def asked(backend, tokens) -> np.ndarray:
    """State probabilities after `tokens` in a fresh sequence."""
    seq = backend.fork(None)
    (step,) = backend.forward([Extend(seq, (*tokens, PROBE), watch=(STATES,))])
    backend.free(seq)
    return np.array(step.p[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokens_and_states_are_those_of_torch(opened, name):
    backend, model, rows, tokens = opened(name), tiny_model(name), tiny_rows(), ids(30)
    with torch.inference_mode():
        embedded = model.get_input_embeddings()(torch.tensor([tokens]))
        embedded = torch.cat([embedded, torch.tensor(rows.probes)[None]], dim=1)
        hidden = model.model(inputs_embeds=embedded).last_hidden_state[0, -1]
        expected = torch.softmax(torch.tensor(rows.states) @ hidden, dim=-1).numpy()
        best = torch.topk(model(torch.tensor([tokens])).logits[0, -1], 2)
    seq = backend.fork(None)
    (said,) = backend.forward([Extend(seq, tokens, draw=Draw(), ticket=7)])
    assert said.ticket == 7
    assert said.tokens == (int(best.indices[0]),)
    assert said.margin == pytest.approx(float(best.values[0] - best.values[1]), abs=0.05)
    np.testing.assert_allclose(asked(backend, tokens), expected, atol=NEAR)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_rolled_back_sequence_is_as_if_nothing_had_been_fed(opened, name):
    backend = opened(name)
    expected = asked(backend, ids(20))
    seq = backend.fork(None)
    backend.forward([Extend(seq, ids(20))])
    for seed in range(5):  # far beyond the window of the layers that have one, until cells are used again
        backend.forward([Extend(seq, ids(80, seed))])
        backend.truncate(seq, 20)
    (step,) = backend.forward([Extend(seq, (PROBE,), watch=(STATES,))])
    np.testing.assert_allclose(step.p[0], expected, atol=NEAR)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rolling_back_beyond_the_window_finds_everything_in_its_place(opened, name):
    backend = opened(name)
    first, long, other = (backend.fork(None) for _ in range(3))
    backend.forward([Extend(first, ids(10, 1))])
    backend.forward([Extend(long, ids(60))])
    # llama.cpp looks for room from the gap on, and would take entries of `long` that have left its windows.
    backend.free(first)
    backend.forward([Extend(other, ids(30, 2))])
    backend.truncate(long, 15)
    (step,) = backend.forward([Extend(long, (PROBE,), watch=(STATES,))])
    np.testing.assert_allclose(step.p[0], asked(backend, ids(60)[:15]), atol=NEAR)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_channels_share_a_prefix_and_do_not_see_each_other(opened, name):
    backend = opened(name)
    prefix, said, heard = ids(25), ids(9, 1), ids(7, 2)
    expected = asked(backend, prefix + heard)
    answer = backend.fork(None)
    backend.forward([Extend(answer, prefix)])
    channel = backend.fork(answer, len(prefix))
    assert backend.usage().kv_entries == len(prefix)
    backend.forward([Extend(answer, said), Extend(channel, heard[:3])])
    backend.free(answer)
    (step,) = backend.forward([Extend(channel, (*heard[3:], PROBE), watch=(STATES,))])
    np.testing.assert_allclose(step.p[0], expected, atol=NEAR)


@pytest.mark.parametrize("first", ["fork", "watch", "few"])
def test_a_text_in_the_prefill_cache_gives_the_same_results(opened, first):
    plain, apart = opened(**EXACT), opened(**EXACT, prefill_capacity=64)
    text, other = ids(40), ids(20, 1)
    found = []
    for backend in (plain, apart):
        speaker, reader = backend.fork(None), backend.fork(None)
        backend.forward([Extend(speaker, ids(5, 2), draw=Draw())])
        for start in range(0, 40, 20):
            batch = [Extend(reader, text[start : start + 20]), Extend(speaker, (7 + start,), draw=Draw())]
            assert num_passes(backend.forward(batch)) == (2 if backend is apart else 1)
        backend.truncate(reader, 33)
        if first == "few":
            backend.forward([Extend(reader, text[33:36])])
            backend.truncate(reader, 33)
        child = backend.fork(reader, 20) if first == "fork" else backend.fork(None)
        wanted = [Extend(child, (*other, PROBE), watch=(STATES,)), Extend(reader, (*other, PROBE), watch=(STATES,))]
        steps = backend.forward(wanted)
        assert num_passes(steps) == 1
        found.append([p for step in steps for p in step.p[0]])
        assert backend.length(reader) == 33 + 21
        assert backend.usage().kv_entries == 7 + 33 + 21 + 21
        backend.free(reader)
        backend.free(child)
        assert backend.usage().kv_entries == 7
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_what_does_not_fit_the_prefill_cache_is_read_in_the_shared_cache(opened):
    backend = opened(prefill_capacity=32)
    batch = [Extend(backend.fork(None), ids(20, n)) for n in range(2)]
    assert num_passes(backend.forward(batch)) == 2
    backend.forward([Extend(batch[0].seq, ids(20))])  # it outgrows the prefill cache
    assert backend.length(batch[0].seq) == 40
    again = Extend(backend.fork(None), ids(20))
    steps = backend.forward([Extend(batch[1].seq, (1,), draw=Draw()), again])
    assert num_passes(steps) == 2, "its place is free"


@pytest.mark.parametrize("flash", [True, False])
def test_with_flash_attention_only_the_prefill_cache_computes_tiles(opened, flash):
    backend = opened(capacity=256, flash_attention=flash, prefill_capacity=256)
    assert llama_cpp.llama_n_ubatch(backend._context) == (63 if flash else 256)
    assert llama_cpp.llama_n_ubatch(backend._prefill_cache.context) == 256


def test_a_failure_in_either_cache_undoes_both(opened, monkeypatch):
    backend = opened(prefill_capacity=64)
    speaker = backend.fork(None)
    backend.forward([Extend(speaker, ids(5))])
    reader = backend.fork(None)
    decode, left = llama_cpp.llama_decode, [0, 2]
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda *args: left.pop() or decode(*args))
    batch = [Extend(reader, ids(20)), Extend(speaker, (9,), draw=Draw())]
    with pytest.raises(EngineError):
        backend.forward(batch)
    left[:] = [2, 0]
    with pytest.raises(EngineError):
        backend.forward(batch)
    assert (backend.length(reader), backend.length(speaker)) == (0, 5)
    monkeypatch.undo()
    backend.forward(batch)
    (step,) = backend.forward([Extend(reader, (PROBE,), watch=(STATES,))])
    np.testing.assert_allclose(step.p[0], asked(backend, ids(20)), atol=NEAR)


@pytest.mark.parametrize(("name", "options"), [("llama", {}), ("gemma3", {}), ("llama", APART)])
def test_ten_thousand_operations_leak_nothing(opened, name, options):
    backend, chance = opened(name, max_seqs=5, **options), random.Random(0)
    held: dict[int, list[int]] = {}
    for _ in range(10_000):
        roll = chance.random()
        seq = chance.choice(list(held)) if held else None
        if seq is None or (roll < 0.2 and len(held) < 5):
            length = chance.randint(0, len(held[seq])) if seq is not None else 0
            held[backend.fork(seq, length)] = held[seq][:length] if seq is not None else []
        elif roll < 0.6:
            new = ids(chance.randint(1, 12), chance.randrange(50))
            try:
                backend.forward([Extend(seq, new)])
                held[seq] += new
            except (CacheFull, ContextOverflow):
                backend.free(seq)
                del held[seq]
        elif roll < 0.85:
            length = chance.randint(0, len(held[seq]))
            backend.truncate(seq, length)
            del held[seq][length:]
        else:
            backend.free(seq)
            del held[seq]
    for seq, tokens in held.items():  # what is still there is right, after all that
        assert backend.length(seq) == len(tokens)
    for seq in list(held)[1:]:
        backend.free(seq)
    seq, tokens = next(iter(held.items()))
    (step,) = backend.forward([Extend(seq, (PROBE,), watch=(STATES,))])
    backend.free(seq)
    np.testing.assert_allclose(step.p[0], asked(backend, tokens), atol=NEAR)
    assert backend.usage() == Usage(0, 0, 0)
    seq = backend.fork(None)
    backend.forward([Extend(seq, ids(128))])  # every entry can be used
    with pytest.raises(CacheFull):
        backend.forward([Extend(backend.fork(None), (5,))])


@pytest.fixture
def subject(files, monkeypatch):
    decode, calls = llama_cpp.llama_decode, []
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda *args: calls.append(1) or decode(*args))

    def of(name: str, *, has_lora: bool = False, **options) -> Subject:
        def opener(**limits) -> LlamaCppBackend:
            lora_path = lora_of(files[name]) if has_lora else None
            return LlamaCppBackend(files[name], threads=1, lora_path=lora_path, **options, **limits)

        # llama.cpp looks Gemma's activation up in a table of 16-bit numbers, and keeps 16 bits in flash attention.
        exact = options == EXACT and not name.startswith("gemma")
        tolerance = 1e-4 if exact else 1e-3 if options == EXACT else NEAR
        return Subject(opener, tolerance=tolerance, tie=10 * tolerance, num_passes=lambda _: len(calls))

    return of


@pytest.mark.parametrize(
    ("name", "options"),
    [("llama", {}), ("gemma3", {}), ("llama", APART), *((name, EXACT) for name in ARCHITECTURES)],
)
@pytest.mark.parametrize("check", [*CHECKS, check_one_pass_whatever_the_number_of_channels], ids=lambda c: c.__name__)
def test_the_contract_is_kept(subject, name, options, check):
    check(subject(name, **options))


def split(files, monkeypatch, **options) -> Subject:
    """Two caches on the same weights."""
    decode, calls = llama_cpp.llama_decode, []
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda *args: calls.append(1) or decode(*args))

    def opener(**limits) -> MultiCacheBackend:
        return open_caches(files["llama"], 2, threads=1, **EXACT, **options, **limits)

    return Subject(opener, num_passes=lambda _: len(calls))


@pytest.mark.parametrize("has_lora", [False, True])
@pytest.mark.parametrize("check", [*CHECKS, check_one_pass_whatever_the_number_of_channels], ids=lambda c: c.__name__)
def test_several_caches_keep_the_contract(files, monkeypatch, check, has_lora):
    check(split(files, monkeypatch, lora_path=lora_of(files["llama"]) if has_lora else None))


@pytest.mark.parametrize("has_lora", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_random_operations_in_several_caches_agree_with_the_reference(files, monkeypatch, seed, has_lora):
    monkeypatch.setattr("duologue.backends.llamacpp.backend.MIN_PREFILL", 2)
    model = tiny_model("llama")
    subject = split(files, monkeypatch, lora_path=lora_of(files["llama"]) if has_lora else None, **APART)
    twin = ReferenceBackend(model, rows=tiny_rows(), lora=tiny_lora(model) if has_lora else None)
    check_random_operations(subject, twin, seed=seed, num_operations=150)


def test_a_failed_decode_in_the_second_cache_undoes_the_first(files, monkeypatch):
    backend = open_caches(files["llama"], 2, threads=1, capacity=64, max_seqs=4, prefill_capacity=48)
    first, second, reader = (backend.fork(None) for _ in range(3))
    backend.forward([Extend(seq, ids(5), draw=Draw()) for seq in (first, second)])
    before, decode, calls = backend.usage(), llama_cpp.llama_decode, []
    batch = [Extend(first, ids(3, 1), draw=Draw()), Extend(reader, ids(20, 2)), Extend(second, ids(4, 3), draw=Draw())]
    for failing in (1, 2, 3):
        calls.clear()
        with monkeypatch.context() as patch:
            fail = lambda *args, n=failing: calls.append(1) or decode(*args) or 2 * (len(calls) == n)  # noqa: E731
            patch.setattr(llama_cpp, "llama_decode", fail)
            with pytest.raises(EngineError):
                backend.forward(batch)
        assert len(calls) == failing
        lengths = [backend.length(seq) for seq in (first, second, reader)]
        assert (backend.usage(), lengths) == (before, [5, 5, 0])
    steps = backend.forward(batch)
    assert num_passes(steps) == 3, "one of the second cache, and in the first also of what is read apart"
    watched = [Extend(first, (PROBE,), watch=(STATES,)), Extend(reader, (PROBE,), watch=(STATES,))]
    found = [step.p[0] for step in backend.forward(watched)]
    for seq in (first, reader):
        backend.free(seq)
    np.testing.assert_allclose(found[0], asked(backend, ids(5) + ids(3, 1)), atol=NEAR)
    np.testing.assert_allclose(found[1], asked(backend, ids(20, 2)), atol=NEAR)
    backend.close()


def test_several_caches_share_the_weights_and_the_last_one_releases_them(files, monkeypatch):
    loaded, freed = [], []
    load, free = llama_cpp.llama_model_load_from_file, llama_cpp.llama_model_free
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", lambda *args: loaded.append(1) or load(*args))
    monkeypatch.setattr(llama_cpp, "llama_model_free", lambda *args: freed.append(1) or free(*args))
    options = {"capacity": 64, "threads": 1, "lora_path": lora_of(files["llama"])}
    backend = open_caches(files["llama"], 3, **options)
    assert (len(loaded), len(freed)) == (1, 0)
    backend.close()
    backend.close()
    assert (len(loaded), len(freed)) == (1, 1)
    assert isinstance(open_caches(files["llama"], 1, **options), LlamaCppBackend)
    opened = iter([library.open_context] * 2)  # no memory for a third one

    def open_context(*args, **options) -> object:
        how = next(opened, None)
        if how is None:
            raise EngineError("no memory")
        return how(*args, **options)

    monkeypatch.setattr(library, "open_context", open_context)
    loaded.clear(), freed.clear()
    with pytest.raises(EngineError, match="no memory") as failed:
        open_caches(files["llama"], 3, **options)
    assert (len(loaded), len(freed)) == (1, 1), f"at once, not when nobody looks at {failed} any more"


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("seed", range(3))
def test_random_operations_agree_with_the_reference(subject, name, seed):
    twin = ReferenceBackend(tiny_model(name), rows=tiny_rows())
    check_random_operations(subject(name, **EXACT), twin, seed=seed)


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_with_a_prefill_cache_agree_with_the_reference(subject, monkeypatch, seed):
    monkeypatch.setattr("duologue.backends.llamacpp.backend.MIN_PREFILL", 2)
    twin = ReferenceBackend(tiny_model("llama"), rows=tiny_rows())
    check_random_operations(subject("llama", **EXACT, **APART), twin, seed=seed, num_operations=200)


@pytest.mark.parametrize("check", [*CHECKS, check_one_pass_whatever_the_number_of_channels], ids=lambda c: c.__name__)
def test_the_contract_is_kept_with_a_lora(subject, check):
    check(subject("llama", has_lora=True, **EXACT))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("seed", range(3))
def test_random_operations_with_a_lora_agree_with_the_reference(subject, name, seed):
    model = tiny_model(name)
    twin = ReferenceBackend(model, rows=tiny_rows(), lora=tiny_lora(model))
    check_random_operations(subject(name, has_lora=True, **EXACT), twin, seed=seed)


@pytest.mark.parametrize("options", [{}, EXACT], ids=["f16", "f32"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_lora_leaves_the_base_alone(subject, name, options):
    check_lora_leaves_the_base_alone(subject(name, has_lora=True, **options), subject(name, **options))


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_in_either_pass_undoes_both_and_takes_the_lora_off(opened, files, monkeypatch, failing):
    backend, plain = opened(lora_path=lora_of(files["llama"])), opened()
    seq, other = backend.fork(None), backend.fork(None)
    backend.forward([Extend(seq, ids(10))])
    before, decode, calls = backend.usage(), llama_cpp.llama_decode, []
    with monkeypatch.context() as patch:
        patch.setattr(
            llama_cpp, "llama_decode", lambda *args: calls.append(1) or decode(*args) or 2 * (len(calls) == failing)
        )
        with pytest.raises(EngineError):
            backend.forward([Extend(seq, (*ids(5, 1), PROBE), watch=(STATES,)), Extend(other, (7,), draw=Draw())])
    assert len(calls) == failing
    assert (backend.usage(), backend.length(seq), backend.length(other)) == (before, 10, 0)
    twin = plain.fork(None)
    plain.forward([Extend(twin, ids(10))])
    for b, s in ((backend, seq), (plain, twin)):
        b.forward([Extend(s, ids(5, 1))])
    extend = Extend(seq, ids(3, 2), watch=(tuple(range(20)),))
    assert backend.forward([extend]) == plain.forward([dataclasses.replace(extend, seq=twin)])


def test_a_lora_for_another_model_is_refused(files):
    with pytest.raises(AdapterMismatch, match="write_lora"):
        LlamaCppBackend(files["llama"], capacity=64, lora_path=lora_of(files["gemma3"]))
    with pytest.raises(AdapterMismatch, match="cannot apply"):
        LlamaCppBackend(files["llama"], capacity=64, lora_path=files["llama"])
    with pytest.raises(ModelNotFound):
        LlamaCppBackend(files["llama"], capacity=64, lora_path=Path("nowhere.gguf"))


def test_the_micro_batch_does_not_change_results(opened):
    whole, cut = opened(), opened(micro_batch=4)
    np.testing.assert_allclose(asked(whole, ids(50)), asked(cut, ids(50)), atol=NEAR)


def test_only_base_tokens_are_drawn(tmp_path):
    bare = write_tiny_gguf(tiny_model("llama"), "llama", tmp_path / "bare.gguf")
    loud = AdapterRows(probes=np.full((1, 32), 9, np.float32), states=np.full((4, 32), 9, np.float32))
    loud.states[1:3] *= -1  # whatever the hidden state, some of these rows are far above all others
    convert(bare, tmp_path / "loud.gguf", rows=loud)
    backend = LlamaCppBackend(tmp_path / "loud.gguf", capacity=64, threads=1)
    plain = LlamaCppBackend(bare, capacity=64, threads=1)
    assert backend.info.vocab_size == plain.info.vocab_size == VOCAB_SIZE
    for draw in (Draw(), Draw(Sampling(temperature=1.5), 0.999), Draw(Sampling(0.8, top_k=3, top_p=0.9), 0.7)):
        batch = ids(20)
        steps = [b.forward([Extend(b.fork(None), batch, draw=draw)]) for b in (backend, plain)]
        assert steps[0] == steps[1]
    backend.close()
    plain.close()


ILLEGAL = {
    "empty batch": (UsageError, lambda b, s: b.forward([])),
    "no tokens": (UsageError, lambda b, s: b.forward([Extend(s, ())])),
    "twice": (UsageError, lambda b, s: b.forward([Extend(s, (1,)), Extend(s, (2,))])),
    "id too large": (UsageError, lambda b, s: b.forward([Extend(s, (VOCAB_SIZE + 5,))])),
    "negative id": (UsageError, lambda b, s: b.forward([Extend(s, (-1,))])),
    "watched padding": (UsageError, lambda b, s: b.forward([Extend(s, (1,), watch=((VOCAB_SIZE + 5,),))])),
    "a state fed": (UsageError, lambda b, s: b.forward([Extend(s, (VOCAB_SIZE + 1,))])),
    "a probe watched": (UsageError, lambda b, s: b.forward([Extend(s, (1,), watch=((VOCAB_SIZE,),))])),
    "draw and watch": (UsageError, lambda b, s: b.forward([Extend(s, (1,), draw=Draw(), watch=((1,),))])),
    "unknown": (UnknownSeq, lambda b, s: b.forward([Extend(s, (1,)), Extend(99, (1,))])),
    "context": (ContextOverflow, lambda b, s: b.forward([Extend(s, ids(55))])),
    "capacity": (CacheFull, lambda b, s: b.forward([Extend(s, ids(50)), Extend(b.fork(None), ids(60))])),
    "truncate beyond": (UsageError, lambda b, s: b.truncate(s, 11)),
    "truncate below": (UsageError, lambda b, s: b.truncate(s, -1)),
    "fork beyond": (UsageError, lambda b, s: b.fork(s, 11)),
    "fork below": (UsageError, lambda b, s: b.fork(s, -1)),
    "fork of nothing": (UsageError, lambda b, s: b.fork(None, 1)),
    "fork unknown": (UnknownSeq, lambda b, s: b.fork(99, 0)),
    "free unknown": (UnknownSeq, lambda b, s: b.free(99)),
    "length unknown": (UnknownSeq, lambda b, s: b.length(99)),
    "free twice": (UnknownSeq, lambda b, s: (b.free(b.fork(None)), b.free(s + 1))),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_an_illegal_call_raises_and_changes_nothing(opened, case):
    error, call = ILLEGAL[case]
    backend = opened(context_length=60, capacity=100)
    seq = backend.fork(None)
    backend.forward([Extend(seq, ids(10))])
    before = backend.usage().kv_entries
    with pytest.raises(error):
        call(backend, seq)
    assert backend.usage().kv_entries == before
    assert backend.length(seq) == 10
    (step,) = backend.forward([Extend(seq, (PROBE,), watch=(STATES,))])
    backend.free(seq)
    np.testing.assert_allclose(step.p[0], asked(backend, ids(10)), atol=NEAR)


@pytest.mark.parametrize(("status", "error"), [(1, CacheFull), (2, EngineError), (-3, EngineError)])
def test_a_failed_decode_leaves_the_cache_as_it_was(opened, monkeypatch, status, error):
    backend, decode = opened(), llama_cpp.llama_decode
    first, second = backend.fork(None), backend.fork(None)
    backend.forward([Extend(first, ids(10))])
    before = backend.usage()
    with monkeypatch.context() as patch:
        # What llama.cpp leaves behind when it gives up after some of the work: the tokens are in the cache.
        patch.setattr(llama_cpp, "llama_decode", lambda *args: decode(*args) or status)
        with pytest.raises(error):
            backend.forward([Extend(first, ids(5, 1)), Extend(second, ids(5, 2))])
    assert backend.usage() == before
    steps = backend.forward(
        [Extend(first, (PROBE,), watch=(STATES,)), Extend(second, (*ids(10), PROBE), watch=(STATES,))]
    )
    np.testing.assert_allclose(steps[0].p[0], steps[1].p[0], atol=NEAR)


def test_names_are_never_used_twice_and_sequences_are_limited(opened):
    backend = opened(max_seqs=2)
    names = [backend.fork(None), backend.fork(None)]
    with pytest.raises(CacheFull, match="2 sequences are open"):
        backend.fork(None)
    for _ in range(20):
        backend.free(names[-1])
        names.append(backend.fork(None))
    assert len(set(names)) == len(names)


def test_a_closed_backend_says_so(opened):
    backend = opened()
    seq = backend.fork(None)
    backend.close()
    backend.close()
    for call in (lambda: backend.fork(None), lambda: backend.forward([Extend(seq, (1,))]), lambda: backend.free(seq)):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_contradicting_numbers_are_refused(files):
    for options in (
        {"max_seqs": 0},
        {"max_seqs": 1000},
        {"capacity": 1},
        {"context_length": 300, "capacity": 200},
        {"micro_batch": 0},
        {"threads": 0},
    ):
        with pytest.raises(UsageError):
            LlamaCppBackend(files["llama"], **options)


@pytest.mark.parametrize(
    ("key", "value"), [("base_vocab_size", 400), ("num_added", 50), ("num_probes", 6), ("num_cascade", 3)]
)
def test_a_file_whose_metadata_contradict_its_vocabulary_is_broken(tmp_path, files, key, value):
    data, start = files["llama"].read_bytes(), f"duologue.{key}".encode() + b"\x04\x00\x00\x00"
    before, after = data.split(start)
    (tmp_path / "odd.gguf").write_bytes(before + start + value.to_bytes(4, "little") + after[4:])
    with pytest.raises(BrokenModel, match="export it again"):
        LlamaCppBackend(tmp_path / "odd.gguf", capacity=64, threads=1)


def test_files_that_are_not_models_are_refused(tmp_path, files):
    with pytest.raises(ModelNotFound, match="no file"):
        LlamaCppBackend(tmp_path / "none.gguf")
    with pytest.raises(ModelNotFound, match="folder"):
        LlamaCppBackend(tmp_path)
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(BrokenModel, match="not a GGUF file"):
        LlamaCppBackend(tmp_path / "text.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(BrokenModel):
        LlamaCppBackend(tmp_path / "empty.gguf")
    for share in (0.1, 0.5, 0.9):
        cut = shutil.copy(files["llama"], tmp_path / "cut.gguf")
        with open(cut, "r+b") as file:
            file.truncate(int(files["llama"].stat().st_size * share))
        with pytest.raises(BrokenModel, match="incomplete"):
            LlamaCppBackend(cut)


def test_an_unknown_architecture_is_unsupported(tmp_path):
    writer = GGUFWriter(tmp_path / "odd.gguf", "perceptron")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match="perceptron"):
        LlamaCppBackend(tmp_path / "odd.gguf")


def test_llama_cpp_is_silent(files, capfd):
    LlamaCppBackend(files["llama"], capacity=64).close()
    assert capfd.readouterr() == ("", "")
