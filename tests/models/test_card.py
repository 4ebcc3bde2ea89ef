"""The card of an adapter says what `adapter.json` says, and never replaces one that somebody wrote."""

from dataclasses import replace
from pathlib import Path

import pytest

from duologue.models.adapters import Adapter, shipped
from duologue.models.card import card, write_card


@pytest.fixture(params=["alora", "rows"])
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return next(one for one in shipped() if one.kind == request.param)


def test_a_card_has_the_figures_of_the_training(adapter: Adapter) -> None:
    text = card(adapter)
    held_out = adapter.facts["dev"]["all"]
    assert f"| all | {held_out['n']} | {100 * held_out['answer_f1']:.1f} |" in text
    assert f"{sum(adapter.facts['samples'].values())} samples" in text
    assert all(f"| {source} |" in text for source in adapter.facts["sources"])
    assert f"`{adapter.fingerprint.tokenizer}`" in text if adapter.fingerprint else False
    idle, speaking = adapter.thresholds["any"]
    assert all(f"{each.of(state):.2f}" in text for each in (idle, speaking) for state in adapter.states)


def test_a_card_begins_with_the_header_of_the_hub(adapter: Adapter) -> None:
    named = replace(adapter, facts={**adapter.facts, "base": "owner/model: a"})
    _, header, _ = card(named).split("---\n", 2)
    assert header.splitlines()[:2] == ["library_name: duologue", 'base_model: "owner/model: a"']
    assert f"- {adapter.kind}" in header
    assert "license" not in header
    assert "base_model" not in card(replace(adapter, facts={**adapter.facts, "base": "/home/me/model"}))


def test_an_adapter_without_figures_has_a_card(adapter: Adapter) -> None:
    text = card(replace(adapter, facts={}, thresholds={}))
    assert "## Use" in text
    assert "## Evaluation" not in text
    assert "## Thresholds" not in text


def test_a_comparison_is_stated(adapter: Adapter) -> None:
    facts = {"compared": {"adapter": {"mean_recall": 0.931}, "prompted": {"mean_recall": 0.25}}}
    assert "93.1; the same model prompted: 25.0" in card(replace(adapter, facts={**adapter.facts, **facts}))


def test_names_of_files_stay_in_their_cells(adapter: Adapter) -> None:
    text = card(replace(adapter, facts={**adapter.facts, "sources": {"a|b\n# c": 3}}))
    assert "| a\\|b # c | 3 |" in text


def test_a_card_is_written_again_but_not_over_another(adapter: Adapter, tmp_path: Path) -> None:
    write_card(adapter, tmp_path)
    path = tmp_path / "README.md"
    assert path.read_text(encoding="utf-8").startswith(card(adapter))
    write_card(replace(adapter, facts={}), tmp_path)
    assert path.read_text(encoding="utf-8").startswith(card(replace(adapter, facts={})))
    path.write_text("# Mine\n", encoding="utf-8")
    write_card(adapter, tmp_path)
    assert path.read_text(encoding="utf-8") == "# Mine\n"
