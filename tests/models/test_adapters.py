"""Adapter folders, matching with a model, prompted adapters, and shipped adapters."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from duologue.backends.lora import Factors, Lora
from duologue.backends.rows import AdapterRows
from duologue.core.policy import Thresholds
from duologue.errors import AdapterMismatch, UsageError
from duologue.models.adapters import Adapter, Fingerprint, prompted, shipped, shipped_for
from duologue.text.template import Template
from duologue.types import InputState
from scripted import ByteTokenizer

STATES = tuple(InputState)
PRINT = Fingerprint(vocab_size=300, hidden_size=8, num_layers=2, tokenizer="0123")


def an_adapter(*, timing: bool = False, seed: int = 0) -> Adapter:
    random = np.random.default_rng(seed)
    rows = AdapterRows(*(random.normal(size=(num, 8)).astype(np.float32) for num in ((2, 4, 2) if timing else (2, 4))))
    return Adapter(
        "rows",
        STATES,
        rows=rows,
        thresholds={
            "any": (Thresholds(process=0.4), Thresholds(process=0.6)),
            "q4_0": (Thresholds(stop=0.2), Thresholds(stop=0.3)),
        },
        fingerprint=PRINT,
        name="a model",
        facts={"samples": 3},
    )


def test_an_adapter_is_saved_and_loaded(tmp_path: Path) -> None:
    adapter = an_adapter()
    adapter.save(tmp_path / "new" / "folder")
    again = Adapter.load(tmp_path / "new" / "folder")
    assert (again.kind, again.states, again.fingerprint, again.name) == ("rows", STATES, PRINT, "a model")
    assert again.thresholds == adapter.thresholds
    assert again.facts == {"samples": 3}
    assert adapter.rows is not None
    assert again.rows is not None
    assert np.array_equal(again.rows.probes, adapter.rows.probes)
    assert np.array_equal(again.rows.states, adapter.rows.states)


def test_a_timing_pair_is_saved_and_loaded(tmp_path: Path) -> None:
    adapter = an_adapter(timing=True)
    adapter.save(tmp_path)
    again = Adapter.load(tmp_path)
    assert again.rows is not None
    assert adapter.rows is not None
    np.testing.assert_array_equal(again.rows.timing, adapter.rows.timing)
    assert (again.has_timing, again.num_added, again.states) == (True, 8, STATES)
    assert again.rows.token_names(STATES)[-3:] == ["<|stop|>", "<|goes_on|>", "<|ends|>"]
    assert not an_adapter().has_timing
    assert not prompted().has_timing


def with_cascade(**changes: Any) -> Adapter:
    lora = Lora({"layers.0.mlp.up_proj": Factors(np.ones((2, 8), np.float32), np.ones((9, 2), np.float32))}, 2.0)
    cascade = {"cascade": an_adapter(seed=1), "cascade_limit": 0.75}
    return replace(an_adapter(), **{"kind": "alora", "lora": lora, **cascade, **changes})


def test_a_cascade_is_saved_and_loaded_with_its_adapter(tmp_path: Path) -> None:
    adapter = with_cascade()
    adapter.save(tmp_path)
    again = Adapter.load(tmp_path)
    assert again.cascade is not None
    assert (again.cascade_limit, again.cascade.kind, again.num_added) == (0.75, "rows", 6)
    for found, expected in zip(again.cascade.rows.shapes, adapter.cascade.rows.shapes, strict=True):
        assert found == expected
    np.testing.assert_array_equal(again.cascade.rows.outputs, an_adapter(seed=1).rows.outputs)
    template = Template.from_tokenizer(ByteTokenizer())
    assert again.probe_for(300, template) == an_adapter().probe_for(300, template), "sessions know nothing of it"
    alone = Adapter.load(tmp_path, cascade=False)
    assert (alone.cascade, alone.cascade_limit) == (None, None)
    alone.save(tmp_path)
    assert Adapter.load(tmp_path).cascade is None, "what is left in the folder is not read"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cascade": None}, "both its rows and a limit"),
        ({"cascade_limit": None}, "both its rows and a limit"),
        ({"cascade_limit": 1.5}, "from 0 to 1"),
        ({"kind": "rows", "lora": None}, "no LoRA that a cascade could spare"),
        ({"cascade": an_adapter(timing=True)}, "another adapter"),
        ({"cascade": replace(an_adapter(), fingerprint=replace(PRINT, tokenizer="9"))}, "another adapter"),
        ({"cascade": replace(an_adapter(), states=STATES[::-1])}, "another adapter"),
        ({"cascade": with_cascade(cascade=None, cascade_limit=None)}, "another adapter"),
    ],
)
def test_a_cascade_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_cascade(**changes)


def test_half_of_a_cascade_is_refused(tmp_path: Path) -> None:
    for what, message in (
        ("cascade/adapter.safetensors", "cannot be read.*copy the whole adapter folder"),
        ("cascade/adapter.json", "not an adapter folder.*train rows --into"),
        ("adapter.safetensors", "copy the whole adapter folder"),
    ):
        folder = tmp_path / what.replace("/", "-")
        with_cascade().save(folder)
        (folder / what).unlink()
        with pytest.raises(AdapterMismatch, match=message):
            Adapter.load(folder)
    folder = tmp_path / "other"
    with_cascade().save(folder)
    an_adapter(timing=True).save(folder / "cascade")
    with pytest.raises(AdapterMismatch, match="another adapter"):
        Adapter.load(folder)
    with_cascade().save(tmp_path / "endless")
    shutil.rmtree(tmp_path / "endless" / "cascade")
    (tmp_path / "endless" / "cascade").symlink_to(tmp_path / "endless")
    with pytest.raises(AdapterMismatch):
        Adapter.load(tmp_path / "endless")


def test_added_ids_follow_the_base_vocabulary() -> None:
    probe = an_adapter().probe_for(300, Template.from_tokenizer(ByteTokenizer()))
    assert probe.tokens == (300, 301)
    assert probe.watch == (302, 303, 304, 305)
    assert probe.states == STATES
    assert probe.groups == ((302, 303, 304, 305),)
    timed = an_adapter(timing=True).probe_for(300, Template.from_tokenizer(ByteTokenizer()))
    assert (timed.watch, timed.timing) == (probe.watch, (306, 307))
    assert timed.groups == (timed.watch, timed.timing)


def test_thresholds_go_by_weight_type_and_fall_back() -> None:
    adapter = an_adapter()
    assert adapter.thresholds_for("Q4_0") == (Thresholds(stop=0.2), Thresholds(stop=0.3))
    assert adapter.thresholds_for("bf16") == (Thresholds(process=0.4), Thresholds(process=0.6))
    assert prompted().thresholds_for("bf16") == (Thresholds(), Thresholds())


def test_another_model_is_refused_with_what_differs() -> None:
    adapter = an_adapter()
    adapter.check(PRINT)
    with pytest.raises(AdapterMismatch, match=r"hidden_size 9 \(adapter: 8\)") as caught:
        adapter.check(Fingerprint(300, 9, 2, "0123"))
    assert "num_layers" not in str(caught.value)
    prompted().check(PRINT)


def test_the_fingerprint_depends_on_how_a_tokenizer_splits() -> None:
    class Other(ByteTokenizer):
        def encode(self, text: str, *, special: bool = False) -> list[int]:
            return super().encode(text.lower(), special=special)

    def of(tokenizer: ByteTokenizer) -> Fingerprint:
        return Fingerprint.of(tokenizer, vocab_size=300, hidden_size=8, num_layers=2)

    assert of(ByteTokenizer()) == of(ByteTokenizer())
    assert of(ByteTokenizer()) != of(Other())


DAMAGE = {
    "gone": "is not an adapter folder: No such file",
    "not json": "is damaged: (Expecting|Unterminated)",
    "newer": "has format 99; this version of duologue reads format 1",
    "no rows": r"adapter\.safetensors cannot be read: .*copy the whole adapter folder again",
    "torn rows": r"adapter\.safetensors cannot be read: .*copy the whole adapter folder again",
    "wrong rows": "is damaged: UsageError: 4 state rows for 3 states",
    "no timing rows": r"contains \['probes', 'states'\]; expected \['probes', 'states', 'timing'\]",
    "odd timing rows": r"has shapes \[\(2, 8\), \(4, 8\), \(3, 8\)\]; expected .* \[2, D\] for timing",
    "bad state": "is damaged: ValueError: 'maybe' is not a valid InputState",
}


@pytest.mark.parametrize(("what", "message"), DAMAGE.items())
def test_a_damaged_folder_is_refused(tmp_path: Path, what: str, message: str) -> None:
    an_adapter().save(tmp_path)
    path, tensors = tmp_path / "adapter.json", tmp_path / "adapter.safetensors"
    content = json.loads(path.read_text())
    if what == "gone":
        path.unlink()
    elif what == "not json":
        path.write_text(path.read_text()[:50])
    elif what == "newer":
        path.write_text(json.dumps({**content, "format": 99}))
    elif what == "no rows":
        tensors.unlink()
    elif what == "torn rows":
        tensors.write_bytes(tensors.read_bytes()[:40])
    elif what == "wrong rows":
        path.write_text(json.dumps({**content, "states": {"process": 2, "incomplete": 3, "ignore": 4}}))
    elif what == "bad state":
        path.write_text(json.dumps({**content, "states": {"maybe": 1}}))
    else:
        path.write_text(json.dumps({**content, "timing": [6, 7]}))
        if what == "odd timing rows":
            save_file({**load_file(tensors), "timing": np.zeros((3, 8), np.float32)}, tensors)
    with pytest.raises(AdapterMismatch, match=message):
        Adapter.load(tmp_path)


def test_rows_and_kind_must_agree() -> None:
    with pytest.raises(UsageError, match="needs rows"):
        Adapter("rows", STATES)
    with pytest.raises(UsageError, match="has no rows"):
        Adapter("prompted", STATES, rows=an_adapter().rows)
    with pytest.raises(UsageError, match="no adapter kind"):
        Adapter("magic", STATES)


@pytest.mark.parametrize("shots", [0, 5])
def test_a_prompted_adapter_asks_in_words_after_the_turn_and_reads_before_the_answer(shots: int) -> None:
    template = Template.from_tokenizer(ByteTokenizer())
    adapter = prompted(template, STATES, shots=shots)
    probe = adapter.probe_for(300, template)
    assert probe.tokens[: len(template.user_close)] == template.user_close
    assert probe.tokens[-len(template.header) :] == template.header
    asked = template.tokenizer.decode(probe.tokens)
    assert asked.count("Example:") == shots
    assert [template.tokenizer.decode([token]) for token in probe.watch] == ["A", "B", "C", "D"]
    assert all(token < 300 for token in (*probe.tokens, *probe.watch))


def test_a_prompted_adapter_works_with_the_three_states_of_the_paper(tmp_path: Path) -> None:
    template = Template.from_tokenizer(ByteTokenizer())
    adapter = prompted(template, STATES[:3], shots=5)
    adapter.save(tmp_path)
    again = Adapter.load(tmp_path)
    assert again.probe_for(300, template) == adapter.probe_for(300, template)
    assert "stop" not in template.tokenizer.decode(again.probe_for(300, template).tokens)
    with pytest.raises(UsageError, match="0 or 5"):
        prompted(template, STATES, shots=2)


def test_every_shipped_adapter_loads_and_is_found_by_its_model() -> None:
    adapters = shipped()
    assert sorted((adapter.name, adapter.kind) for adapter in adapters) == [
        ("Qwen2.5-Coder-0.5B-Instruct", "alora"),
        ("SmolLM2-135M-Instruct", "alora"),
        ("SmolLM2-135M-Instruct", "rows"),
    ]
    for adapter in adapters:
        assert adapter.fingerprint is not None
        found = shipped_for(adapter.fingerprint, adapter.kind)
        assert found is not None
        assert found.kind == adapter.kind
        assert adapter.thresholds
        assert adapter.facts["dev"]["all"]["n"] > 500
    assert shipped_for(PRINT, "rows") is None
