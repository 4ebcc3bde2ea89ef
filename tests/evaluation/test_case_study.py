"""Case studies: what is shown is what happened, and looking at forecasts changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from duologue.backends.scripted import ScriptedBackend
from duologue.cli.main import main
from duologue.engine.replay import Cue, Script
from duologue.evaluation.behaviour.player import kind_of
from duologue.evaluation.case_picture import draw
from duologue.evaluation.case_study import Period, lines, play
from duologue.models.adapters import prompted
from duologue.models.model import Model
from duologue.text.template import Template
from duologue.types import InputState, Token
from scripted import PROBE, STATES, ByteTokenizer, judged

ANSWER = "It is a small animal that lives with people."
GOES_ON = " and so on"
SCRIPT = Script(
    (
        Cue(0.0, "what is", "a"),
        Cue(2.0, "what is a cat", "a", final=True),
        Cue(4.5, "mhm", "b", final=True),
        Cue(6.5, "stop", "c", final=True),
    )
)


def turns(ids: list[Token]) -> list[str]:
    """Role and words of each turn, as text."""
    return [part.removesuffix("<|im_end|>\n") for part in ByteTokenizer().decode(ids).split("<|im_start|>")[1:]]


def speak(ids: list[Token]) -> Token:
    """The assistant says its answer; a user's words go on."""
    role, _, words = turns(ids)[-1].partition("\n")
    if role == "assistant":
        return ANSWER.encode()[len(words)] if len(words) < len(ANSWER) else 257
    at = next((n for n in range(len(GOES_ON), 0, -1) if words.endswith(GOES_ON[:n])), 0)
    return GOES_ON.encode()[at] if at < len(GOES_ON) else 257


def judge(ids: list[Token]) -> tuple[float, ...]:
    verdict = judged(turns(ids)[-1].partition("\n")[2]) if not turns(ids)[-1].endswith("is") else InputState.INCOMPLETE
    return (*(0.91 if state is verdict else 0.03 for state in STATES), 0.5, 0.5)


def scripted_model(**settings: Any) -> Model:
    backend = ScriptedBackend(speak, judge, vocab_size=258, num_added=7, **settings)
    return Model("a script", backend, Template.from_tokenizer(ByteTokenizer()), prompted(), PROBE, 4096)


def played(model: Model, **settings: Any) -> list[Period]:
    return play(SCRIPT, kind_of("duplex", model), model, **settings)


def test_periods_have_what_was_said_and_decided() -> None:
    periods = played(scripted_model())
    assert [one.at for one in periods] == [0.0, 2.0, 4.0, 6.0]
    assert [one.user for one in periods] == ["what is", "a cat", "mhm", "stop"]
    assert [one.state for one in periods] == [
        InputState.INCOMPLETE, InputState.PROCESS, InputState.IGNORE, InputState.STOP,
    ]  # fmt: skip
    said = "".join(one.assistant for one in periods)
    assert said
    assert ANSWER.startswith(said)
    assert [one.is_cut for one in periods] == [False, False, False, True]
    assert not any(one.forecast for one in periods)


def test_looking_at_forecasts_changes_nothing_and_leaves_nothing() -> None:
    plain, model = played(scripted_model()), scripted_model()
    periods = played(model, num_forecast=6)
    assert [one.forecast for one in periods] == ["and s"] * 4
    for one in periods:
        one.forecast = ""
    assert periods == plain
    assert model.backend.usage().num_seqs == 0


def test_a_forecast_ends_where_the_model_ends_the_turn() -> None:
    assert {one.forecast for one in played(scripted_model(), num_forecast=60)} == {"and so on"}


def test_without_room_there_is_no_forecast() -> None:
    periods = played(scripted_model(max_seqs=2), num_forecast=6)
    assert {one.forecast for one in periods} <= {"", "and s"}
    assert "" in {one.forecast for one in periods}
    assert [one.user for one in periods] == ["what is", "a cat", "mhm", "stop"]


def test_lines_say_it_in_words() -> None:
    one = Period(4.0, "mhm", InputState.IGNORE, "and so", "It is\na cat", True)
    assert lines([one]) == [f"   4 s  {'mhm [ignore] (and so …)':<44}  It is a cat — cut"]


def test_a_silent_conversation_has_no_periods() -> None:
    model = scripted_model()
    assert play(Script((Cue(1.0, command="stop"),)), kind_of("duplex", model), model) == []


@pytest.mark.parametrize("name", ["a.png", "b.pdf", "c.svg"])
def test_conversations_are_drawn_side_by_side(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    periods = [Period(0.0, "what is a cat " * 6, InputState.PROCESS, "on the mat", ANSWER), Period(2.0)]
    draw(tmp_path / name, {"one": periods, "two": periods[:1]})
    assert (tmp_path / name).read_bytes()[:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")
    if name.endswith("svg"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.count("<!-- process -->") == 2
        assert text.count("<!-- → on the mat -->") == 2


def test_the_command_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("duologue.models.model.load", lambda *_, **__: scripted_model())
    script = tmp_path / "talk.jsonl"
    script.write_text('{"at": 0, "text": "what is a cat"}\n{"at": 1, "text": "mhm"}\n', encoding="utf-8")
    picture = tmp_path / "case.png"
    command = ["eval", "case", str(script), "--sessions", "duplex,turns", "--forecast", "4", "--end", "9"]
    assert main([*command, "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "duplex\n" in printed
    assert "turns\n" in printed
    assert "(and …)" in printed
    assert picture.stat().st_size > 1000
    assert main([*command, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["title"] for row in rows] == ["duplex", "turns"]
    assert "what is a cat" in rows[0]["periods"][0]["user"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sessions", "slices"], "no kind of session 'slices' here"),
        (["--picture", "case.doc"], "must end in .png, .pdf, .svg"),
    ],
)
def test_options_that_make_no_sense_are_explained(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "case", "examples/interruption.jsonl", *options]) == 2
    assert message in capsys.readouterr().err
