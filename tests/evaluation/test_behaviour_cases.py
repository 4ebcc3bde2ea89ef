"""The conversations of the behaviour benchmark: frozen, free of contradictions, and not decided by words alone."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from duologue.errors import BadData, UsageError
from duologue.evaluation.behaviour import generate as g
from duologue.evaluation.behaviour.cases import (
    Act,
    Action,
    Case,
    case_from,
    plain_words,
    read_cases,
    set_hash,
    spoken,
)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return g.split("test")


def test_the_test_set_is_the_frozen_one(cases: list[Case]) -> None:
    assert set_hash(cases) == g.FROZEN == "2f598ebee4abb260"
    assert len(cases) == 638
    assert len({case.id for case in cases}) == len(cases)


def test_a_changed_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(g, "REPLY", "Something else.")
    monkeypatch.setattr(g, "WITHIN_S", 1.5)
    with pytest.raises(UsageError, match="texts were changed"):
        g.split("test")


def test_another_seed_fills_in_other_names_and_times(cases: list[Case]) -> None:
    others = {case.id: case for case in g.generate(g.DEV_SEED)}
    same = [case.id for case in cases if others[case.id].to_json() == case.to_json()]
    assert len(same) < 0.35 * len(cases), "what has nothing to fill in stays"


def test_the_development_set_is_a_tenth_of_another_seed() -> None:
    dev = g.split("dev")
    assert 55 <= len(dev) <= 75
    pairs = Counter(case.pair for case in dev if case.pair)
    assert set(pairs.values()) == {2}, "pairs stay together"
    with pytest.raises(UsageError, match="test and dev"):
        g.split("train")


def test_there_is_enough_of_every_kind(cases: list[Case]) -> None:
    counts = Counter(case.kind for case in cases)
    assert min(counts.values()) >= 12, counts
    assert len(counts) == 33
    texts = defaultdict(set)
    for case in cases:
        texts[case.kind].add(tuple(act.speak or act.type for act in case.acts))
    assert all(len(found) >= 0.5 * counts[kind] for kind, found in texts.items()), "different words"


def test_every_case_survives_being_written(cases: list[Case]) -> None:
    for case in cases:
        assert case_from(json.loads(json.dumps(case.to_json()))) == case


# ---------------------------------------------------------------------------------------------------- minimal pairs


def halves(cases: list[Case]) -> list[tuple[str, Action]]:
    """The shared words of a minimal pair, and what must happen at them, for both halves."""
    found = []
    for case in (case for case in cases if case.pair):
        said = ""
        for one in case.expect:
            said = words_between(case, one.start, one.at)
            if said == case.words:
                found.append((said, one.action))
                break
        else:
            raise AssertionError(f"{case.id}: nothing is expected of {case.words!r}")
    return found


def words_between(case: Case, start: float, end: float) -> str:
    """What is said from `start` to `end`."""
    begun = {cue.utterance for cue in case.cues() if cue.at == start}
    said = [str(cue.text) for cue in case.cues() if cue.utterance in begun and start <= cue.at <= end + 0.001]
    return " ".join(plain_words(said[-1])) if said else ""


def test_minimal_pairs_want_opposite_things_of_the_same_words(cases: list[Case]) -> None:
    found = halves(cases)
    assert len(found) >= 120
    for (words_a, action_a), (words_b, action_b) in zip(found[::2], found[1::2], strict=True):
        assert words_a == words_b
        assert action_a is not action_b


def test_words_alone_tell_nothing_about_minimal_pairs(cases: list[Case]) -> None:
    """A bag-of-words classifier, cross-validated with both halves of a pair in one fold, is no better than chance."""
    found = halves(cases)
    vocabulary = {word: i for i, word in enumerate(sorted({word for words, _ in found for word in words.split()}))}
    features = np.zeros((len(found), len(vocabulary) + 1))
    features[:, -1] = 1
    for row, (words, _) in enumerate(found):
        for word in words.split():
            features[row, vocabulary[word]] = 1
    labels = np.array([action is Action.ANSWER for _, action in found]) * 2.0 - 1  # speak up, or not
    folds = (np.arange(len(found)) // 2) % 10
    right = 0
    for fold in range(10):
        train, test = folds != fold, folds == fold
        x, y = features[train], labels[train]
        weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
        right += int(((features[test] @ weights > 0) == (labels[test] > 0)).sum())
    assert right / len(found) <= 0.55
    # … and no other classifier can be: whatever it makes of the words, it is right about one half at most.
    assert all(a != b for (_, a), (_, b) in zip(found[::2], found[1::2], strict=True))


# ----------------------------------------------------------------------------------------------------------- speech


def test_speech_grows_as_a_recogniser_reports_it() -> None:
    cues, pauses, end = spoken("set a timer [0.6] for ten minutes", 1.0, "u")
    assert [(cue.at, cue.text, cue.final) for cue in cues] == [
        (1.0, "", False),
        (1.8, "set a", False),
        (2.2, "set a timer", False),
        (3.6, "set a timer for ten", False),
        (4.0, "set a timer for ten minutes", False),
        (4.8, "set a timer for ten minutes", True),
    ]
    assert pauses == [(2.2, 0.6)]
    assert end == 4.0


def test_a_long_pause_ends_the_utterance() -> None:
    cues, pauses, end = spoken("set a [1.2] timer", 0.0, "u")
    assert [(cue.at, cue.utterance, cue.text, cue.final) for cue in cues] == [
        (0.0, "u", "", False),
        (0.8, "u", "set a", False),
        (1.6, "u", "set a", True),
        (2.0, "u.1", "", False),
        (2.4, "u.1", "timer", False),
        (3.2, "u.1", "timer", True),
    ]
    assert pauses == [(0.8, 1.2)]
    assert end == pytest.approx(2.4)


# ------------------------------------------------------------------------------------------------- files of one's own

GOOD: dict[str, Any] = {
    "id": "a",
    "kind": "recorded",
    "history": [{"role": "user", "text": "why is the sky blue"}],
    "answer": "Because of the way in which light is scattered by small things.",
    "acts": [{"at": 2, "speak": "mhm"}, {"at": 5, "type": "stop"}],
    "expect": [{"action": "go_on", "from": 2, "at": 2.4}, {"action": "stop", "at": 5}],
}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without("kind"), "lacks kind"),
        ({**GOOD, "kind": "dance"}, "unknown kind 'dance'"),
        ({**GOOD, "color": "red"}, "unknown fields: color"),
        ({**GOOD, "acts": []}, "at least one act"),
        ({**GOOD, "acts": "mhm"}, "\"acts\" is 'mhm'; it is a list"),
        ({**GOOD, "acts": [{"at": 3, "speak": "a"}, {"at": 2, "speak": "b"}]}, "go back: 2 s comes behind 3 s"),
        ({**GOOD, "acts": [{"at": -1, "speak": "a"}]}, '"at" is -1'),
        ({**GOOD, "acts": [{"at": True, "speak": "a"}]}, '"at" is True'),
        ({**GOOD, "acts": [{"at": 1, "speak": "a", "type": "b"}]}, "exactly one of"),
        ({**GOOD, "acts": [{"at": 1, "command": "dance"}]}, "unknown command 'dance'"),
        ({**GOOD, "expect": [{"action": "dance", "at": 1}]}, "unknown action 'dance'"),
        ({**GOOD, "expect": [{"action": "stop", "from": 3, "at": 1}]}, 'go back: "from" is 3 s and "at" 1 s'),
        ({**GOOD, "expect": [{"action": "stop", "at": 3}, {"action": "stop", "at": 2}]}, "go back"),
        ({**GOOD, "expect": [{"action": "stop", "at": 3, "within": 0}]}, '"within" is 0'),
        ({**GOOD, "expect": [{"action": "stop", "at": 3, "floor": "silent"}]}, "contradicts itself"),
        ({**GOOD, "expect": [{"action": "wait", "at": 3, "floor": "speaking"}]}, "contradicts itself"),
        ({**GOOD, "expect": [{"action": "wait", "at": 3, "floor": "dance"}]}, "unknown floor"),
        ({**GOOD, "expect": [{"action": "stop", "at": 3, "to": "mhm"}]}, "answers nothing"),
        (
            {**GOOD, "expect": [{"action": "answer", "at": 3, "to": "bananas"}]},
            "['bananas'], which nobody has said by 3 s",
        ),
        (
            {**GOOD, "expect": [{"action": "go_on", "at": 2, "within": 9}, {"action": "answer", "at": 5}]},
            "contradict each other",
        ),
        (
            {**GOOD, "expect": [{"action": "answer", "at": 3}, {"action": "wait", "at": 4}]},
            "silence from 4 s, and an answer up to 5 s",
        ),
        ({**GOOD, "expect": [{"action": "go_on", "at": 2}, {"action": "stop", "at": 2}]}, "of the same words"),
        (without("history"), "must be the user's"),
        (without("answer"), 'there is no "answer" to it'),
        ({**without("answer"), "history": []}, "cannot be speaking"),
        ({**GOOD, "history": [{"role": "system", "text": "x"}]}, "a turn has role 'system'"),
    ],
)
def test_what_contradicts_itself_is_refused_with_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(BadData) as raised:
        read_cases(path)
    assert f"{path}, line 3" in str(raised.value)
    assert message in str(raised.value)


def test_files_and_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(GOOD), encoding="utf-8")
    (tmp_path / "two.jsonl").write_text(json.dumps({**GOOD, "id": "b"}), encoding="utf-8")
    found = read_cases(tmp_path)
    assert [case.id for case in found] == ["a", "b"]
    assert found[0].acts[1] == Act(5.0, type="stop")
    (tmp_path / "three.jsonl").write_text(json.dumps(GOOD), encoding="utf-8")
    with pytest.raises(BadData, match="'a' is that of"):
        read_cases(tmp_path)


def test_a_file_without_cases_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(BadData, match="no cases"):
        read_cases(tmp_path / "empty.jsonl")
    with pytest.raises(BadData, match=r"nothing\.jsonl"):
        read_cases(tmp_path / "nothing.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"id": ', encoding="utf-8")
    with pytest.raises(BadData, match="line 1"):
        read_cases(tmp_path / "broken.jsonl")
