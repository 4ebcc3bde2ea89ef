"""LoRAs as values, as files, and with the default model on both backends."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from duologue.backends.llamacpp.gguf_lora import cached_lora, write_lora
from duologue.backends.lora import Factors, Lora
from duologue.backends.rows import AdapterRows
from duologue.core.backend import Extend
from duologue.core.config import SessionConfig
from duologue.engine.engine import Engine
from duologue.engine.trace import Trace
from duologue.errors import AdapterMismatch, UnsupportedModel, UsageError
from duologue.models.adapters import Adapter, shipped
from duologue.models.catalogue import DEFAULT
from duologue.models.model import Model, load
from duologue.testing.tiny_models import tiny_lora, tiny_model, tiny_rows
from duologue.types import InputState, Role, Turn
from tiny_gguf import write_tiny_gguf

STATES = tuple(InputState)
LAYER = "layers.0.self_attn.q_proj"


def factors(a: tuple[int, ...], b: tuple[int, ...], dtype: Any = np.float32) -> Factors:
    return Factors(np.ones(a, dtype), np.ones(b, dtype))


def random_adapter(dtype: Any = np.float32) -> Adapter:
    lora = tiny_lora(tiny_model("llama"))
    layers = {path: Factors(pair.a.astype(dtype), pair.b.astype(dtype)) for path, pair in lora.layers.items()}
    return Adapter("alora", STATES, rows=tiny_rows(), lora=Lora(layers, 1.5), name="random")


@pytest.mark.parametrize(
    ("layers", "scale", "message"),
    [
        ({}, 1.0, "at least one layer"),
        ({"x": factors((2, 3), (4, 2))}, 0.0, "scale 0.0"),
        ({"x": factors((2, 3), (4, 2))}, float("nan"), "scale nan"),
        ({"x": factors((2, 3), (4, 3))}, 1.0, r"\(2, 3\) and \(4, 3\)"),
        ({"x": factors((2,), (4, 2))}, 1.0, "shapes"),
        ({"x": factors((2, 3), ())}, 1.0, "shapes"),
        ({"x": factors((0, 3), (4, 0))}, 1.0, "shapes"),
        ({"x": factors((2, 3), (4, 2)), "y": factors((1, 3), (4, 1))}, 1.0, "'y'.*same R"),
        ({"x": factors((2, 3), (4, 2), np.float64)}, 1.0, "float64"),
    ],
)
def test_an_invalid_lora_is_refused(layers: dict[str, Factors], scale: float, message: str) -> None:
    with pytest.raises(AdapterMismatch, match=message):
        Lora(layers, scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_lora_is_saved_and_loaded_bit_for_bit(tmp_path: Path, dtype: Any) -> None:
    adapter = random_adapter(dtype)
    adapter.save(tmp_path)
    again = Adapter.load(tmp_path)
    assert again.kind == "alora"
    assert again.lora is not None
    assert adapter.lora is not None
    assert (again.lora.rank, again.lora.scale) == (4, 1.5)
    assert list(again.lora.tensors()) == sorted(adapter.lora.tensors())
    for name, matrix in adapter.lora.tensors().items():
        assert again.lora.tensors()[name].dtype == dtype
        assert np.array_equal(again.lora.tensors()[name], matrix)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("half a pair", "incomplete"),
        ("another name", "unknown names"),
        ("no scale", "scale"),
        ("no LoRA", "needs LoRA"),
    ],
)
def test_a_damaged_lora_is_refused(tmp_path: Path, what: str, message: str) -> None:
    random_adapter().save(tmp_path)
    tensors = load_file(tmp_path / "adapter.safetensors")
    content = json.loads((tmp_path / "adapter.json").read_text())
    if what == "half a pair":
        del tensors[f"lora.{LAYER}.b"]
    elif what == "another name":
        tensors[f"lora.{LAYER}.c"] = tensors[f"lora.{LAYER}.a"]
    elif what == "no scale":
        del content["lora"]["scale"]
    else:
        content["lora"] = None
        tensors = {name: tensors[name] for name in ("probes", "states")}
    save_file(tensors, tmp_path / "adapter.safetensors")
    (tmp_path / "adapter.json").write_text(json.dumps(content))
    with pytest.raises(AdapterMismatch, match=message):
        Adapter.load(tmp_path)


def test_lora_and_kind_must_agree() -> None:
    lora = random_adapter().lora
    with pytest.raises(UsageError, match="has no LoRA"):
        Adapter("rows", STATES, rows=tiny_rows(), lora=lora)
    with pytest.raises(UsageError, match="needs LoRA"):
        Adapter("alora", STATES, rows=tiny_rows())
    with pytest.raises(UsageError, match="needs rows"):
        Adapter("alora", STATES, lora=lora)


def test_a_gguf_lora_has_the_names_the_scale_and_the_order_of_its_model(tmp_path: Path) -> None:
    source = write_tiny_gguf(tiny_model("llama"), "llama", tmp_path / "tiny.gguf")
    lora = tiny_lora(tiny_model("llama"))
    write_lora(source, lora, tmp_path / "lora.gguf", invocation=(300,))
    reader = GGUFReader(tmp_path / "lora.gguf")
    assert reader.fields["adapter.lora.alpha"].contents() == pytest.approx(2.0 * 4)
    assert reader.fields["adapter.alora.invocation_tokens"].contents() == [300]
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == 2 * len(lora.layers)
    pair = lora.layers[LAYER]  # four heads of eight rows; the fifth row of a head stands behind the first
    assert np.array_equal(tensors["blk.0.attn_q.weight.lora_a"], pair.a)
    assert np.array_equal(tensors["blk.0.attn_q.weight.lora_b"][:4], pair.b[[0, 4, 1, 5]])
    down = lora.layers["layers.1.mlp.down_proj"]
    assert np.array_equal(tensors["blk.1.ffn_down.weight.lora_b"], down.b)


def test_a_gguf_lora_is_refused_where_it_would_be_wrong(tmp_path: Path) -> None:
    source = write_tiny_gguf(tiny_model("llama"), "llama", tmp_path / "tiny.gguf")
    target = tmp_path / "lora.gguf"
    pair = tiny_lora(tiny_model("llama")).layers[LAYER]
    for path, message in (("layers.9.self_attn.q_proj", "does not have"), ("layers.0.mlp.up_proj", "32 inputs and 32")):
        with pytest.raises(AdapterMismatch, match=message):
            write_lora(source, Lora({path: pair}, 1.0), target)
    # An architecture whose order of rows is not known: its queries are refused, the rest is not.
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(source.read_bytes().replace(b"llama.", b"plamo."))
    odd.write_bytes(odd.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0plamo"))
    with pytest.raises(UnsupportedModel, match="order"):
        write_lora(odd, Lora({LAYER: pair}, 1.0), target)
    write_lora(odd, Lora({"layers.0.self_attn.o_proj": pair}, 1.0), target)


def test_a_lora_is_written_to_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOLOGUE_CACHE", str(tmp_path))
    source = write_tiny_gguf(tiny_model("llama"), "llama", tmp_path / "tiny.gguf")
    lora, other = tiny_lora(tiny_model("llama")), tiny_lora(tiny_model("llama"), seed=1)
    path = cached_lora(source, lora)
    written = path.stat().st_mtime_ns
    assert cached_lora(source, lora) == path
    assert path.stat().st_mtime_ns == written
    assert cached_lora(source, other) != path
    assert cached_lora(source, Lora(lora.layers, 0.5)) != path


# -- the default model -------------------------------------------------------------------------------------------------


def shipped_on_default_model(kind: str) -> Adapter:
    return next(one for one in shipped() if (one.name, one.kind) == ("SmolLM2-135M-Instruct", kind))


def on_default_model() -> Adapter:
    """The shipped rows with a random LoRA on every kind of layer, which changes decisions."""
    random, base = np.random.default_rng(0), shipped_on_default_model("alora")
    width, kv, inner = 576, 192, 1536
    shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width)}
    shapes |= {"self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.down_proj": (width, inner)}
    layers = {}
    for path, (high, wide) in ((f"layers.{i}.{kind}", shape) for i in range(30) for kind, shape in shapes.items()):
        a, b = random.normal(0.0, wide**-0.5, (4, wide)), random.normal(0.0, 0.25, (high, 4))
        layers[path] = Factors(a.astype(np.float16), b.astype(np.float16))
    return Adapter("alora", base.states, rows=base.rows, lora=Lora(layers, 2.0), fingerprint=base.fingerprint)


def judged(model: Model) -> Any:
    """Probabilities of the states after some words, [B, S]."""
    backend, rows = model.backend, []
    for text in ("what is the weather like in paris", "i was going to", "she told him the bus was late", "stop"):
        ids = model.template.render([Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "Hello."), Turn(Role.USER, text)])
        seq = backend.fork(None)
        backend.forward([Extend(seq, ids[:-4])])
        rows.append(backend.forward([Extend(seq, ids[-4:] + model.probe.tokens, watch=model.probe.groups)])[0].p[0])
        backend.free(seq)
    return np.array(rows)


@pytest.mark.smollm2
@pytest.mark.llamacpp
@pytest.mark.filterwarnings("ignore")  # of the reader of GGUF files
def test_on_the_default_model_llama_cpp_decides_as_torch() -> None:
    adapter, said = on_default_model(), []
    torch.set_num_threads(1)
    for backend, weights, chosen in (
        ("torch", "f32", adapter),
        ("llamacpp", "F16", adapter),
        ("llamacpp", "F16", shipped_on_default_model("alora")),
    ):
        model = load(DEFAULT, backend=backend, weights=weights, adapter=chosen, context_length=256, threads=1)
        said.append(judged(model))
        model.close()
    assert np.abs(said[1] - said[0]).max() < 0.02
    assert np.abs(said[2] - said[0]).max() > 0.2  # the LoRA matters


@pytest.mark.smollm2
@pytest.mark.llamacpp
def test_the_trace_counts_the_passes_of_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    model = load(DEFAULT, backend="llamacpp", adapter=on_default_model(), context_length=256, threads=1)
    assert model.backend.info.probe_passes == 1
    decode, calls = llama_cpp.llama_decode, []
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda *args: calls.append(1) or decode(*args))
    trace = Trace()
    session = model.session(config=SessionConfig(max_answer=12))
    engine = Engine(model.backend)
    talk = engine.open(session, sink=trace)
    talk.hear("tell me a story", utterance="a", final=True)
    talk.respond()
    for step in range(12):
        if step in (4, 7):
            talk.hear("and then " * step, utterance=f"{step}", final=True)
        engine.tick()
    engine.close()
    model.close()
    assert trace.decisions.total() >= 2
    assert trace.num_passes == engine.totals.passes == len(calls)
    assert trace.num_judged == trace.num_judged_apart == engine.totals.judged == engine.totals.judged_apart
    assert trace.num_judged >= trace.decisions.total()
    assert trace.num_passes > 12


@pytest.mark.smollm2
@pytest.mark.llamacpp
@pytest.mark.filterwarnings("ignore")  # of the reader of GGUF files
def test_a_cascade_of_the_default_model_spares_passes_on_llama_cpp_alone() -> None:
    alora = on_default_model()
    rows = shipped_on_default_model("rows")
    assert rows.rows is not None
    first = replace(rows, rows=AdapterRows(rows.rows.probes, rows.rows.states), facts={})
    assert alora.rows is not None
    alora = replace(alora, rows=AdapterRows(alora.rows.probes, alora.rows.states))

    def found(backend: str, adapter: Adapter, limit: float | None = None) -> np.ndarray:
        weights = "F16" if backend == "llamacpp" else "f32"
        chosen = adapter if limit is None else replace(adapter, cascade=first, cascade_limit=limit)
        model = load(DEFAULT, backend=backend, adapter=chosen, context_length=256, threads=1, weights=weights)
        assert model.backend.info.cascade_limit == (limit if backend == "llamacpp" else None)
        p = judged(model)
        model.close()
        return p

    of_rows, of_lora = found("llamacpp", first), found("llamacpp", alora)
    limit = float(np.median(of_rows.max(1)))
    is_sure = of_rows.max(1) >= limit
    assert 0 < is_sure.sum() < len(is_sure)
    expected = np.where(is_sure[:, None], of_rows, of_lora)
    np.testing.assert_allclose(found("llamacpp", alora, limit), expected, atol=0.01)
    np.testing.assert_array_equal(found("torch", alora, limit), found("torch", alora))
