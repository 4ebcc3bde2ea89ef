"""GGUF files that apply the LoRA at the probe themselves: exactness, the contract, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from duologue.backends.llamacpp.backend import LlamaCppBackend
from duologue.backends.llamacpp.gguf_convert import convert
from duologue.backends.llamacpp.gguf_facts import read_facts
from duologue.backends.llamacpp.gguf_lora import write_lora
from duologue.backends.llamacpp.gguf_one_pass import write_one_pass
from duologue.backends.lora import Lora, adapter_digest
from duologue.cli.main import main
from duologue.core.backend import Draw, Extend, Step
from duologue.errors import AdapterMismatch, UnsupportedModel, UsageError
from duologue.models.adapters import Adapter, prompted
from duologue.models.catalogue import DEFAULT
from duologue.models.model import load
from duologue.models.opening import separate_lora
from duologue.testing.contract import (
    CHECKS,
    Subject,
    check_one_pass_whatever_the_number_of_channels,
    ids,
)
from duologue.testing.tiny_models import VOCAB_SIZE, tiny_lora, tiny_model, tiny_rows
from duologue.types import InputState
from tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.llamacpp

ROWS, LORA = tiny_rows(timing=True), tiny_lora(tiny_model("llama"))
PROBE, STATES, TIMING = VOCAB_SIZE, tuple(range(VOCAB_SIZE + 1, VOCAB_SIZE + 5)), (VOCAB_SIZE + 5, VOCAB_SIZE + 6)
EXACT = {"kv_type": "f32", "flash_attention": False, "threads": 1}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tiny_model("llama"), "llama", tmp_path_factory.mktemp("gguf") / "llama.gguf")


@pytest.fixture(scope="module")
def one_pass(bare: Path) -> Path:
    """A file with the LoRA; the one without it is beside it, as "rows.gguf"."""
    out = bare.with_name("one-pass.gguf")
    convert(bare, bare.with_name("rows.gguf"), rows=ROWS)
    write_one_pass(bare.with_name("rows.gguf"), LORA, out, digest=adapter_digest(ROWS, LORA))
    return out


def judged(backend: LlamaCppBackend) -> list[Step]:
    """Probes of some sequences beside an answer, in one call, and then the next token of one, rolled back."""
    seqs = [backend.fork(None) for _ in range(3)]
    answer = backend.fork(None)
    backend.forward([Extend(answer, ids(8, 6))])
    batch = [Extend(seq, (*ids(seed, 9), PROBE), watch=(STATES, TIMING)) for seed, seq in enumerate(seqs)]
    steps = backend.forward([*batch, Extend(answer, ids(9, 2), draw=Draw())])
    backend.truncate(seqs[0], 9)
    steps += backend.forward([Extend(seqs[0], ids(10, 1), draw=Draw())])
    backend.close()
    return steps


@pytest.mark.parametrize(("weights", "targets"), [(None, ""), (None, "q_proj"), ("Q8_0", ""), ("Q4_0", "down_proj")])
def test_decisions_and_answers_are_those_of_two_passes(
    bare: Path, tmp_path: Path, weights: str | None, targets: str
) -> None:
    lora = Lora({path: pair for path, pair in LORA.layers.items() if path.endswith(targets)}, LORA.scale)
    rows, factors, out = (tmp_path / name for name in ("rows.gguf", "lora.gguf", "out.gguf"))
    convert(bare, rows, weights=weights, rows=ROWS)
    write_lora(bare, lora, factors)
    write_one_pass(rows, lora, out, digest="0123")
    one = judged(LlamaCppBackend(out, capacity=128, **EXACT))
    two = judged(LlamaCppBackend(rows, lora_path=factors, capacity=128, **EXACT))
    plain = judged(LlamaCppBackend(rows, capacity=128, **EXACT))
    for step, expected in zip(one, two, strict=True):
        assert step.tokens == expected.tokens
        assert step.margin == pytest.approx(expected.margin, abs=1e-4)
        for got, wanted in zip(step.p, expected.p, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-4 if weights is None else 4e-4)
    assert max(abs(a.p[0][0] - b.p[0][0]) for a, b in zip(one[:3], plain, strict=False)) > 0.01, "the LoRA matters"
    assert [step.is_apart for step in one] == [False] * 5
    assert [step.is_apart for step in two] == [True] * 3 + [False] * 2
    before, after = read_facts(rows), read_facts(out)
    assert (after.architecture, after.one_pass, before.one_pass) == ("graniteswitch", "0123", None)
    assert (after.base_vocab_size, after.num_added, after.num_layers) == (VOCAB_SIZE, 7, before.num_layers)


@pytest.mark.parametrize("check", [*CHECKS, check_one_pass_whatever_the_number_of_channels], ids=lambda c: c.__name__)
def test_a_one_pass_file_keeps_the_contract(
    one_pass: Path, check: Callable[[Subject], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import llama_cpp

    decode, calls = llama_cpp.llama_decode, []
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda *args: calls.append(1) or decode(*args))
    check(Subject(lambda **limits: LlamaCppBackend(one_pass, **EXACT, **limits), num_passes=lambda _: len(calls)))


def test_models_unlike_llama_are_refused(bare: Path, tmp_path: Path) -> None:
    for name in ("qwen2", "gemma3"):
        other = write_tiny_gguf(tiny_model(name), name, tmp_path / f"{name}.gguf")
        convert(other, tmp_path / "rows.gguf", rows=ROWS)
        with pytest.raises(UnsupportedModel, match=f"architecture {name}.*models like Llama only"):
            write_one_pass(tmp_path / "rows.gguf", LORA, tmp_path / "out.gguf", digest="")
    with pytest.raises(UsageError, match="no rows of an adapter"):
        write_one_pass(bare, LORA, tmp_path / "out.gguf", digest="")
    assert not (tmp_path / "out.gguf").exists()


def test_matrices_of_different_types_cannot_become_one(bare: Path, tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFReader

    convert(bare, tmp_path / "rows.gguf", weights="Q8_0", rows=ROWS)
    convert(bare, tmp_path / "other.gguf", weights="F16", rows=ROWS)
    assert GGUFReader(tmp_path / "rows.gguf").tensors[1].tensor_type != GGMLQuantizationType.F32
    mixed = _with_values_of(tmp_path / "rows.gguf", tmp_path / "other.gguf", tmp_path / "mixed.gguf")
    with pytest.raises(UnsupportedModel, match=r"blk\.0 have different types \(F16, Q8_0\).*--weights"):
        write_one_pass(mixed, LORA, tmp_path / "out.gguf", digest="")


def _with_values_of(path: Path, other: Path, out: Path) -> Path:
    """The file at `path` with the matrices for values of another."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader, values = GGUFReader(path), {tensor.name: tensor for tensor in GGUFReader(other).tensors}
    writer = GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        chosen = values[tensor.name] if "attn_v" in tensor.name else tensor
        writer.add_tensor(chosen.name, chosen.data, raw_dtype=chosen.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_a_file_is_loaded_with_its_own_adapter_only() -> None:
    adapter = Adapter("alora", tuple(InputState), rows=ROWS, lora=LORA)
    own = adapter_digest(ROWS, LORA)
    assert separate_lora(Path("f.gguf"), None, adapter) is LORA
    assert separate_lora(Path("f.gguf"), own, adapter) is None
    assert separate_lora(Path("f.gguf"), own, prompted()) is None
    others = (
        Adapter("alora", tuple(InputState), rows=tiny_rows(timing=True, seed=3), lora=LORA),
        Adapter("alora", tuple(InputState), rows=ROWS, lora=Lora(LORA.layers, 1.0)),
        Adapter("alora", tuple(InputState), rows=ROWS, lora=tiny_lora(tiny_model("llama"), seed=4)),
        Adapter("rows", tuple(InputState), rows=ROWS),
    )
    for other in others:
        with pytest.raises(AdapterMismatch, match=r"f\.gguf is a one-pass file of another adapter"):
            separate_lora(Path("f.gguf"), own, other)


@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")  # of the reader of GGUF files
def test_the_command_exports_the_default_model_and_it_decides_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    command = ["export", "--format", "gguf", "--one-pass", "--weights", "F16", "--tokens", "256", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "no added token wins" in said
    assert "It applies the LoRA itself" in said
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    found = []
    for name, weights in ((str(out), None), (DEFAULT, "F16")):
        model = load(name, backend="llamacpp", adapter="alora", weights=weights, context_length=256, threads=1)
        words = model.template.user("what is the weather like", first=True)
        seq = model.backend.fork(None)
        watched = Extend(seq, (*model.template.begin, *words, *model.probe.tokens), watch=model.probe.groups)
        (step,) = model.backend.forward([watched])
        assert step.is_apart == bool(model.backend.info.probe_passes) == (name == DEFAULT)
        found.append(step.p[0])
        model.close()
    np.testing.assert_allclose(*found, atol=0.01)
    with pytest.raises(AdapterMismatch, match="one-pass file of another adapter"):
        load(str(out), backend="llamacpp", adapter="rows", context_length=256, threads=1)
    for options, message in ((["--adapter", "rows"], "has no LoRA"), (["--format", "hf"], "--format hf")):
        assert main([*command[:-1], str(tmp_path / "other"), *options]) == 2
        assert message in capsys.readouterr().err
