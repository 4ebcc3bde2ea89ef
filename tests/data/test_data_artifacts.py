"""Artifacts that give the classes away are found, and nothing is found where there is nothing."""

import json
import random

import pytest

from duologue.data.report import ArtifactReport, find_artifacts, form_features, length_features, word_features
from duologue.data.samples import Sample
from duologue.errors import BadData
from duologue.types import InputState

PROCESS, IGNORE, INCOMPLETE = InputState.PROCESS, InputState.IGNORE, InputState.INCOMPLETE
WORDS = ("lamp", "boat", "river", "stone", "paper", "candle", "window", "ladder", "kettle", "garden", "mirror", "tent")


def mixed(num: int, give_away: str = "", seed: int = 0) -> list[Sample]:
    """Random words under random labels; `give_away` lets one thing depend on the label."""
    rng = random.Random(seed)
    samples = []
    for _ in range(num):
        state = rng.choice([PROCESS, IGNORE])
        words = [rng.choice(WORDS) for _ in range(rng.randint(3, 9))]
        if give_away == "word" and rng.random() < 0.9:
            words[1] = "please" if state is PROCESS else "yesterday"
        if give_away == "length":
            words = words[:3] if state is PROCESS else [*words, "stone", "stone", "paper", "boat", "lamp", "tent"]
        text = " ".join(words)
        if give_away == "form" and state is PROCESS:
            text = text.capitalize() + "?"
        samples.append(Sample(text, state, "made"))
    return samples


def balanced(report: ArtifactReport) -> dict[str, float]:
    return {name: getattr(report, name).balanced_accuracy for name in ("words", "length", "form")}


def test_labels_by_chance_cannot_be_guessed() -> None:
    report = find_artifacts(mixed(4000))
    for found in (report.words, report.length, report.form):
        assert found.chance == 0.5
        assert abs(found.balanced_accuracy - 0.5) < 0.04
        assert abs(found.accuracy - found.majority) < 0.05


@pytest.mark.parametrize(
    ("give_away", "guesser", "blind"),
    [("word", "words", {"form"}), ("length", "length", {"form"}), ("form", "form", {"words"})],
)
def test_a_tell_is_seen_by_the_guesser_that_looks_for_it(give_away: str, guesser: str, blind: set[str]) -> None:
    found = balanced(find_artifacts(mixed(2000, give_away)))
    assert found[guesser] > 0.9
    assert all(found[name] < 0.56 for name in blind)


def test_telling_words_are_named_for_their_class() -> None:
    telling = find_artifacts(mixed(2000, "word")).telling
    assert telling["process"][0] == "please"
    assert telling["ignore"][0] == "yesterday"
    assert "yesterday" not in telling["process"]


def test_equal_words_are_in_one_half() -> None:
    """Labels that are a function of the text alone can only be learned by heart, which must not help."""
    rng = random.Random(3)
    texts = [f"the {rng.choice(WORDS)} number{i} of {rng.choice(WORDS)}" for i in range(300)]
    labels = {text: rng.choice([PROCESS, IGNORE]) for text in texts}
    forms = (str, str.capitalize, lambda text: text + ".", lambda text: text.upper() + "!")
    samples = [Sample(form(text), labels[text], "made") for text in texts for form in forms]
    assert find_artifacts(samples).words.balanced_accuracy < 0.6


def test_a_rare_class_counts_as_much_as_a_common_one() -> None:
    rare = [Sample(f"so then {word} {other} and", INCOMPLETE, "made") for word in WORDS for other in WORDS]
    samples = [*mixed(1900), *rare]
    words = find_artifacts(samples).words
    assert words.recall["incomplete"] == 1.0
    assert words.balanced_accuracy == pytest.approx(sum(words.recall.values()) / 3)
    assert words.chance == pytest.approx(1 / 3)


def test_the_seed_decides_the_halves() -> None:
    samples = mixed(500, "word")
    assert find_artifacts(samples, 1) == find_artifacts(samples, 1)
    assert find_artifacts(samples, 1) != find_artifacts(samples, 2)


def test_the_report_is_plain_json() -> None:
    report = find_artifacts(mixed(300, "word"))
    row = json.loads(json.dumps(report.to_json()))
    assert set(row) == {"num_train", "num_test", "words", "length", "form", "telling"}
    assert row["num_train"] + row["num_test"] == 300
    assert row["words"]["balanced_accuracy"] == round(report.words.balanced_accuracy, 4)


@pytest.mark.parametrize("samples", [[], [Sample("hello there", PROCESS, "made")] * 9, mixed(1)])
def test_one_class_cannot_be_told_apart(samples: list[Sample]) -> None:
    with pytest.raises(BadData, match="two classes"):
        find_artifacts(samples)


def test_each_guesser_sees_only_its_own_side_of_a_text() -> None:
    assert word_features("Turn IT on, please?") == word_features("turn it on please")
    assert form_features("turn it on") == form_features("where are they now my dear")
    assert length_features("Turn it on") == length_features("pace by it")
    assert form_features("Turn it on") != form_features("turn it on")
    assert length_features("a b") != length_features("a b c")
