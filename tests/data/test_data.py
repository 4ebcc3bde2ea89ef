"""Samples, forms of words, and the builder, on lines written for these tests."""

import gzip
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from duologue.data import corpus, forms, phrases
from duologue.data.build import OPEN_WORDS, SampleBuilder, Scene, takes_leave
from duologue.data.corpus import SPLITS, Pools
from duologue.data.dataset import DatasetBuilder
from duologue.data.jsonl import read_rows
from duologue.data.recipes import RECIPES, Recipe
from duologue.data.samples import Sample, read_samples, write_samples
from duologue.data.unseen import UnseenSamples
from duologue.errors import BadData, UsageError
from duologue.types import InputState, Role, Turn
from lines import write_sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"))


UNSEEN = frozenset({"desk", "market", "icsi_meeting_acts", "disfl_qa"})
RECIPE = Recipe(num_samples=400, num_dev=80, num_test=30, unseen=UNSEEN)


def build(folder: Path, recipe: Recipe, split: str) -> list[Sample]:
    number = {"train": recipe.num_samples, "dev": recipe.num_dev}[split]
    return list(SampleBuilder(Pools(folder, recipe, split), recipe, split).samples(number))


def test_a_sample_survives_its_file(tmp_path: Path) -> None:
    sample = Sample(
        "what about tea",
        InputState.PROCESS,
        "kitchen",
        kind="query",
        accept=(InputState.STOP,),
        context=(Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "Hello, I was")),
        speaking=True,
        system="",
        response="With lemon.",
        ends=False,
    )
    plain = Sample("mhm", InputState.IGNORE, "own")
    path = tmp_path / "samples.jsonl"
    assert write_samples(path, [sample, plain]) == 2
    assert list(read_samples(path)) == [sample, plain]
    assert json.loads(path.read_text().splitlines()[1]) == {"text": "mhm", "state": "ignore", "source": "own"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ('{"text": "a", "source": "b"}', "no field 'state'"),
        ('{"text": "a", "source": "b", "state": "maybe"}', "maybe"),
        ('{"text": 3, "source": "b", "state": "ignore"}', "text must be a string"),
        ('{"text": "a", "source": "b", "state": "process", "response": 3}', "response must be a string"),
        ('{"text": "a", "source": "b", "state": "process", "speaking": "false"}', "speaking must be true or false"),
        ('{"text": "a", "source": "b", "state": "process", "system": 1}', "system must be a string"),
        ('{"text": "a", "source": "b", "state": "process", "ends": 1}', "ends must be true or false"),
        ('{"text": "a", "source": "b", "state": "process", "kind": null}', "kind must be a string"),
        ('{"text": "a", "source": "b", "state": "process", "accept": "ignore"}', "accept must be a list"),
        ('{"text": "a", "source": "b", "state": "process", "context": {}}', "context must be a list"),
        ('{"text": "a", "source": "b", "state": "process", "context": [{"role": "user"}]}', "needs role and text"),
        (
            '{"text": "a", "source": "b", "state": "process", "context": [{"role": "user", "text": null}]}',
            "text must be a string, got NoneType",
        ),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"text": "a", "state": "ignore", "source": "b"}\n' + line + "\n")
    with pytest.raises(BadData, match=rf"line 2: .*{complaint}"):
        list(read_samples(path))


def test_the_normal_form_has_no_case_and_no_marks_but_keeps_words_whole() -> None:
    assert forms.spoken("Well — isn’t it 7:30, Dr. O'Neil?!") == "well isn't it 7:30 dr o'neil"


def test_typed_form_gives_marks_to_whole_texts_only() -> None:
    rng = random.Random(0)
    whole = {forms.typed("where is tom", rng, question=True, whole=True)[-1] for _ in range(50)}
    cut = {forms.typed("Where is the.", rng, question=True, whole=False)[-1] for _ in range(50)}
    assert whole == {"m", "?"}
    assert cut == {"e"}


@pytest.mark.parametrize(
    ("head", "num_words", "unfinished"),
    [
        ("what is the", 6, True),
        ("how many people", 8, True),
        ("can you", 7, True),
        ("write a daily routine", 9, False),
        ("who is plato", 7, False),
        ("stop", 3, False),
        ("amazon", 5, False),
        ("turn it on", 6, False),
        ("Book it.", 6, False),
    ],
)
def test_only_cuts_that_are_clearly_unfinished_are_kept(head: str, num_words: int, unfinished: bool) -> None:
    assert forms.is_unfinished(head.split(), num_words) is unfinished


def test_slots_are_all_filled() -> None:
    rng = random.Random(1)
    for name, lines in phrases.sections().items():
        assert lines, name
        for line in lines:
            assert "{" not in phrases.fill(line, rng)


def test_the_same_seed_builds_the_same_samples(sources: Path) -> None:
    first, second = build(sources, RECIPE, "train"), build(sources, RECIPE, "train")
    assert first == second
    assert len(first) == RECIPE.num_samples
    assert first != build(sources, replace(RECIPE, seed=1), "train")


def test_every_state_comes_idle_and_over_an_answer_in_the_wanted_shares(sources: Path) -> None:
    samples = build(sources, replace(RECIPE, num_samples=1200), "train")
    counts = Counter(sample.state for sample in samples)
    for state, share in RECIPE.shares.items():
        assert abs(counts[state] / len(samples) - share) < 0.08
        assert {sample.speaking for sample in samples if sample.state is state} == {True, False}
    inside = sum(bool(sample.context) for sample in samples) / len(samples)
    assert abs(inside - RECIPE.in_context) < 0.12


def test_a_running_answer_is_cut_at_a_whole_word(sources: Path) -> None:
    answers = {
        turn["text"]
        for _, row in read_rows(sources / "dialogues" / "talks.jsonl")
        for turn in row["turns"]
        if turn["role"] == "assistant"
    }
    for sample in build(sources, RECIPE, "train"):
        roles = [turn.role for turn in sample.context]  # back from the assistant's last turn
        assert roles[::-1] == ([Role.ASSISTANT, Role.USER] * len(roles))[: len(roles)]
        if sample.speaking:
            heard = sample.context[-1].text
            whole = next(answer for answer in answers if answer.startswith(heard))
            assert len(heard) < len(whole)
            assert whole[len(heard)].isspace()


def test_unseen_sources_and_kept_documents_are_never_trained_on(sources: Path) -> None:
    train = build(sources, RECIPE, "train")
    assert not {sample.source for sample in train} & RECIPE.unseen
    own = {name: set(lines) for name, lines in phrases.sections().items()}
    stops = {s.text.lower().rstrip(".!") for s in train if s.kind == "stop"} & own["stop"]
    dev_stops = {line for line in own["stop"] if corpus.part_of(line) >= 0.82 and len(line.split()) > OPEN_WORDS}
    assert stops
    assert dev_stops
    assert not stops & dev_stops


def test_documents_are_in_one_split_only(sources: Path) -> None:
    for split, (low, high) in SPLITS.items():
        pools = Pools(sources, RECIPE, split)
        items = [item for pool in (pools.queries, pools.background) for found in pool.values() for item in found]
        talks = [dialogue for found in pools.dialogues.values() for dialogue in found]
        assert items
        assert talks
        assert all(low <= item.part < high for item in (*items, *talks, *pools.stops))


def test_the_test_covers_unseen_sources_idle_and_over_an_answer(sources: Path) -> None:
    samples = list(UnseenSamples(sources, RECIPE).samples())
    cases = {(sample.state.value, sample.source, sample.speaking) for sample in samples}
    for speaking in (False, True):
        assert {
            ("process", "desk", speaking),
            ("incomplete", "desk", speaking),
            ("ignore", "market", speaking),
            ("stop", "own", speaking),
            ("process", "disfl_qa", speaking),
        } <= cases
    at_rest = {(sample.state.value, bool(sample.context)) for sample in samples if not sample.speaking}
    assert at_rest == {(state.value, inside) for state in InputState for inside in (False, True)}, (
        "alone and in a dialogue"
    )
    assert ("ignore", "icsi_meeting_acts", True) in cases


def test_fillers_and_openers_tell_no_class_from_another(sources: Path) -> None:
    rows = build(sources, replace(RECIPE, num_samples=12_000), "train")
    for words in (set(phrases.FILLERS), {"computer", "assistant", "olly"}):
        said = Counter(s.state for s in rows if words & set(forms.spoken(s.text).split()))
        assert min(said[state] for state in (InputState.PROCESS, InputState.INCOMPLETE, InputState.STOP)) > 3
    broken = [s for s in rows if s.kind == "repaired_cut"]
    assert broken
    assert {s.state for s in broken} == {InputState.INCOMPLETE}
    asked = {s.state for s in rows if s.text.endswith("?")}
    assert InputState.STOP in asked, "would you stop?"


def test_quiet_for_a_while_is_asked_of_the_assistant(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    path = sources / "hard" / "stop_commands.jsonl"
    row = {"text": "be quiet for two hours", "kind": "stop_command", "intent": "audio_volume_mute"}
    with path.open("a") as file:
        file.writelines(json.dumps({**row, "id": f"quiet-{n}"}) + "\n" for n in range(40))
    pools = Pools(sources, RECIPE, "train")
    assert "be quiet for two hours" in {item.text for item in pools.stops}
    assert "mute the speakers" in {item.text for item in pools.not_stops}


def test_agreement_over_an_answer_is_no_follow_up(sources: Path) -> None:
    builder = SampleBuilder(Pools(sources, RECIPE, "train"), RECIPE, "train")
    scene = builder.scene(in_context=True, speaking=True)
    for follow, is_one in (("yes that sounds good to me", False), ("yes and what does that cost", True)):
        made = [builder.sample(InputState.PROCESS, replace(scene, next_user=follow)) for _ in range(60)]
        assert any(sample.kind == "follow_up" for sample in made) is is_one


def test_a_cut_that_somebody_said_as_a_whole_is_no_cut(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    heads = {" ".join(s.text.split()[:n]) for s in build(sources, RECIPE, "train") for n in range(2, 8)}
    rows = [{"id": f"head-{i}", "text": text, "kind": "assistant_query"} for i, text in enumerate(sorted(heads))]
    path = sources / "queries" / "heads.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pools = Pools(sources, RECIPE, "train")
    cuts = [s for s in build(sources, RECIPE, "train") if s.kind in ("cut", "content_cut")]
    whole = {forms.spoken(query.text) for queries in pools.queries.values() for query in queries}
    assert cuts
    assert not [s for s in cuts if " " in s.text and forms.spoken(s.text) in whole]


def test_taking_leave_is_heard_where_nothing_is_asked() -> None:
    for text in ("No, that's everything.", "i'm all set thanks", "not right now"):
        assert takes_leave(text)
    for text in ("no thanks what tea do you have", "that's it, can you book it?", "a table for two"):
        assert not takes_leave(text)


def test_device_commands_are_requests_and_not_stop(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.data.build._MISRECOGNISED", 0.0)
    fillers = set(phrases.FILLERS)
    stops = {
        " ".join(word for word in forms.spoken(s.text).split() if word not in fillers)
        for s in build(sources, replace(RECIPE, num_samples=800), "train")
        if s.kind == "stop_command"
    }
    assert stops == {"just stop it now", "would you be silent"}


def test_gzipped_sources_read_the_same(sources: Path, tmp_path: Path) -> None:
    zipped = write_sources(tmp_path)
    for path in list(zipped.rglob("*.jsonl")):
        with gzip.open(f"{path}.gz", "wt", encoding="utf-8") as file:
            file.write(path.read_text())
        path.unlink()
    assert build(zipped, RECIPE, "train") == build(sources, RECIPE, "train")


def test_sources_that_cannot_be_used_say_where(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="queries"):
        build(tmp_path, RECIPE, "train")
    folder = write_sources(tmp_path)
    (folder / "queries" / "broken.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(BadData, match=r"broken\.jsonl, line 1: no text"):
        build(folder, RECIPE, "train")
    (folder / "queries" / "broken.jsonl").write_text('{"id": "1", "text": "half a \\ud83d smile"}\n')
    with pytest.raises(BadData, match=r"broken\.jsonl, line 1: half of a surrogate pair"):
        build(folder, RECIPE, "train")
    (folder / "queries" / "broken.jsonl").write_text('{"id": "1", "text": "a \\ud83d\\ude00 smile", "kind": []}\n')
    build(folder, RECIPE, "train")
    (folder / "queries" / "desk.jsonl.gz").write_bytes(b"")
    with pytest.raises(BadData, match="desk twice"):
        build(folder, RECIPE, "train")
    (folder / "queries" / "desk.jsonl.gz").unlink()
    turns = [{"role": "user", "text": None}, {"role": "assistant", "text": "a"}]
    (folder / "dialogues" / "broken.jsonl").write_text(json.dumps({"id": "1", "turns": turns}) + "\n")
    with pytest.raises(BadData, match=r"broken\.jsonl, line 1: bad turns"):
        build(folder, RECIPE, "train")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"in_context": 1.5}, "in_context"),
        ({"num_samples": 0}, "at least one sample"),
        ({"cuts": "some"}, "unfinished"),
        ({"shares": {}}, "shares"),
    ],
)
def test_a_recipe_refuses_what_makes_no_sense(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        replace(RECIPE, **changes)


def test_the_paper_has_three_states_random_cuts_and_nothing_of_ours(sources: Path) -> None:
    recipe = replace(RECIPES["paper"], num_samples=200, unseen=UNSEEN)
    samples = build(sources, recipe, "train")
    assert {sample.state for sample in samples} == {InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE}
    assert {sample.kind for sample in samples if sample.state is InputState.INCOMPLETE} == {"random_cut"}
    assert not any(sample.context or sample.source == "own" for sample in samples)
    tested = list(UnseenSamples(sources, recipe).samples())
    assert {sample.state for sample in tested} == {sample.state for sample in samples}
    assert not any(sample.context or sample.source == "own" for sample in tested)


def test_a_model_that_knows_where_requests_end_opens_other_cuts_and_closes_some() -> None:
    rng = random.Random(0)
    text = "find the cheap rental cars of spain"
    p = [0.001, 0.001, 0.001, 0.001, 0.5, 0.5, 0.5]  # complete behind "cars" and, it says, behind "of"
    by_rules = {forms.unfinished_cut(text, rng) for _ in range(50)}
    by_model = {forms.unfinished_cut(text, rng, p) for _ in range(50)}
    assert by_rules == {"find the", "find the cheap rental cars of"}
    assert by_model == {"find the", "find the cheap", "find the cheap rental"}


def test_a_query_that_its_source_cut_off_is_not_whole() -> None:
    assert forms.is_cut_off("the temperature of gas is proportional to the")
    assert not forms.is_cut_off("what is this for")


def test_a_folder_has_three_splits_that_share_no_sample_and_a_report(sources: Path, tmp_path: Path) -> None:
    content = DatasetBuilder(sources, tmp_path, RECIPE).build()
    assert json.loads((tmp_path / "report.json").read_text()) == content
    splits = {name: list(read_samples(tmp_path / f"{name}.jsonl")) for name in ("train", "dev", "test")}
    assert [len(splits[name]) for name in ("train", "dev")] == [400, 80]
    keys = [{(forms.spoken(s.text), s.context, s.speaking, s.system) for s in samples} for samples in splits.values()]
    assert [len(found) for found in keys] == [len(samples) for samples in splits.values()]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]
    assert content["train"]["num_samples"] == 400
    said = {forms.spoken(s.text) for name in ("train", "dev") for s in splits[name]}
    assert content["test"]["words_known"] == sum(forms.spoken(s.text) in said for s in splits["test"]) > 0
    assert "Annotation artifacts" in (tmp_path / "report.md").read_text()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".jsonl", ".jsonl", ".jsonl", ".md"]


def test_a_build_that_was_killed_goes_on_to_the_same_folder(sources: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    DatasetBuilder(sources, whole, RECIPE).build()

    def count(what: str, done: int, total: int) -> None:
        stages.append((what, total))

    def kill(what: str, done: int, total: int) -> None:
        if what == "dev" and done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DatasetBuilder(sources, killed, RECIPE, progress=kill).build()
    assert not (killed / "dev.jsonl").exists()
    written = (killed / "train.jsonl").stat().st_mtime_ns
    stages: list[tuple[str, int]] = []
    DatasetBuilder(sources, killed, RECIPE, progress=count).build()
    assert (killed / "train.jsonl").stat().st_mtime_ns == written
    number = len((killed / "test.jsonl").read_text().splitlines())
    assert stages[-number:] == [(f"test: {n} samples", 0) for n in range(1, number + 1)]
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "report.json", "report.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    report = (whole / "report.json").read_bytes()
    assert all(json.loads(report)[split]["dropped"] for split in ("train", "dev"))
    DatasetBuilder(sources, whole, RECIPE).build()
    assert (whole / "report.json").read_bytes() == report, "nothing was left to do"


@pytest.mark.parametrize("unseen", [{"elsewhere"}, {"market"}, {"desk", "garden", "kitchen", "market"}])
def test_a_build_that_could_not_be_tested_is_refused_at_once(sources: Path, tmp_path: Path, unseen: set[str]) -> None:
    recipe = replace(RECIPE, unseen=frozenset(unseen))
    with pytest.raises(UsageError, match="--unseen"):
        DatasetBuilder(sources, tmp_path, recipe)
    assert not list(tmp_path.iterdir()), "another attempt may use the folder"
    DatasetBuilder(sources, tmp_path, replace(recipe, num_test=0, unseen=frozenset()))


def test_a_folder_of_another_recipe_is_left_alone(sources: Path, tmp_path: Path) -> None:
    DatasetBuilder(sources, tmp_path, RECIPE).build()
    before = (tmp_path / "train.jsonl").read_bytes()
    with pytest.raises(UsageError, match="another recipe"):
        DatasetBuilder(sources, tmp_path, replace(RECIPE, seed=1))
    with pytest.raises(UsageError, match="another recipe"):
        DatasetBuilder(sources, tmp_path, RECIPE, made_by={"cuts_by": "another model"})
    assert (tmp_path / "train.jsonl").read_bytes() == before


def test_a_folder_without_samples_may_be_used_for_another_recipe(sources: Path, tmp_path: Path) -> None:
    DatasetBuilder(sources, tmp_path, RECIPE)  # and nothing was built
    DatasetBuilder(sources, tmp_path, replace(RECIPE, seed=1)).build()
    assert (tmp_path / "train.jsonl").exists()


def test_what_opens_a_dialogue_of_the_test_is_not_trained_on(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    opening = {d.turns[0].text for found in Pools(sources, RECIPE, "test").dialogues.values() for d in found}
    assert 0 < len(opening) < 12
    rows = [{"id": f"talk-{i}", "text": text.upper(), "kind": "assistant_query"} for i, text in enumerate(opening)]
    path = sources / "queries" / "talks.jsonl"  # the same talks, as a corpus of queries has them
    path.write_text("".join(json.dumps({**row, "id": f"{row['id']}-{n}"}) + "\n" for row in rows for n in range(20)))
    train, dev = (Pools(sources, RECIPE, split).dialogues["talks"] for split in ("train", "dev"))
    assert {d.turns[0].text for d in train}.isdisjoint(d.turns[0].text for d in dev)
    unseen = replace(RECIPE, unseen=RECIPE.unseen | {"talks", "stop_commands"})
    assert not Pools(sources, unseen, "train").dialogues
    assert not Pools(sources, unseen, "train").stops
    for split in ("train", "dev"):
        pools = Pools(sources, RECIPE, split)
        assert "talks" not in pools.queries
        assert pools.dialogues["talks"]
        assert opening.isdisjoint(d.turns[0].text for d in pools.dialogues["talks"])
    assert "talks" in Pools(sources, RECIPE, "test").queries


def test_hard_lines_of_an_unseen_source_are_not_trained_on(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    assert "desk" in RECIPE.unseen
    path = sources / "hard" / "stop_commands.jsonl"
    row = {"text": "hush now please", "kind": "stop_command", "intent": "cancel"}
    with path.open("a") as file:
        file.writelines(json.dumps({**row, "id": f"desk-{n}"}) + "\n" for n in range(40))
    texts = {item.text for split in ("train", "dev", "test") for item in Pools(sources, RECIPE, split).stops}
    assert "just stop it now" in texts
    assert "hush now please" not in texts


def test_the_hard_set_says_what_words_mean_wherever_they_stand(tmp_path: Path) -> None:
    sources, out = write_sources(tmp_path / "sources"), tmp_path / "out"
    turns = ["tell me a story about the sea", "Once there was a long and quiet sea.", "would you be silent", "I will."]
    talk = [{"role": "user" if i % 2 == 0 else "assistant", "text": text} for i, text in enumerate(turns)]
    path = sources / "dialogues" / "silent.jsonl"
    path.write_text("".join(json.dumps({"id": f"silent-{n}", "turns": talk}) + "\n" for n in range(40)))
    DatasetBuilder(sources, out, RECIPE).build()
    samples = [s for name in ("train", "dev", "test") for s in read_samples(out / f"{name}.jsonl")]
    said = [s for s in samples if forms.spoken(s.text) == "would you be silent"]
    assert said
    assert {s.state for s in said} == {InputState.STOP}


def test_talk_that_is_said_to_an_assistant_is_not_background(sources: Path) -> None:
    pools = Pools(sources, RECIPE, "train")
    questions = {item.text for items in pools.background.values() for item in items if item.text.endswith("?")}
    builder = SampleBuilder(pools, RECIPE, "train", is_device_directed=lambda text: text in questions)
    made = [builder._background(Scene()) for _ in range(300)]
    assert not questions & {item.text for item in made}, "though questions are wanted more often than they occur"
    deaf = SampleBuilder(pools, RECIPE, "train", is_device_directed=lambda text: True)
    with pytest.raises(BadData, match="background"):
        deaf._background(Scene())


def test_a_report_counts_background_that_speaks_to_an_assistant(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "sources")
    rows = [{"id": f"called-{i}", "text": f"hey siri call the {i}th shop for me"} for i in range(60)]
    path = sources / "background" / "called.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = DatasetBuilder(sources, tmp_path / "out", RECIPE).build()
    assert content["train"]["dropped"]["background that speaks to an assistant"] > 0
    assert not [s for s in read_samples(tmp_path / "out" / "train.jsonl") if s.source == "called"]


def test_sources_that_are_too_small_say_so(sources: Path) -> None:
    with pytest.raises(BadData, match="fewer"):
        list(SampleBuilder(Pools(sources, RECIPE, "train"), RECIPE, "train").samples(50, lambda sample: False))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"no gzip at all")
    damaged = tmp_path / "damaged.jsonl.gz"
    whole = bytearray(gzip.compress(b'{"text": "a"}\n' * 50))
    whole[12:20] = b"\xff" * 8
    damaged.write_bytes(whole)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"text": "caf\xe9"}\n'.encode("latin-1"))
    for path in (broken, damaged, latin, tmp_path / "missing.jsonl"):
        with pytest.raises(BadData, match=path.name):
            list(read_rows(path))
    with pytest.raises(BadData, match=r"^there is no file .*missing\.jsonl$"):
        list(read_rows(tmp_path / "missing.jsonl"))


def test_dialogues_that_go_on_are_chosen_where_follow_ups_are_wanted(sources: Path) -> None:
    def share(follow_ups: float) -> float:
        recipe = replace(RECIPE, in_context=1.0, speaking=0.0, follow_ups=follow_ups)
        samples = build(sources, recipe, "train")
        return sum(sample.kind == "follow_up" for sample in samples) / len(samples)

    assert share(1.0) > 1.2 * share(0.0)


def test_follow_ups_are_not_waited_for_where_no_dialogue_goes_on(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    for path in (sources / "dialogues").iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**row, "turns": row["turns"][:2]}) + "\n" for row in rows))
    samples = build(sources, replace(RECIPE, in_context=1.0, follow_ups=1.0), "train")
    assert all(sample.context for sample in samples)
    assert not any(sample.kind == "follow_up" for sample in samples)


def test_the_test_does_not_change_with_how_much_is_kept_to_train_on(sources: Path) -> None:
    some, more = (list(UnseenSamples(sources, replace(RECIPE, per_source=number)).samples()) for number in (20, 2000))
    assert some == more


# Corpora as they are


def write_rows(path: Path, rows: list[dict[str, object]], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding=encoding)
    return path


def conversation(*turns: str) -> list[dict[str, str]]:
    """Turns written as "u: …" or "a: …"."""
    roles = {"u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "text": turn[3:]} for turn in turns]


def test_consecutive_turns_of_one_side_are_joined(tmp_path: Path) -> None:
    turns = conversation("a: Good morning.", "u: my parcel is late", "u: ", "u: it was a lamp", "a: Oh.", "a: I see.")
    path = write_rows(tmp_path / "calls.jsonl", [{"id": "1", "turns": turns}])
    [dialogue] = corpus.dialogues(path, "calls", 10, random.Random(0))
    assert dialogue.turns == (
        Turn(Role.USER, "my parcel is late it was a lamp"),
        Turn(Role.ASSISTANT, "Oh. I see."),
    )
    assert [opening for _, opening in corpus.openings(path)] == ["my parcel is late it was a lamp"]


def test_what_is_left_out_is_counted_and_reported(tmp_path: Path) -> None:
    sources, out = write_sources(tmp_path / "sources"), tmp_path / "out"
    silent = [conversation("a: Hello?", "a: Anybody there?"), conversation("u: hello"), []]
    write_rows(sources / "dialogues" / "lost.jsonl", [{"id": str(i), "turns": t} for i, t in enumerate(silent)])
    rows: list[dict[str, object]] = [{"id": "1", "text": "and a blue one"}, {"id": "2", "text": " "}]
    write_rows(sources / "queries" / "bits.jsonl", rows)
    content = DatasetBuilder(sources, out, RECIPE).build()
    dropped = content["train"]["dropped"]
    assert dropped["dialogues/lost: no user turn with an answer"] == 3
    assert dropped["queries/bits: kind is not assistant_query or assistant_turn"] == 1
    assert dropped["queries/bits: empty text"] == 1
    assert not any(reason.startswith("dialogues/talks") for reason in dropped)
    assert "| dialogues/lost: no user turn with an answer | 3 |" in (out / "report.md").read_text()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "où est le thé"}, {"text": "ici"}], encoding)
    assert [(number, row["text"]) for number, row in read_rows(path)] == [(1, "où est le thé"), (2, "ici")]


def test_zero_is_the_name_of_a_document(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": i, "doc": 0, "text": f"the {i}th lamp"} for i in range(5)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert {item.part for item in corpus.utterances(path, "rows", 10, random.Random(0), {})} == {corpus.part_of("0")}


def test_one_document_is_too_few_and_it_is_said_why(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    for path in (sources / "background").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        write_rows(path, [{**row, "doc": "all of it"} for row in lines])
    split = next(name for name, (low, high) in SPLITS.items() if not low <= corpus.part_of("all of it") < high)
    with pytest.raises(BadData, match=rf"background leaves nothing for the split '{split}': .*distinct doc values"):
        Pools(sources, RECIPE, split)


def test_small_sources_give_what_they_can(sources: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPES["paper"], num_samples=5000, num_dev=5000, num_test=0, unseen=frozenset())
    content = DatasetBuilder(sources, tmp_path / "some", recipe, at_most=("train", "dev")).build()
    for split in ("dev", "train"):
        number = content[split]["num_samples"]
        assert 20 < number < 5000
        assert len(list(read_samples(tmp_path / "some" / f"{split}.jsonl"))) == number
        assert set(content[split]["states"]) == {"process", "incomplete", "ignore"}
    exact = DatasetBuilder(sources, tmp_path / "exact", replace(recipe, num_samples=100, num_dev=20))
    assert exact.build()["train"]["num_samples"] == 100
    with pytest.raises(BadData, match="--samples"):
        DatasetBuilder(sources, tmp_path / "all", replace(recipe, num_samples=2 * number)).build()
