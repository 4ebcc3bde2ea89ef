"""Mandarin samples: lines and rules of their own, the same labels in the same places as in English."""

import json
import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from duologue.data import forms, mandarin, phrases
from duologue.data.build import SampleBuilder
from duologue.data.corpus import SPLITS, Pools, files_by_language
from duologue.data.dataset import DatasetBuilder
from duologue.data.device_directed import device_directed
from duologue.data.near import NearTexts
from duologue.data.recipes import Recipe
from duologue.data.samples import Sample, read_samples
from duologue.errors import BadData, UsageError
from duologue.text.words import words_of
from duologue.types import InputState
from lines import write_sources

PROCESS, INCOMPLETE, IGNORE, STOP = InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE, InputState.STOP
PLANTS = ("月季", "茉莉", "绿萝", "吊兰", "芦荟", "文竹", "海棠", "杜鹃", "兰花", "薄荷")
ROOMS = ("阳台", "走廊", "教室", "门厅", "院子", "车间")
ASKED = ("{}的{}多久浇一次水", "请问{}适合养{}吗", "帮我把{}里的{}记到清单上", "怎么给{}换盆，{}要什么土？")
SAID = ("我们昨天把{}边上的{}搬走了。", "{}那盆{}不是早就送人了吗？", "他说{}的{}开花了，可好看了。")
ANSWER = "{}需要充足的光照，浇水不要太勤。夏天要注意通风，冬天记得搬进屋里。您的{}现在有几片叶子？"


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_mandarin(folder: Path, language: str = "zh") -> Path:
    """Write Mandarin sources into the folders of `language` of `folder`; "": into these folders themselves."""
    pairs = [(room, plant) for room in ROOMS for plant in PLANTS]
    for number, name in enumerate(("huahui", "tingyuan")):
        texts = [text.format(*pair) for text in ASKED[number::2] for pair in pairs]
        rows = [{"id": f"{name}-{i}", "text": text, "kind": "assistant_query"} for i, text in enumerate(texts)]
        write(folder / "queries" / language / f"{name}.jsonl", rows)
    rows = [
        {"id": f"j-{i}", "text": text.format(*pair), "doc": f"j{i // 3}"}
        for text in SAID
        for i, pair in enumerate(pairs)
    ]
    write(folder / "background" / language / "jiachang.jsonl", rows)
    talks: list[dict[str, object]] = []
    for i, (room, plant) in enumerate(pairs):
        turns = (
            f"{room}里种什么好，种{plant}行吗",
            ANSWER.format(plant, plant),
            "大概有七八片，都挺绿的",
            "那就不用担心，继续保持。",
        )
        roles = ("user", "assistant") * 2
        talks.append({"id": f"t-{i}", "turns": [{"role": r, "text": t} for r, t in zip(roles, turns, strict=True)]})
    write(folder / "dialogues" / language / "yanghua.jsonl", talks)
    return folder


RECIPE = Recipe(num_samples=1200, num_dev=80, num_test=30, languages=("zh",), unseen=frozenset({"zh/tingyuan"}))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mandarin(write_sources(tmp_path_factory.mktemp("plants")))


@pytest.fixture(scope="module")
def samples(sources: Path) -> list[Sample]:
    return list(SampleBuilder(Pools(sources, RECIPE, "train"), RECIPE, "train").samples(RECIPE.num_samples))


def is_mandarin(text: str) -> bool:
    return not re.search("[a-z]{3}", text)


def test_lines_of_our_own_fill_the_sections_of_english() -> None:
    english, own = phrases.sections(), phrases.sections("zh")
    used = {name for name in english if not name.startswith(("ask_", "reply_", "half_", "slot_"))}
    assert used <= own.keys()
    for name, lines in own.items():
        assert len(set(lines)) == len(lines), name
        assert all(is_mandarin(re.sub(r"\{\w+\}", "", line)) for line in lines), name
    rng = random.Random(0)
    for name, lines in own.items():
        assert all("{" not in phrases.fill(line, rng, "zh") for line in lines), name


@pytest.mark.parametrize("split", list(SPLITS))
def test_every_split_has_lines_of_every_section(sources: Path, split: str) -> None:
    builder = SampleBuilder(Pools(sources, RECIPE, split), RECIPE, split)
    kinds = ("ask_", "reply_", "half_", "slot_", "unseen_")
    assert all(lines for name, lines in builder._lines.items() if not name.startswith(kinds))
    assert len(builder._questions) >= 8


def test_all_that_is_said_is_mandarin(samples: list[Sample]) -> None:
    assert len(samples) == RECIPE.num_samples
    assert all(is_mandarin(sample.text) for sample in samples)
    assert all(is_mandarin(turn.text) for sample in samples for turn in sample.context)
    assert {sample.source.split("/")[0] for sample in samples} == {"zh"}


def test_states_and_places_are_those_of_english(samples: list[Sample]) -> None:
    states = {state: [sample for sample in samples if sample.state is state] for state in InputState}
    for state, share in RECIPE.shares.items():
        assert 0.5 * share < len(states[state]) / len(samples) < 1.6 * share, state
        assert {sample.speaking for sample in states[state]} == {True, False}
    kinds = {sample.kind for sample in samples}
    wanted = (
        "query reply follow_up steering request cut half_reply moment backchannel aside background echo stop wants_in"
    )
    assert kinds >= set(wanted.split())
    assert all(sample.is_asked for sample in samples if sample.kind == "reply")


def test_forms_tell_nothing(samples: list[Sample]) -> None:
    for state in (PROCESS, IGNORE, STOP):
        of_state = [sample for sample in samples if sample.state is state]
        spoken = sum(forms.spoken(sample.text) == sample.text for sample in of_state) / len(of_state)
        assert 0.4 < spoken < 0.85
    cut = [sample.text for sample in samples if sample.state is INCOMPLETE and sample.kind != "moment"]
    assert not any(text.endswith(("。", "？", "！")) for text in cut)
    typed = [sample.text for sample in samples if sample.text[-1:] in "。？！.?!"]
    assert typed
    assert not any(text.endswith((".", "?", "!")) for text in typed), "marks are wide"


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("今天，天气怎么样？", "今天天气怎么样"),
        ("我 想 听 Murcof 的 音乐 。", "我想听murcof的音乐"),
        ("用iPhone拍照吗", "用iphone拍照吗"),
        ("what does 你好 mean?", "what does 你好 mean"),
    ],
)
def test_the_normal_form_has_no_marks_and_no_spaces(text: str, spoken: str) -> None:
    assert forms.spoken(text) == spoken


def test_a_foreign_word_changes_nothing_in_english() -> None:
    text = "How do I say 你好吗 to my aunt, and what does she answer?"
    assert forms.words(text) == text.split()
    assert forms.join(text.split()) == text


@pytest.mark.parametrize(
    ("head", "num_words", "is_unfinished"),
    [
        ("阳台的", 9, True),
        ("帮我把", 9, True),
        ("请问", 8, True),
        ("这是干什么用的", 9, False),
        ("浇水", 6, False),
        ("你想吃什么", 9, False),
        ("什么", 9, False),
        ("阳台的。", 9, False),
        ("阳台的", 3, False),
    ],
)
def test_a_request_is_open_after_some_words(head: str, num_words: int, is_unfinished: bool) -> None:
    assert forms.is_unfinished(words_of(head), num_words) is is_unfinished


def test_cuts_are_beginnings_that_are_open() -> None:
    rng = random.Random(0)
    text = "请问阳台适合养月季吗"
    found = {forms.unfinished_cut(text, rng) for _ in range(40)}
    assert found == {"请", "请问"}
    assert all(text.startswith(str(cut)) for cut in found)
    assert forms.unfinished_cut("浇水", rng) is None


def test_a_turn_has_a_joint_where_it_could_have_ended() -> None:
    text = "我想换一个花盆。最好是白色的，因为阳台很小"
    assert [forms.join(forms.words(text)[:n]) for n in forms.joints(text)] == [
        "我想换一个花盆。",
        "我想换一个花盆。最好是白色的，",
    ]


def test_questions_agreement_and_leave() -> None:
    assert forms.is_question("阳台能种什么")
    assert forms.is_question("能种吗？")
    assert not forms.is_question("给月季浇水")
    assert mandarin.agrees("好的谢谢")
    assert not mandarin.agrees("好的再来一盆")
    assert mandarin.takes_leave("没有了就这些")
    assert not mandarin.takes_leave("就这些吗还有什么")
    assert forms.stands_alone("我买的月季到家就蔫了")
    assert not forms.stands_alone("那个再便宜一点行不行")
    assert forms.asks("请告诉我您的地址。")


def test_a_recogniser_writes_characters_that_sound_alike() -> None:
    found = {forms.misrecognised("他在院子里做花架", random.Random(seed)) for seed in range(30)}
    assert len(found) > 3
    assert all(len(text) == 8 for text in found)


def test_what_is_near_in_characters_is_near() -> None:
    near = NearTexts(["请问阳台适合养月季吗"])
    assert "请问，阳台适合养月季吗？" in near
    assert "阳台请问适合养月季吗" in near
    assert "给院子里的兰花浇水" not in near
    assert "好的谢谢" not in NearTexts(["好的谢谢"]), "everybody says it"


@pytest.mark.parametrize(
    ("text", "is_directed"),
    [
        ("小爱同学几点了", True),
        ("打开客厅的灯", True),
        ("帮我写一首关于春天的诗", True),
        ("你把灯打开吧我看不见", False),
        ("他昨天写了一篇文章", False),
    ],
)
def test_talk_to_an_assistant_is_recognised(text: str, is_directed: bool) -> None:
    assert (device_directed(text) is not None) is is_directed


def test_two_languages_share_a_build_and_take_turns(sources: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, num_samples=400, languages=("en", "zh"), unseen=RECIPE.unseen | {"desk", "market"})
    content = DatasetBuilder(sources, tmp_path / "both", recipe).build()
    for split in ("train", "dev"):
        rows = list(read_samples(tmp_path / "both" / f"{split}.jsonl"))
        assert sum(row.source.startswith("zh/") for row in rows) * 2 == len(rows)
        changes = sum(a.source.startswith("zh/") is not b.source.startswith("zh/") for a, b in pairwise(rows))
        assert changes > len(rows) / 20
    tested = {source for source in content["test"]["sources"] if "own" not in source}
    assert {"zh/tingyuan", "zh/jiachang", "desk", "market"} <= tested
    assert not {"zh/tingyuan", "desk"} & content["train"]["sources"].keys()
    assert content["recipe"]["languages"] == ("en", "zh")


def test_english_alone_is_as_before(sources: Path, tmp_path: Path) -> None:
    recipe = Recipe(num_samples=300, num_dev=60, num_test=15, unseen=frozenset({"desk", "market"}))
    DatasetBuilder(sources, tmp_path / "with", recipe).build()
    DatasetBuilder(write_sources(tmp_path / "alone"), tmp_path / "without", recipe).build()
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert "languages" not in recipe.to_json()


def test_a_corpus_of_one_language_needs_no_folders_of_it(tmp_path: Path) -> None:
    folder = write_mandarin(tmp_path / "plain", "")
    files = files_by_language(folder, replace(RECIPE, unseen=frozenset({"tingyuan"})))
    assert set(files["zh"]["queries"]) == {"huahui", "tingyuan"}
    with pytest.raises(BadData, match="queries/zh has no"):
        files_by_language(folder, replace(RECIPE, languages=("en", "zh")))


def test_the_english_recipe_builds_on_text_without_spaces(tmp_path: Path) -> None:
    folder = write_mandarin(tmp_path / "plain", "")
    recipe = Recipe(num_samples=200, num_dev=40, num_test=0, unseen=frozenset())
    content = DatasetBuilder(folder, tmp_path / "out", recipe).build()
    assert content["train"]["sources"]["huahui"]["process"] > 10


def test_languages_are_known_and_named_once() -> None:
    with pytest.raises(UsageError, match="no language 'fr'"):
        Recipe(languages=("fr",))
    with pytest.raises(UsageError, match="once"):
        Recipe(languages=("zh", "zh"))
    assert "zh/xquad" in Recipe().in_languages(["en", "zh"]).unseen
    assert Recipe().in_languages(["en"]) == Recipe()
