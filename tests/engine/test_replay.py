"""Scripts on a virtual clock: what comes out of them, that it is always the same, and what is said of broken ones.

`golden/NAME.jsonl` is a script, `golden/NAME.expected.jsonl` what happens in it; after a change that is meant, write
the latter anew with `python tests/test_replay.py`.
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from duologue.core.events import Committed, Decided, Event, Received, Said, as_dict
from duologue.engine.replay import Cue, Replay, Script, read_script
from duologue.engine.trace import Pass
from duologue.errors import BadData, ContextOverflow, EngineError, UsageError
from duologue.types import Role, Turn
from scripted import PROBE, Talk

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.jsonl") if "." not in path.stem)
ANSWERS = {
    "tell me all about the moon": "The moon is a ball of rock, and it goes around the earth once in a month.",
    "and the sun": "The sun is a star.",
    "how are you": "I am fine, and thank you very much for asking me that.",
    "tell me about owls": "Owls see well at night.",
    "what is rain": "Rain is water that falls from clouds in many small drops, and then it is gone.",
    "hello": "Hello to you.",
    "i wonder about the": "So do I, and here is what there is to say: "
    + "it is a wide field, " * 12
    + "and that is all.",
}


def replay_of(script: Script, answers: Mapping[str, str] = ANSWERS, **options: Any) -> Replay:
    talk = Talk(answers)
    return Replay(script, talk.backend, talk.template, PROBE, **{"passes": 60, **options})


def happened(name: str) -> list[dict[str, Any]]:
    """Events but the text that came out bit by bit, and then the outcome."""
    replay = replay_of(read_script(GOLDEN / f"{name}.jsonl"))
    events = [as_dict(event) for event in replay]
    return [e for e in events if e["type"] not in ("said", "heard")] + [replay.result.as_dict()]


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_golden_conversations(name: str) -> None:
    lines = (GOLDEN / f"{name}.expected.jsonl").read_text(encoding="utf-8").splitlines()
    assert happened(name) == [json.loads(line) for line in lines]


def test_there_are_golden_conversations() -> None:
    assert len(NAMES) >= 5


def test_the_same_script_gives_the_same_bytes() -> None:
    def once() -> str:
        replay = replay_of(read_script(GOLDEN / "interruption.jsonl"), seed=3)
        return "\n".join(json.dumps(as_dict(event)) for event in replay) + json.dumps(replay.result.as_dict())

    assert once() == once()


def test_speech_comes_in_slices_one_a_period(tmp_path: Path) -> None:
    path = write(tmp_path, '{"at": 1, "say": "one two three four five six seven eight nine ten eleven"}')
    script = read_script(path, period_s=2.0)
    onset, *slices = script.cues
    assert (onset.at, onset.text, onset.final) == (1.0, "", False)
    assert [cue.at for cue in slices] == [1.0 + 2.0 * i for i in range(1, len(slices) + 1)]
    assert [cue.final for cue in slices] == [False] * (len(slices) - 1) + [True]
    assert {cue.utterance for cue in script.cues} == {"line1"}
    assert slices[-1].text == "one two three four five six seven eight nine ten eleven"
    assert read_script(path, seed=0) == read_script(path, seed=0)


def test_a_pass_takes_its_share_of_the_period() -> None:
    events = list(replay_of(Script((Cue(0.0, "hello", final=True),)), period_s=2.0, passes=10))
    decided = next(event for event in events if isinstance(event, Decided))
    said = [event.at for event in events if isinstance(event, Said)]
    steps = [round(b - a, 6) for a, b in pairwise(said)]
    assert decided.at - decided.heard_at > 0, "the decision takes a pass"
    assert decided.at == pytest.approx(0.2 * round(decided.at / 0.2))
    assert set(steps) == {0.2}


def test_words_that_come_while_a_pass_runs_are_heard_before_it_ends() -> None:
    script = Script((Cue(0.0, "hello", final=True), Cue(1.3, "mhm", "b", final=True)))
    events = list(replay_of(script, period_s=2.0, passes=2))  # a pass takes a second
    at = {event.text: event.at for event in events if isinstance(event, Received)}
    assert at["mhm"] == pytest.approx(1.3)


def test_nothing_to_do_costs_nothing() -> None:
    script = Script((Cue(0.0, "hello", final=True), Cue(100_000.0, "hello", "b", final=True)))
    replay = replay_of(script)
    events = list(replay)
    assert [event.at >= 100_000 for event in events if isinstance(event, Committed)] == [False, True]
    assert replay.result.trace.num_passes < 200


def test_the_outcome_holds_what_was_said_and_heard() -> None:
    replay = replay_of(read_script(GOLDEN / "interruption.jsonl"))
    list(replay)
    outcome = replay.result.as_dict()
    assert list(outcome) == ["said", "heard", "history", "passes"]
    heard = [turn["text"] for turn in outcome["history"] if turn["role"] == "assistant"]
    assert outcome["heard"] == "\n".join(heard)
    assert ANSWERS["and the sun"] in outcome["said"]


def test_heard_counts_what_was_heard_in_this_replay_only() -> None:
    history = (Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "An answer of yesterday."))
    replay = replay_of(Script((Cue(0.0, "hello", final=True),), history=history))
    list(replay)
    assert replay.result.heard == "Hello to you."
    assert replay.result.history[:2] == history


def test_closing_frees_everything_and_the_sink_gets_all() -> None:
    talk, records = Talk(ANSWERS), []
    script = Script((Cue(0.0, "hello", final=True),))
    replay = Replay(script, talk.backend, talk.template, PROBE, passes=60, sink=records.append)
    events = list(replay)
    assert [record for record in records if isinstance(record, Event)] == events
    assert sum(isinstance(record, Pass) for record in records) == replay.result.trace.num_passes
    replay.close()
    assert talk.backend.usage().num_seqs == 0


def test_a_failing_backend_is_an_engine_error() -> None:
    talk = Talk(ANSWERS)

    def broken(_: object) -> Any:
        raise MemoryError

    talk.backend.forward = broken  # type: ignore[method-assign]
    replay = Replay(Script((Cue(0.0, "hello", final=True),)), talk.backend, talk.template, PROBE)
    with pytest.raises(EngineError, match="MemoryError"):
        list(replay)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "JSON object"),
        ("null", "JSON object"),
        ('{"say": "hello"}', "needs a time"),
        ('{"at": 0}', "exactly one of"),
        ('{"at": 0, "say": "hello", "text": "hello"}', "exactly one of"),
        ('{"at": 0, "sya": "hello"}', "exactly one of"),
        ('{"at": 0, "say": "hello", "final": true}', "final cannot be combined with say"),
        ('{"at": "now", "say": "hello"}', '"at"'),
        ('{"at": -1, "say": "hello"}', '"at"'),
        ('{"at": NaN, "say": "hello"}', '"at"'),
        ('{"at": 1e400, "say": "hello"}', '"at"'),
        ('{"at": 1' + "0" * 400 + ', "say": "hello"}', '"at"'),
        ('{"at": true, "say": "hello"}', '"at"'),
        ('{"at": null, "say": "hello"}', '"at"'),
        ('{"at": 0, "say": ""}', "no words"),
        ('{"at": 0, "say": 7}', '"say" is 7'),
        ('{"at": 0, "text": ["hello"]}', '"text" is'),
        ('{"at": 0, "text": "hello", "final": "no"}', '"final" is'),
        ('{"at": 0, "text": "hello", "utterance": 3}', '"utterance" is'),
        ('{"at": 0, "command": "sing"}', "stop, resume, respond"),
        ('{"at": 0, "command": ["stop"]}', "stop, resume, respond"),
        ('{"at": 0, "edit": "all"}', "turns are a list"),
        ('{"at": 0, "edit": [{"role": "user"}]}', "turns are a list"),
        ('{"at": 0, "edit": [{"role": "robot", "text": "hi"}]}', "'robot'"),
        ('{"at": 0, "edit": [{"role": ["user"], "text": "hi"}]}', "a turn has role"),
        ('{"at": 0, "edit": [{"role": "user", "text": null}]}', '"text" is None'),
        ('{"system": 5}', '"system" is 5'),
        ('{"history": {}}', "turns are a list"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = write(tmp_path, "# a comment", "", '{"at": 0, "say": "hello"}', line)
    with pytest.raises(BadData) as caught:
        read_script(path)
    assert f"{path}, line 4: " in str(caught.value)
    assert words in str(caught.value)


def test_files_that_are_no_scripts(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="cannot read"):
        read_script(tmp_path / "none.jsonl")
    with pytest.raises(BadData, match="cannot read"):
        read_script(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes('{"at": 0, "say": "grün"}'.encode("latin-1"))
    with pytest.raises(BadData, match=r"cannot read.*latin\.jsonl"):
        read_script(tmp_path / "latin.jsonl")
    with pytest.raises(BadData, match="has no cues"):
        read_script(write(tmp_path, '{"system": "Be kind."}'))


def test_a_byte_order_mark_odd_separators_and_surrogates_do_no_harm(tmp_path: Path) -> None:
    line = '{"at": 0, "text": "a\u2028b \\ud800"}\r'
    path = write(tmp_path, "\ufeff" + line)
    (cue,) = read_script(path).cues
    assert cue.text == "a\u2028b \ufffd"


@pytest.mark.parametrize("options", [{"period_s": 0}, {"period_s": -2}, {"period_s": float("nan")}, {"passes": 0}])
def test_a_pace_that_cannot_be(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        replay_of(Script((Cue(0.0, "hello", final=True),)), **options)
    if "period_s" in options:
        with pytest.raises(UsageError, match="must be positive"):
            read_script(write(tmp_path, '{"at": 0, "say": "hello"}'), **options)


def test_an_edit_that_does_not_fit_names_its_line(tmp_path: Path) -> None:
    turn = json.dumps({"at": 0, "edit": [{"role": "user", "text": "x" * 500}]})
    script = read_script(write(tmp_path, "", turn))
    with pytest.raises(BadData, match=r"line 2 of the script.*tokens"):
        list(replay_of(script, max_length=256))


def test_a_history_that_does_not_fit() -> None:
    script = Script((Cue(0.0, "hello", final=True),), history=(Turn(Role.USER, "x" * 500),))
    with pytest.raises(ContextOverflow):
        replay_of(script, max_length=256)


def test_absurd_words_leave_the_conversation_as_it_was() -> None:
    script = Script(
        (
            Cue(0.0, "hello", final=True),
            Cue(5.0, "word " * 100_000, "b", final=True),
            Cue(6.0, "  \n\t ", "c", final=True),
            Cue(7.0, "", "d", final=True),
            Cue(8.0, "hello", "e", final=True),
        )
    )
    replay = replay_of(script)
    events = list(replay)
    assert [as_dict(event)["type"] for event in events].count("refused") == 1
    assert [turn.text for turn in replay.result.history] == ["hello", "Hello to you."] * 2


if __name__ == "__main__":
    for golden in NAMES:
        rows = [json.dumps(row, ensure_ascii=False) for row in happened(golden)]
        (GOLDEN / f"{golden}.expected.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
