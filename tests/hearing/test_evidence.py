"""What a sound tells beyond its words, and the soft tokens that an adapter makes of it."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from duologue.errors import AdapterMismatch, UsageError
from duologue.hearing.evidence import NUM_BESIDE, PIECES_S, pooled
from duologue.hearing.projection import SoundProjection
from duologue.models.adapters import Adapter
from duologue.testing.tiny_models import WIDTH, tiny_rows
from duologue.types import InputState

RATE = 16_000
ENCODER = 6  # width of the encoder
K, F = len(PIECES_S), ENCODER + NUM_BESIDE
CHANCE = np.random.default_rng(0)


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(np.arange(int(seconds * RATE)) * 0.06)).astype(np.float32)


def encoded(seconds: float) -> np.ndarray:
    """Frame t is t everywhere, so that means tell which frames they were taken from."""
    return np.repeat(np.arange(round(seconds * 50), dtype=np.float32)[:, None], ENCODER, 1)


def projection(**changes: np.ndarray) -> SoundProjection:
    parts = {"down": (5, F), "offset": (5,), "up": (K, WIDTH, 5), "bias": (K, WIDTH)}
    made = {name: CHANCE.normal(size=shape).astype(np.float32) for name, shape in parts.items()}
    return SoundProjection(**{**made, **changes})


def test_pieces_end_where_the_sound_does_though_the_encoding_goes_on() -> None:
    found = pooled(encoded(10.0), tone(2.0), RATE)
    assert found.shape == (K, F)
    ends = np.cumsum([0, *(round(piece * 50) for piece in PIECES_S)]) + 100 - round(sum(PIECES_S) * 50)
    assert found[:, 0] == pytest.approx([(a + b - 1) / 2 for a, b in pairwise(ends)])


def test_levels_are_relative_so_that_gain_and_clipping_aside_nothing_changes() -> None:
    quiet, loud = (pooled(encoded(2.0), tone(2.0, level), RATE) for level in (0.01, 0.9))
    np.testing.assert_allclose(quiet, loud, atol=1e-4)
    far_too_loud = pooled(encoded(2.0), np.clip(tone(2.0, 50.0), -1, 1), RATE)
    assert np.isfinite(far_too_loud).all()


def test_a_pause_is_heard_as_one() -> None:
    sound = np.concatenate([tone(1.6), np.zeros(int(0.4 * RATE), np.float32)])
    voiced = pooled(encoded(2.0), sound, RATE)[:, -1]
    assert voiced.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_silence_has_features_but_no_voice() -> None:
    found = pooled(encoded(1.0), np.zeros(RATE, np.float32), RATE)
    assert np.isfinite(found).all()
    assert not found[:, -1].any()


def test_a_short_sound_leaves_its_early_pieces_empty() -> None:
    found = pooled(encoded(1.0), tone(0.3), RATE)
    assert not found[:2].any()
    assert found[3].any()


@pytest.mark.parametrize(
    ("sound", "frames", "why"),
    [
        (np.zeros(10, np.float32), 50, "shorter than a frame"),
        (np.full(RATE, np.nan, np.float32), 50, "not finite"),
        (np.full(RATE, np.inf, np.float32), 50, "not finite"),
        (tone(2.0), 50, "50 encoded frames do not cover a sound of 100 frames"),
    ],
)
def test_what_cannot_be_heard_is_refused(sound: np.ndarray, frames: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        pooled(np.zeros((frames, ENCODER), np.float32), sound, RATE)


def test_rows_are_bounded_however_large_the_features() -> None:
    made = projection()
    rows = made.rows(np.full((K, F), 1e30, np.float32))
    assert rows.shape == (K, WIDTH)
    assert rows.dtype == np.float32
    limit = np.abs(made.up).sum(2) + np.abs(made.bias)
    assert (np.abs(rows) <= limit + 1e-4).all()


@pytest.mark.parametrize("shape", [(K, F + 1), (K - 1, F), (F,)])
def test_features_of_another_recogniser_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="trained with another recogniser"):
        projection().rows(np.zeros(shape, np.float32))


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UsageError, match="not finite"):
        projection().rows(np.full((K, F), np.nan, np.float32))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"down": np.zeros((4, F), np.float32)}, "has shapes"),
        ({"bias": np.zeros((K + 1, WIDTH), np.float32)}, "has shapes"),
        ({"offset": np.full(5, np.nan, np.float32)}, "not finite"),
    ],
)
def test_a_broken_projection_is_refused(changes: dict[str, np.ndarray], why: str) -> None:
    with pytest.raises(AdapterMismatch, match=why):
        projection(**changes)


def adapter(sound: SoundProjection | None) -> Adapter:
    return Adapter("rows", tuple(InputState), tiny_rows(timing=True), sound=sound, name="tiny")


def test_an_adapter_keeps_its_projection(tmp_path: Path) -> None:
    made = projection()
    adapter(made).save(tmp_path)
    read = Adapter.load(tmp_path).sound
    assert read is not None
    features = CHANCE.normal(size=(K, F)).astype(np.float32)
    np.testing.assert_array_equal(read.rows(features), made.rows(features))
    adapter(None).save(tmp_path)
    assert Adapter.load(tmp_path).sound is None
    assert "sound" not in json.loads((tmp_path / "adapter.json").read_text())


def test_a_file_that_lacks_a_part_of_the_projection_is_refused(tmp_path: Path) -> None:
    adapter(projection()).save(tmp_path)
    tensors = load_file(tmp_path / "adapter.safetensors")
    del tensors["sound.up"]
    save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(AdapterMismatch, match=r"has the matrices \['bias', 'down', 'offset'\]"):
        Adapter.load(tmp_path)


def test_a_projection_of_another_width_is_refused() -> None:
    with pytest.raises(UsageError, match="soft tokens of another width"):
        adapter(projection(up=np.zeros((K, 8, 5), np.float32), bias=np.zeros((K, 8), np.float32)))
