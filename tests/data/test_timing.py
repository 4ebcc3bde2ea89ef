"""Turns for `duologue eval timing` are cut at their joints, and come from what no training has seen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from duologue.data.dataset import DatasetBuilder
from duologue.data.recipes import Recipe
from duologue.data.timing import timing_samples
from duologue.evaluation.timing import read_timing
from duologue.types import Role
from lines import write_sources

RECIPE = Recipe(unseen=frozenset({"desk", "moves"}), num_test=8)
TURN = "We moved to a house by the lake. The old lamp is broken, so we want another one. Where is the shop?"
HEADS = ["by the lake", "lamp is broken", "want another one", "where is the shop"]


def add(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").strip()


def test_a_turn_gives_its_beginnings_and_its_end(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    add(sources / "queries" / "desk.jsonl", [{"id": "d-1", "text": TURN, "kind": "assistant_query"}])
    found = list(timing_samples(sources, RECIPE))
    assert [sample.ends for sample in found] == [False, False, False, True]
    assert [sample.kind for sample in found] == ["joint", "joint", "joint", "end"]
    for sample, head in zip(found, HEADS, strict=True):
        assert plain(sample.text).endswith(head)
    assert {(sample.source, sample.context) for sample in found} == {("desk", ())}


def test_a_built_folder_has_them(tmp_path: Path) -> None:
    sources, out = write_sources(tmp_path / "sources"), tmp_path / "out"
    recipe = replace(RECIPE, unseen=frozenset({"desk", "market"}), num_samples=60, num_dev=20)
    DatasetBuilder(sources, out, recipe).build()
    assert not (out / "timing.jsonl").exists(), "no turn has a joint"
    add(
        sources / "queries" / "desk.jsonl",
        [{"id": f"d-{i}", "text": f"{TURN[:-1]} {i}?", "kind": "assistant_query"} for i in range(9)],
    )
    DatasetBuilder(sources, tmp_path / "other", recipe).build()
    assert len(read_timing(tmp_path / "other" / "timing.jsonl").samples) == 4 * recipe.num_test // 2


def test_dialogues_give_turns_of_documents_that_are_held_out(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    turns = [("user", "i need a {} of lamp"), ("assistant", "Which size?"), ("user", TURN), ("assistant", "Here.")]
    rows = [
        {"id": f"l-{i}", "turns": [{"role": role, "text": text.format(i)} for role, text in turns]} for i in range(60)
    ]
    add(sources / "dialogues" / "lamps.jsonl", rows)
    found = [sample for sample in timing_samples(sources, RECIPE) if sample.source == "lamps"]
    assert 0 < len(found) <= 4 * RECIPE.num_test // 2
    assert all([turn.role for turn in sample.context] == [Role.USER, Role.ASSISTANT] for sample in found)
    unseen = Recipe(unseen=frozenset({"desk", "lamps"}), num_test=200)
    assert len([sample for sample in timing_samples(sources, unseen) if sample.source == "lamps"]) == 60 * 4


def test_what_was_said_before_is_the_context(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    row = {"id": "m-1", "text": TURN, "kind": "correction", "before": "Which house?"}
    other = {"id": "m-2", "text": TURN, "kind": "human_question"}
    add(sources / "hard" / "moves.jsonl", [row, other])
    found = list(timing_samples(sources, RECIPE))
    assert len(found) == 4
    assert all(sample.context[-1].text == "Which house?" for sample in found)
    path = tmp_path / "timing.jsonl"
    add(path, [sample.to_json() for sample in found])
    assert read_timing(path).samples == tuple(found)
