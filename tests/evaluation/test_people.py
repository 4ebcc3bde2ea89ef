"""A study of people: its folder, its ballots, its judges and its report."""

import json
import random
import re
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import chat_server
from duologue.cli.main import main
from duologue.core.events import Committed, Heard, Received, Said, Suspended
from duologue.engine.replay import read_script
from duologue.errors import BadData, UsageError
from duologue.evaluation.people.ballots import Ballot, Ballots
from duologue.evaluation.people.criteria import Criterion
from duologue.evaluation.people.judge import transcript, votes_in
from duologue.evaluation.people.report import report
from duologue.evaluation.people.scripts import from_dialogues, own_examples, write_scripts
from duologue.evaluation.people.study import Form, Study
from duologue.types import SLICE_PERIOD_S
from serving import scripted_model
from studies import recorded

ALL = {criterion.value: "a" for criterion in Criterion}
SYSTEMS = ("one", "two")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("study")).folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A study of which a test may do what it likes."""
    for path in pristine.rglob("*.json*"):
        target = tmp_path / "study" / path.relative_to(pristine)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "study"


@pytest.fixture
def ballots(tmp_path: Path) -> Ballots:
    return Ballots(tmp_path / "ballots.sqlite")


def join(ballots: Ballots, examples: tuple[str, ...] = ("x", "y"), *, seed: int = 0, **more: Any) -> str:
    return ballots.join(examples, SYSTEMS, chance=random.Random(seed), **more)


def run(*command: object) -> int:
    return main(["eval", "people", *map(str, command)])


# ----------------------------------------------------------------------------------------------------------- scripts


def test_scripts_follow_the_recipe(tmp_path: Path) -> None:
    examples = own_examples()
    assert len({example.name for example in examples}) == 15
    assert all(3 <= len(example.turns) <= 7 for example in examples)
    write_scripts(tmp_path, examples, seed=1)
    pauses = set()
    for example in examples:
        cues = read_script(tmp_path / f"{example.name}.jsonl").cues
        finals = [cue for cue in cues if cue.final]
        begins = [cue for cue in cues if cue.text == ""]
        assert [cue.text for cue in finals] == list(example.turns)
        for end, begin in zip(finals, begins[1:], strict=False):
            pauses.add((begin.at - end.at) / SLICE_PERIOD_S)
    assert {3, 10} <= pauses <= set(range(3, 11))


def test_dialogues_give_their_users_side(tmp_path: Path) -> None:
    def dialogue(*asked: str) -> str:
        turns = [turn for text in asked for turn in (("user", text), ("assistant", "yes"))]
        return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n"

    path = tmp_path / "talks.jsonl"
    lines = [dialogue(*(f"question {i} of {row}" for i in range(9))) for row in range(6)]
    path.write_text("".join([*lines, dialogue("too", "short"), dialogue("a", "b", "long " * 41), "no JSON\n"]))
    examples = from_dialogues([path], num=6, seed=3)
    assert {example.source for example in examples} == {f"talks/{row}" for row in range(1, 7)}
    assert all(3 <= len(example.turns) <= 7 for example in examples)
    assert examples == from_dialogues([path], num=6, seed=3)
    assert examples != from_dialogues([path], num=6, seed=4)
    with pytest.raises(UsageError, match=r"6 dialogues can be used, and 7 are needed .*2 × fewer than 3 turns"):
        from_dialogues([path], num=7, seed=3)


def test_the_command_records_two_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("duologue.models.model.load", lambda *_, **__: scripted_model())
    study = tmp_path / "study"
    assert run("make", study, "--examples", 2, "--sessions", "turns") == 0
    assert run("serve", study) == 2
    assert "compares two systems" in capsys.readouterr().err
    assert run("make", study, "--sessions", "duplex", "--name", "other") == 0
    found = Study.complete(study)
    assert found.pair == ("turns", "other")
    assert found.systems["other"]["session"] == "duplex"
    assert found.examples == ("halloween", "moon")
    for example in found.examples:
        heard = [
            [(event.at, event.text) for event in found.record(system, example) if isinstance(event, Received)]
            for system in found.pair
        ]
        assert heard[0] == heard[1] != []  # the same user
        assert any(isinstance(event, Said) for event in found.record("other", example))
    Ballots(found.ballots)
    assert run("make", study, "--sessions", "vad") == 2
    assert "there are ballots" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sessions", "slices"], "no kind of session 'slices' here"),
        (["--sessions", "turns,vad", "--name", "x"], "--name names one system"),
        (["--talk", "a=nowhere"], "write NAME=http://HOST:PORT"),
        (["--talk", "a=http://127.0.0.1:1?kind=tdm"], "no kind 'tdm'"),
        (["--talk", "../a=http://127.0.0.1:1"], "cannot be the name of a system"),
    ],
)
def test_options_that_make_no_sense_are_explained(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("make", tmp_path / "study", *options) == 2
    assert message in capsys.readouterr().err


def test_people_can_talk_to_two_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    command = ("make", study, "--talk", "a=http://127.0.0.1:1?kind=turns", "--talk", "b=https://here.example/x/")
    assert run(*command) == 0
    found = Study.complete(study)
    assert found.form is Form.TALK
    assert found.systems["a"] == {"url": "http://127.0.0.1:1/", "kind": "turns"}
    assert found.systems["b"] == {"url": "https://here.example/x/", "kind": "duplex"}
    assert run(*command) == 2
    assert "is a study already" in capsys.readouterr().err
    assert run("judge", study, "--url", "http://127.0.0.1:1/v1", "--judge-model", "m") == 2
    assert "cannot talk to the systems" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("study.json", None, "is not a study"),
        ("study.json", "{", "is damaged"),
        ("study.json", '{"study": 2}', "version 2"),
        ("study.json", '{"study": 1, "form": "dance", "systems": {}}', "is damaged"),
        ("study.json", '{"study": 1, "form": "pairs", "systems": {"../turns": {}, "duplex": {}}}', "is damaged"),
        ("study.json", '{"study": 1, "form": "pairs", "systems": {"turns": {}}}', "compares two systems"),
        ("study.json", '{"study": 1, "form": "pairs", "systems": []}', "compares two systems"),
        ("study.json", '{"study": 1, "form": "talk", "systems": {"a": {}, "b": {}}}', "a has no url and kind"),
        ("records/turns/dogs.jsonl", None, "cannot read the record"),
        ("records/duplex/dogs.jsonl", '{"record": 1, "session": "s", "settings": {}, "history": []}\n', "no events"),
        ("records/duplex/dogs.jsonl", "nonsense\n", "not JSON"),
    ],
)
def test_a_damaged_study_is_not_served(
    name: str, content: str | None, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_text(content, encoding="utf-8")
    assert run("serve", folder) == 2
    assert message in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- ballots


def test_orders_and_sides_are_random_balanced_and_stored(ballots: Ballots, tmp_path: Path) -> None:
    examples = tuple(f"e{i}" for i in range(6))
    raters = [join(ballots, examples, seed=seed) for seed in range(8)]
    assert len(set(raters)) == 8
    seen = [tuple((ballot.example, ballot.a) for ballot in ballots.of(rater)) for rater in raters]
    assert len(set(seen)) == 8
    for one in seen:
        assert {example for example, _ in one} == set(examples)
        assert [a for _, a in one].count("one") == 3
    again = Ballots(tmp_path / "ballots.sqlite")
    assert tuple((ballot.example, ballot.a) for ballot in again.of(raters[3])) == seen[3]


def test_with_one_example_both_sides_occur(ballots: Ballots) -> None:
    sides = {ballots.of(join(ballots, ("talk",), seed=seed))[0].a for seed in range(20)}
    assert sides == set(SYSTEMS)


def test_a_ballot_that_is_sent_twice_counts_once(ballots: Ballots) -> None:
    rater = join(ballots)
    for _ in range(2):
        assert ballots.cast(rater, "x", ALL).is_complete
    ballots.cast(rater, "x", {"overall": "tie"})  # thought better of it
    (ballot,) = ballots.all()
    assert ballot.votes == {**ALL, "overall": "tie"}


def test_a_partial_ballot_is_kept_and_completed(ballots: Ballots) -> None:
    rater = join(ballots)
    assert not ballots.cast(rater, "x", {"overall": "b"}).is_complete
    (ballot,) = ballots.all()
    assert ballot.votes == {"overall": "b"}
    assert ballots.cast(rater, "x", {**ALL, "overall": "b"}).is_complete
    assert len(ballots.all()) == 1


@pytest.mark.parametrize(
    ("example", "votes", "message"),
    [
        ("x", {"beauty": "a"}, "unknown criterion 'beauty'"),
        ("x", {"overall": "c"}, "unknown vote 'c'"),
        ("x", {"overall": ["a"]}, "unknown vote"),
        ("z", {"overall": "a"}, "no ballot on 'z'"),
    ],
)
def test_what_cannot_be_a_ballot_changes_nothing(
    example: str, votes: dict[str, Any], message: str, ballots: Ballots
) -> None:
    rater = join(ballots)
    ballots.cast(rater, "x", {"factuality": "tie"})
    with pytest.raises(UsageError, match=message):
        ballots.cast(rater, example, {"overall": "a", **votes} if "overall" not in votes else votes)
    with pytest.raises(UsageError, match="no such rater"):
        ballots.cast("nobody", "x", ALL)
    assert [ballot.votes for ballot in ballots.all()] == [{"factuality": "tie"}]


def test_raters_vote_at_the_same_time(ballots: Ballots, tmp_path: Path) -> None:
    examples = ("x", "y", "z")
    begin = threading.Barrier(4)

    def rate(number: int) -> list[Ballot]:
        own = Ballots(tmp_path / "ballots.sqlite")  # as another process would
        begin.wait()
        rater = join(own, examples, seed=number)
        return [own.cast(rater, example, {criterion: "tie"}) for example in examples for criterion in ALL][4::5]

    with ThreadPoolExecutor(4) as pool:
        done = [ballot for found in pool.map(rate, range(4)) for ballot in found]
    assert len(done) == 12
    assert all(ballot.is_complete for ballot in done)
    assert sorted(map(repr, done)) == sorted(map(repr, ballots.all()))


def test_two_may_create_the_database_at_once(tmp_path: Path) -> None:
    begin = threading.Barrier(8)

    def open_it(_: int) -> Ballots:
        begin.wait()
        return Ballots(tmp_path / "new.sqlite")

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(open_it, range(8)))) == 8


def test_something_else_is_not_taken_for_ballots(tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("this is not a database, although it is long enough to be one " * 20)
    with pytest.raises(BadData, match="cannot be used"):
        Ballots(text)
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE vote (x)")
    other.close()
    with pytest.raises(BadData, match="not of ballots"):
        Ballots(tmp_path / "other.sqlite")
    with pytest.raises(BadData, match="cannot be used"):
        Ballots(tmp_path / "nowhere" / "ballots.sqlite")


# ------------------------------------------------------------------------------------------------------------ judges


@pytest.fixture
def judge() -> Iterator[chat_server.ChatServer]:
    """Prefers what it sees on the left, and says nothing of the facts until `factuality: tie` is added."""
    with chat_server.serving(lambda _: (200, chat_server.completion("<think>hm</think>" + LINES))) as server:
        yield server


LINES = "responsiveness: A\n**Human-likeness**: tie\n- faithfulness: b\noverall: A"


def test_votes_are_read_from_an_answer() -> None:
    assert votes_in(LINES) == {"responsiveness": "a", "human-likeness": "tie", "faithfulness": "b", "overall": "a"}
    assert votes_in("overall: A\noverall: B\nfactuality: maybe") == {}
    assert votes_in("overall: A and a half is better, overall: B") == {"overall": "a"}
    assert votes_in("") == {}


def test_a_judge_sees_words_and_times_only(folder: Path) -> None:
    text = transcript(Study.read(folder).record("duplex", "fisherman"))
    story = "Once there was a fisherman who lived by the sea, and every morning he rowed out before the sun was"
    assert re.sub(r"\d+ s, ", "", text).splitlines() == [
        "user: tell me a story",
        f"assistant: {story}",
        "user: what about dogs",
        "assistant: Dogs are loyal.",
        "user: and cats",
        "assistant: Cats?",
    ]
    assert text.startswith("2 s, user")


def test_a_judge_sees_what_was_heard_and_where_it_was_cut() -> None:
    events = [
        Received(0.0, "u1", "tell me", final=False),
        Received(2.0, "u1", "tell me a story", final=True),
        Said(2.5, 0, 0, "Once there"),
        Heard(3.0, 0, 4),
        Received(3.5, "u2", "mhm", final=True),
        Heard(4.0, 0, 10),
        Suspended(5.0, 0, "Once there", ""),
        Said(6.0, 1, 0, "Fine. Bye"),
        Heard(6.5, 1, 5),
        Committed(7.0, 1, "Fine. Bye"),
    ]
    assert transcript(events).splitlines() == [
        "0 s, user: tell me a story",
        "3 s, assistant: Once",
        "4 s, user: mhm",
        "4 s, assistant: there —",
        "6 s, assistant: Fine. Bye",
    ]


def test_a_judge_votes_resumes_and_is_not_mixed_with_people(
    folder: Path, judge: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("judge", folder, "--url", judge.url, "--judge-model", "m")
    assert run(*command) == 0
    assert "m: 2 ballots, 2 of them without some votes" in capsys.readouterr().out
    assert len(judge.asked) == 2
    judge.reply = lambda _: (200, chat_server.completion(LINES + "\nfactuality: tie"))
    assert run(*command) == 0
    assert "m: 2 ballots, 0 of them" in capsys.readouterr().out
    assert len(judge.asked) == 4
    assert run(*command) == 0
    assert len(judge.asked) == 4  # all is known
    study = Study.read(folder)
    only_judged = report(study)["groups"]
    assert list(only_judged) == ["judge m"]
    ballots = Ballots(study.ballots)
    rater = ballots.join(study.examples, study.pair, chance=random.Random(0))
    ballots.cast(rater, "dogs", ALL)
    groups = report(study)["groups"]
    assert groups["judge m"] == only_judged["judge m"]
    assert groups["people"]["ballots"] == {"complete": 1, "partial": 0}
    assert groups["people"]["raters"] == 1
    with pytest.raises(UsageError, match="no such rater"):
        ballots.cast("judge m", "dogs", ALL)  # not by the page
    with pytest.raises(UsageError, match="no such rater"):
        ballots.cast(rater, "dogs", ALL, judge="m")


def test_a_judge_that_is_not_there_loses_nothing(
    folder: Path, judge: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([(200, chat_server.completion(LINES)), (403, "go away")])
    judge.reply = lambda _: next(answers)
    assert run("judge", folder, "--url", judge.url, "--judge-model", "m") == 2
    assert "refuses model 'm'" in capsys.readouterr().err
    assert len(Ballots(Study.read(folder).ballots).all()) == 1


# ------------------------------------------------------------------------------------------------------------ report


def test_the_report_counts_from_the_side_of_the_first_system(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study.read(folder)
    ballots = Ballots(study.ballots)
    for seed in range(4):
        rater = ballots.join(study.examples, study.pair, chance=random.Random(seed))
        for ballot in ballots.of(rater):
            prefers = "a" if ballot.a == "duplex" else "b"
            votes = dict.fromkeys(ALL, prefers) | {"factuality": "tie"}
            if seed == 3 and ballot.example == "dogs":
                votes = {"overall": "b" if prefers == "a" else "a"}  # the last rater goes away
            ballots.cast(rater, ballot.example, votes)
    assert run("report", folder, "--json", "--out", tmp_path / "out") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["first"], result["second"]) == ("turns", "duplex")
    people = result["groups"]["people"]
    assert people["ballots"] == {"complete": 7, "partial": 1}
    overall = people["criteria"]["overall"]
    assert (overall["win"], overall["tie"], overall["loss"]) == (1, 0, 7)
    assert overall["score"] == 1 / 8
    assert overall["p"] == pytest.approx(2 * 9 / 256)
    assert sorted(overall["raters"]) == [0.0, 0.0, 0.0, 0.5]
    factuality = people["criteria"]["factuality"]
    assert (factuality["win"], factuality["tie"], factuality["loss"], factuality["p"]) == (0, 7, 0, 1.0)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["groups"] == result["groups"]
    assert run("report", folder) == 0
    printed = capsys.readouterr().out
    assert "ballots: 7 complete, 1 partial" in printed
    assert "| overall" in printed
    assert (tmp_path / "out" / "report.md").read_text() == printed


def test_figures_are_drawn_for_each_group(folder: Path, tmp_path: Path, judge: chat_server.ChatServer) -> None:
    pytest.importorskip("matplotlib")
    study = Study.read(folder)
    ballots = Ballots(study.ballots)
    ballots.cast(ballots.join(study.examples, study.pair, chance=random.Random(0)), "dogs", {"overall": "tie"})
    assert run("judge", folder, "--url", judge.url, "--judge-model", "org/m") == 0
    assert run("report", folder, "--out", tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"{name}.{ending}" for name in ("people", "judge-org-m") for ending in ("png", "svg")}
    assert names == {"result.json", "report.md", *figures}
    svg = (tmp_path / "out" / "people.svg").read_text(encoding="utf-8")
    for text in ("turns better", "duplex better", "overall"):
        assert f"<!-- {text}" in svg
    assert "responsiveness" not in svg  # nobody voted on it


def test_without_ballots_there_is_no_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", folder) == 2
    assert "nobody has voted" in capsys.readouterr().err
    assert not (folder / "ballots.sqlite").exists()
    ballots = Ballots(folder / "ballots.sqlite")
    ballots.cast(join(ballots), "x", ALL)
    assert run("report", folder) == 2
    assert "are not about turns and duplex" in capsys.readouterr().err
