"""Damaged adapter folders raise `AdapterMismatch` and nothing else."""

import contextlib
import copy
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duologue.backends.lora import Factors, Lora
from duologue.backends.rows import AdapterRows
from duologue.core.policy import Thresholds
from duologue.errors import AdapterMismatch
from duologue.models.adapters import Adapter, Fingerprint
from duologue.types import InputState
from soak import size

NUM_EXAMPLES = size(150, 50_000)
SETTINGS = settings(
    max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["rows", "alora", "prompted", "process", "any", 1e308, 10**400]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


def an_adapter() -> Adapter:
    random = np.random.default_rng(0)
    layer = Factors(random.normal(size=(2, 8)).astype("f4"), random.normal(size=(8, 2)).astype("f4"))
    return Adapter(
        "alora",
        tuple(InputState),
        rows=AdapterRows(random.normal(size=(1, 8)).astype("f4"), random.normal(size=(4, 8)).astype("f4")),
        lora=Lora({"layers.0.self_attn.q_proj": layer}, 2.0),
        thresholds={"any": (Thresholds(process=0.4), Thresholds(process=0.6))},
        fingerprint=Fingerprint(300, 8, 2, "0123"),
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """`adapter.json` and the tensors of a sound adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    an_adapter().save(folder)
    return json.loads((folder / "adapter.json").read_text()), (folder / "adapter.safetensors").read_bytes()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*path, key), *places(inner, (*path, key)))]


def read(folder: Path) -> None:
    with contextlib.suppress(AdapterMismatch):
        Adapter.load(folder)


@SETTINGS
@given(data=st.data())
def test_changed_json(sound: tuple[dict[str, Any], bytes], tmp_path: Path, data: st.DataObject) -> None:
    content = copy.deepcopy(sound[0])
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(content)))
        inner = content
        for key in path:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[last] = data.draw(VALUES)
        else:
            del inner[last]
        if not places(content):
            break
    (tmp_path / "adapter.safetensors").write_bytes(sound[1])
    (tmp_path / "adapter.json").write_text(json.dumps(content))
    read(tmp_path)


@SETTINGS
@given(data=st.data())
def test_changed_tensors(sound: tuple[dict[str, Any], bytes], tmp_path: Path, data: st.DataObject) -> None:
    """The header of a safetensors file is JSON as well: names, types, shapes and offsets change."""
    content, raw = sound
    length = struct.unpack_from("<Q", raw)[0]
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    *path, last = data.draw(st.sampled_from(places(header)))
    inner = header
    for key in path:
        inner = inner[key]
    kinds = st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", [8, 4], [0, 0], [2**62, 4]])
    inner[last] = data.draw(st.one_of(VALUES, kinds))
    if data.draw(st.booleans()):
        body = data.draw(st.sampled_from([body[:-1], body + b"\0", b"\xff" * len(body), body[::-1]]))
    text = json.dumps(header).encode()
    length = data.draw(st.sampled_from([len(text), len(text), len(text) + 1, 2**40, 2**64 - 1]))
    (tmp_path / "adapter.safetensors").write_bytes(struct.pack("<Q", length) + text + body)
    (tmp_path / "adapter.json").write_text(json.dumps(content))
    read(tmp_path)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting(sound: tuple[dict[str, Any], bytes], tmp_path: Path, opening: str) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(sound[1])
    (tmp_path / "adapter.json").write_text('{"format": 1, "training": ' + opening * 200_000)
    with pytest.raises(AdapterMismatch, match=r"adapter\.json is damaged"):
        Adapter.load(tmp_path)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    adapter = an_adapter()
    assert adapter.rows is not None
    adapter.rows.states[1, 3] = np.nan
    adapter.save(tmp_path)
    with pytest.raises(AdapterMismatch, match="not finite"):
        Adapter.load(tmp_path)
