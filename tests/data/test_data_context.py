"""Labels in context: replies, words over an answer, sources that are held back, and what is near to a test."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from duologue.data import forms, phrases
from duologue.data.build import SampleBuilder
from duologue.data.corpus import Pools, part_of
from duologue.data.dataset import DatasetBuilder
from duologue.data.near import NearTexts
from duologue.data.recipes import Recipe
from duologue.data.samples import Sample, read_samples
from duologue.types import InputState, Role, Turn
from lines import write_sources

PROCESS, INCOMPLETE, IGNORE, STOP = InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE, InputState.STOP
UNSEEN = frozenset({"desk", "market", "icsi_meeting_acts", "disfl_qa"})
RECIPE = Recipe(num_samples=1500, num_dev=120, num_test=30, unseen=UNSEEN)


def add(sources: Path, name: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows to a file of `sources`."""
    path = sources / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": f"{path.stem}-{number}", **row}) + "\n" for number, row in enumerate(rows))


def turns_of_a_shop() -> list[dict[str, object]]:
    """Turns of customers, half of them behind a question."""
    asked = [
        {"text": text, "before": f"Which {thing} is it?", "kind": "assistant_turn", "doc": f"call {thing} {text}"}
        for thing in ("lamp", "tent", "drum", "boat", "globe", "piano")
        for text in ("the green one", "number nine", "it has two handles", "no idea")
    ]
    told = [
        {
            "text": f"my {thing} was sent to the wrong house and nobody has called me since",
            "kind": "assistant_turn",
            "doc": f"note {thing}",
        }
        for thing in ("lamp", "tent", "drum", "boat", "globe", "piano", "mirror", "ladder", "sledge", "shovel")
    ]
    return asked + told


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sources(tmp_path_factory.mktemp("shop"))
    add(folder, "queries/shop", turns_of_a_shop())
    return folder


@pytest.fixture(scope="module")
def samples(sources: Path) -> list[Sample]:
    return list(SampleBuilder(Pools(sources, RECIPE, "train"), RECIPE, "train").samples(RECIPE.num_samples))


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("Sure. For which day?", True),
        ('Did you say "ten"? ', True),
        ("Please give me the number of the flat.", True),
        ("Let me know when you are there.", True),
        ("Is it warm? I hope so.", False),
        ("You can pay later.", False),
        ("", False),
    ],
)
def test_an_assistant_asks_by_the_end_of_its_turn(text: str, asks: bool) -> None:
    assert forms.asks(text) is asks


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("I want a tent. It must be light.", ["I want a tent."]),
        ("i want a light tent and it must not be green", ["i want a light tent"]),
        ("what does the tent cost", []),
        ("bread and butter", []),
    ],
)
def test_a_turn_has_a_joint_where_it_could_have_ended(text: str, heads: list[str]) -> None:
    parts = forms.words(text)
    assert [" ".join(parts[:n]) for n in forms.joints(text)] == heads


def test_turns_that_lean_on_the_turn_before_do_not_stand_alone() -> None:
    assert forms.stands_alone("my parcel was left in the rain")
    assert not forms.stands_alone("yes that would be very kind")
    assert not forms.stands_alone("the green one")


def test_a_recogniser_errs_in_a_word_or_two_of_longer_texts() -> None:
    rng = random.Random(0)
    text = "put the biggest kettle on my shopping list"
    found = {forms.misrecognised(text, rng) for _ in range(50)}
    assert len(found) > 20
    assert all(len(set(text.split()) - set(each.split())) <= 4 for each in found)
    assert forms.misrecognised("stop talking now", rng) == "stop talking now"


def test_a_reply_is_processed_whatever_its_form(samples: list[Sample]) -> None:
    replies = [sample for sample in samples if sample.kind == "reply"]
    assert {sample.source for sample in replies} == {"own", "shop"}
    assert all(sample.state is PROCESS and sample.is_asked and not sample.accept for sample in replies)
    assert min(len(sample.text.split()) for sample in replies) == 1


def test_behind_a_question_few_words_are_background_and_these_are_long(samples: list[Sample]) -> None:
    asked = [sample for sample in samples if sample.is_asked]
    shares = Counter(sample.state for sample in asked)
    assert shares[PROCESS] / len(asked) > 0.45
    assert shares[IGNORE] / len(asked) < 0.25
    talk = [sample for sample in asked if sample.kind == "background"]
    assert talk
    assert all(len(sample.text.split()) >= 6 for sample in talk)  # a recogniser may lose a word


def test_half_a_reply_waits_for_the_rest(samples: list[Sample]) -> None:
    halves = [sample for sample in samples if sample.kind == "half_reply"]
    assert halves
    assert all(sample.state is INCOMPLETE and sample.ends is False for sample in halves)


def test_who_asks_for_a_moment_is_waited_for(samples: list[Sample]) -> None:
    moments = [sample for sample in samples if sample.kind == "moment"]
    assert moments
    assert all(sample.is_asked and sample.state is INCOMPLETE and PROCESS not in sample.right for sample in moments)
    silent = [sample for sample in samples if sample.state is STOP and not sample.speaking]
    assert not [sample for sample in silent if forms.spoken(sample.text) in phrases.PAUSES]


def test_over_an_answer_the_user_steers_wants_in_and_is_echoed(samples: list[Sample]) -> None:
    by_kind = {kind: [s for s in samples if s.kind == kind] for kind in ("steering", "wants_in", "echo", "backchannel")}
    assert all(by_kind.values())
    assert all(sample.speaking for found in by_kind.values() for sample in found)
    assert {sample.state for sample in by_kind["steering"]} == {PROCESS}
    assert {sample.state for sample in by_kind["wants_in"]} == {STOP}
    for sample in by_kind["echo"]:
        heard = forms.spoken(sample.context[-1].text)
        assert set(sample.text.lower().split()) & set(heard.split())
    assert not [sample for sample in by_kind["backchannel"] if "?" in sample.context[-1].text[-80:]]


def test_a_joint_is_a_whole_request_of_a_turn_that_goes_on(samples: list[Sample]) -> None:
    joints = [sample for sample in samples if sample.kind == "joint"]
    assert joints
    assert all(sample.right == {PROCESS, INCOMPLETE} and sample.ends is False for sample in joints)
    whole = {sample.ends for sample in samples if sample.kind in ("query", "reply", "steering", "statement")}
    assert whole == {True}
    assert {sample.ends for sample in samples if sample.state in (IGNORE, STOP)} == {None}


def test_turns_that_are_cut_at_a_joint_come_whole_as_well(samples: list[Sample]) -> None:
    parts = Counter(sample.source for sample in samples if sample.kind == "joint")
    whole = {s.source for s in samples if s.state is PROCESS and s.ends and forms.joints(s.text)}
    assert parts
    assert {source for source, num in parts.items() if num >= 3} <= whole


def test_slots_of_our_own_lines_are_filled(samples: list[Sample]) -> None:
    assert not [sample.text for sample in samples if "{" in sample.text]


def test_customers_state_their_case(samples: list[Sample]) -> None:
    told = [sample for sample in samples if sample.kind == "statement"]
    assert {sample.state for sample in told} == {PROCESS}
    assert "shop" in {sample.source for sample in told}


def test_whole_sources_are_held_back_to_calibrate_on(sources: Path) -> None:
    recipe = replace(RECIPE, calibration=frozenset({"garden", "harbour"}))
    found = {
        split: {
            sample.source
            for sample in SampleBuilder(Pools(sources, recipe, split), recipe, split).samples(200)
            if sample.kind in ("query", "background", "background_cut", "cut")
        }
        for split in ("train", "dev")
    }
    assert found["dev"] & {"kitchen", "garden", "train", "harbour"} == {"garden", "harbour"}
    assert not found["train"] & recipe.calibration


def test_turns_follow_their_dialogue_into_its_split(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    opening = next(text for n in range(99) if part_of(text := f"where is the {n}th anchor") > 0.9)
    talk = [("user", opening), ("assistant", "In the shed. Anything else?"), ("user", "a rope"), ("assistant", "Fine.")]
    add(sources, "dialogues/ships", [{"id": "ships-7", "turns": [{"role": role, "text": text} for role, text in talk]}])
    rows = [{"id": f"ships-7-{n}", "text": f"rope {n}", "before": "Which?", "kind": "assistant_turn"} for n in range(9)]
    add(sources, "queries/ships", rows)
    for split, num in (("train", 0), ("dev", 0), ("test", 9)):
        assert len(Pools(sources, RECIPE, split).replies.get("ships", ())) == num


def test_texts_are_near_if_most_of_their_content_words_are_the_same() -> None:
    near = NearTexts(["Where do the grey whales sleep in the cold winter months?", "play some jazz", "yes please"])
    for text in (
        "where do grey whales sleep in cold winter months",
        "Play some jazz!",
        "where grey whales sleep cold winter months then",
    ):
        assert text in near
    for text in ("where do the blue whales sing in the warm summer", "play some folk", "yes please", ""):
        assert text not in near


def test_what_is_near_to_the_test_is_not_trained_on(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "sources")
    copied = "can you show me the oldest wooden bridge of the whole valley"
    add(sources, "queries/desk", [{"text": copied, "kind": "assistant_query"}])
    rows = [
        {"id": f"k{n}", "text": f"{copied}{end}", "kind": "assistant_query"} for n, end in enumerate(("", " please"))
    ]
    add(sources, "queries/kitchen", rows * 40)
    DatasetBuilder(sources, tmp_path / "out", replace(RECIPE, num_samples=300)).build()
    texts = [sample.text.lower() for sample in read_samples(tmp_path / "out" / "train.jsonl")]
    assert not [text for text in texts if "oldest wooden bridge of the whole valley" in text]


def test_lines_of_the_test_are_in_no_other_section() -> None:
    ours = {forms.spoken(line) for line in phrases.unseen() if len(line.split()) > 4}
    others = [line for name, lines in phrases.sections().items() if not name.startswith("unseen_") for line in lines]
    assert not [line for line in others if forms.spoken(line) in ours]


def test_sources_of_one_family_weigh_as_much_as_one_source(sources: Path) -> None:
    recipe = replace(RECIPE, families=(frozenset({"garden", "shop"}),), in_context=0.0)
    alone, together = (
        Counter(
            s.source for s in SampleBuilder(Pools(sources, r, "train"), r, "train").samples(600) if s.kind == "query"
        )
        for r in (replace(recipe, families=()), recipe)
    )
    assert together["kitchen"] / together["garden"] == pytest.approx(alone["kitchen"] / alone["garden"], rel=0.5)


def test_a_running_answer_may_be_known_by_its_turn_alone(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    before = "The boat leaves at nine from the old harbour and is back at noon."
    switches = [
        {"text": f"what about a bus {n}", "before": before, "kind": "topic_switch", "doc": f"s{n}"} for n in range(60)
    ]
    add(sources, "hard/assistant_switches", switches)
    later = [
        {
            "text": f"and how heavy is number {n}",
            "earlier": ["show all the boats"],
            "kind": "assistant_turn",
            "doc": f"b{n}",
        }
        for n in range(60)
    ]
    add(sources, "queries/boats", later)
    builder = SampleBuilder(Pools(sources, RECIPE, "train"), RECIPE, "train")
    scenes = [builder.scene(in_context=True, speaking=True) for _ in range(200)]
    known = {scene.source: scene for scene in scenes}
    assert before.startswith(known["assistant_switches"].last)
    assert known["boats"].context[0] == Turn(Role.USER, "show all the boats")
    assert {scene.speaking for scene in scenes} == {True}
