"""`duologue eval behaviour`: what is played, what is judged, and what it adds up to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import browsing
from duologue.cli.main import main
from duologue.core import events as e
from duologue.core.events import Decision
from duologue.core.transitions import Floor
from duologue.errors import BadData, UsageError
from duologue.evaluation.behaviour import generate as g
from duologue.evaluation.behaviour.cases import Act, Action, Case, Expectation, plain_words
from duologue.evaluation.behaviour.judge import Problem, SpeechInterval, judge, speeches
from duologue.evaluation.behaviour.measures import CaseResult, details, difference, line
from duologue.evaluation.behaviour.player import SESSIONS, Played, kind_of, play_all
from duologue.evaluation.behaviour.readers import read
from duologue.evaluation.behaviour.report import draw, page, tables
from duologue.models.adapters import prompted
from duologue.models.model import Model
from duologue.speakers.endpoint import Endpoint
from duologue.speakers.remote import RemoteSpeaker
from duologue.types import InputState, Role, Turn
from endpoint import says, standing_in_beside
from scripted import PROBE, Talk

S = InputState
KEYS = {
    "n",
    "set",
    "accuracy",
    "actions",
    "kinds",
    "pairs",
    "takeover",
    "stop_latency_s",
    "penalty_s",
    "context_correct",
}
STATE = {Action.ANSWER: S.PROCESS, Action.RESUME: S.PROCESS, Action.STOP: S.STOP, Action.GO_ON: S.IGNORE}
ASKED = Turn(Role.USER, "why is the sky blue")
BLUE = "Because light is scattered by small things in the air, and blue light is scattered more than red light is. " * 3


def model_of(talk: Talk) -> Model:
    return Model("scripted", talk.backend, talk.template, prompted(), PROBE, 1 << 14)


class Oracle:
    """Decides what the expectations of a case say about the words, and waits while they grow."""

    def __init__(self, case: Case) -> None:
        self.states: dict[str, InputState] = {}
        for act in case.acts:
            words = " ".join(plain_words(act.speak or act.type or ""))
            wanted = [one for one in case.expect if act.at <= one.start]
            action = next(
                (one.action for one in wanted if one.action is not Action.WAIT or "[" not in (act.speak or "")), None
            )
            waits = S.INCOMPLETE if case.kind in ("wait_a_second", "pair_list") else S.IGNORE
            self.states[words] = S.PROCESS if action is None else STATE.get(action, waits)

    def __call__(self, text: str) -> InputState:
        words = " ".join(plain_words(text))
        known = [whole for whole in self.states if words == whole or words.endswith(" " + whole)]
        return self.states[max(known, key=len)] if known else S.INCOMPLETE


def played_by_oracle(cases: Sequence[Case], name: str = "duplex") -> list[CaseResult]:
    found = []
    for case in cases:
        talk = Talk(judge=Oracle(case))
        model = model_of(talk)
        found += [CaseResult.of(one) for one in play_all([case], kind_of(name, model), model.backend, model.template)]
    return found


def test_who_decides_as_the_labels_say_is_right_everywhere() -> None:
    """So no case asks for what cannot be done, and no rule of the judge is too strict."""
    cases = g.generate()[::9]
    judged = played_by_oracle(cases)
    wrong = {one.played.case.id: [v.problem.value for v in one.verdicts] for one in judged if not one.right}
    assert wrong == {}
    result = line(judged)
    assert result["accuracy"] == 1.0
    assert result["context_correct"] == 1.0
    assert result["takeover"]["pause_1.2"] == 0.0
    assert result["takeover"]["turn"] == 1.0


def test_verdicts_do_not_depend_on_how_many_play_at_once() -> None:
    cases = g.split("dev")[::5]
    talk = Talk()
    model = model_of(talk)
    runs = []
    for at_once in (1, 4, 7):
        played = play_all(cases, kind_of("duplex", model), model.backend, model.template, at_once=at_once)
        runs.append([CaseResult.of(one) for one in played])
    for other in runs[1:]:
        assert [e.as_dict(event) for one in runs[0] for event in one.played.events] == [
            e.as_dict(event) for one in other for event in one.played.events
        ]
    assert not talk.backend.usage().num_seqs, "everything is given back"


def test_a_pass_that_fails_ends_all_conversations() -> None:
    talk = Talk()
    model = model_of(talk)

    def broken(batch: object) -> None:
        raise RuntimeError("out of order")

    talk.backend.forward = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(Exception, match="out of order"):
        play_all(g.split("dev")[:6], kind_of("duplex", model), model.backend, model.template, at_once=3)


@pytest.mark.parametrize("name", SESSIONS)
def test_every_kind_of_session_is_played(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.evaluation.behaviour.player.MAX_LENGTH", 8192)  # characters are tokens here
    talk = Talk()
    talk.backend._judge = lambda ids: (0.9, 0.04, 0.03, 0.03)  # whatever is asked, and how
    model = model_of(talk)
    cases = g.split("dev")[::9]
    judged = [
        CaseResult.of(one) for one in play_all(cases, kind_of(name, model), model.backend, model.template, at_once=4)
    ]
    result = line(judged)
    assert result.keys() == KEYS
    assert result["n"] == len(cases)
    assert result["context_correct"] == (None if name == "tdm" else 1.0)


@pytest.mark.parametrize("parts", [1, 100])
def test_answers_from_elsewhere_are_judged_as_those_of_the_model(parts: int) -> None:
    """The endpoint's answers are shorter or longer than those of the cases. Its words are replaced."""
    cases = g.split("dev")[::8]
    with standing_in_beside(says(*["xyzzy "] * parts)) as stand_in:
        speaker = RemoteSpeaker(Endpoint(stand_in.url, "a-model"))
        for case in cases:
            model = model_of(Talk(judge=Oracle(case)))
            remote = model.spoken_by(speaker, max_length=1 << 14)
            (played,) = play_all([case], kind_of("duplex", remote), remote.backend, remote.template)
            found = CaseResult.of(played)
            assert found.right, (case.id, found)
            assert played.context_right, case.id
            assert not any("xyzzy" in event.text for event in played.events if isinstance(event, e.Said))
        assert {asked.body["model"] for asked in stand_in.asked} == {"a-model"}


def test_only_duplex_sessions_are_answered_from_elsewhere() -> None:
    remote = model_of(Talk()).spoken_by(RemoteSpeaker(Endpoint("http://127.0.0.1:9", "a-model")), max_length=2048)
    with pytest.raises(UsageError, match="sessions of kind turns cannot be answered from elsewhere"):
        kind_of("turns", remote)


def test_there_is_no_other_kind_of_session() -> None:
    with pytest.raises(UsageError, match="duplex, prompted"):
        kind_of("telepathy", model_of(Talk()))


def test_the_user_hears_the_words_of_the_case_at_the_pace_of_speech() -> None:
    case = case_of(Act(4.0, type="stop"), Expectation(Action.STOP, 4.0, 4.0, floor=Floor.SPEAKING))
    played = played_by(case, lambda words: S.STOP)
    assert [turn.text for turn in played.history] == [ASKED.text, heard_until(4.0)]
    assert played.context_right
    assert 0 < played.num_wasted <= 48 + 8


@pytest.mark.parametrize("name", ["duplex", "slices", "turns", "vad", "tdm"])
def test_the_answer_that_is_running_is_the_same_for_every_kind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.evaluation.behaviour.player.MAX_LENGTH", 8192)
    case = case_of(Act(4.0, type="stop"), Expectation(Action.STOP, 4.0, 4.0, floor=Floor.SPEAKING))
    model = model_of(Talk())
    (played,) = play_all([case], kind_of(name, model), model.backend, model.template)
    first = speeches(played.events, case.end)[0]
    assert (first.answer, first.asked) == (0, ASKED.text)
    assert first.start <= 0.2
    assert BLUE.startswith(first.text)


def heard_until(at: float) -> str:
    """Whole words of `BLUE` that are played by then: 15 characters a second, and a pass until it begins and is cut."""
    text = BLUE[: round(15 * at)]
    return text[: text.rindex(" ")]


def case_of(act: Act, one: Expectation, **options: Any) -> Case:
    return Case("a", "recorded", (ASKED,), BLUE, (act,), (one,), **options)


def played_by(case: Case, decide: Any) -> Played:
    model = model_of(Talk(judge=decide))
    return play_all([case], kind_of("duplex", model), model.backend, model.template)[0]


# ----------------------------------------------------------------------------------------------------- verdicts

OVER = Expectation(Action.GO_ON, 3.0, 4.0, floor=Floor.SPEAKING)
SPEAKING = SpeechInterval(0, 0.1, 9.0, "why", "Because of many things that are small.")
NEXT = SpeechInterval(1, 4.5, 6.0, "and at night", "It is dark, of course, at night.")


def cut_at(at: float) -> SpeechInterval:
    return SpeechInterval(0, 0.1, at, "why", "Because of many", cut=True)


def verdict(one: Expectation, *spoken: SpeechInterval) -> Any:
    act = Act(one.start, speak=one.to or "mhm")
    return judge(Case("a", "recorded", (ASKED,), BLUE, (act,), (one,)), spoken)[0]


def over(action: Action, **options: Any) -> Expectation:
    return Expectation(action, 3.0, 4.0, floor=Floor.SPEAKING, **options)


@pytest.mark.parametrize(
    ("one", "spoken", "problem"),
    [
        (over(Action.GO_ON), [SPEAKING], Problem.NONE),
        (over(Action.GO_ON), [cut_at(3.5)], Problem.CUT),
        (over(Action.GO_ON), [cut_at(3.0)], Problem.CUT),
        (over(Action.GO_ON), [cut_at(2.0)], Problem.NOT_SPEAKING),
        (over(Action.STOP), [cut_at(4.2)], Problem.NONE),
        (over(Action.STOP), [SPEAKING], Problem.WENT_ON),
        (over(Action.STOP), [cut_at(4.2), NEXT], Problem.SPOKE),
        (over(Action.ANSWER, to="and at night"), [cut_at(4.2), NEXT], Problem.NONE),
        (over(Action.ANSWER, to="at night"), [cut_at(4.2), NEXT], Problem.NONE),
        (over(Action.ANSWER, to="and by day"), [cut_at(4.2), NEXT], Problem.WRONG_TURN),
        (over(Action.ANSWER), [SPEAKING], Problem.WENT_ON),
        (over(Action.ANSWER), [cut_at(4.2)], Problem.MISSED),
        (over(Action.ANSWER), [cut_at(3.2), SpeechInterval(1, 3.3, 5.0, "and", "It is")], Problem.EARLY),
        (Expectation(Action.WAIT, 3.0, 4.0), [], Problem.NONE),
        (Expectation(Action.WAIT, 3.0, 4.0), [NEXT], Problem.SPOKE),
        (Expectation(Action.WAIT, 3.0, 4.0, 0.4), [NEXT], Problem.NONE),
        (Expectation(Action.ANSWER, 3.0, 4.0), [NEXT], Problem.NONE),
        (Expectation(Action.ANSWER, 3.0, 4.0, 0.4), [NEXT], Problem.MISSED),
        (
            Expectation(Action.RESUME, 3.0, 4.0),
            [SpeechInterval(0, 4.5, 6.0, "why", "many", resumed=True)],
            Problem.NONE,
        ),
        (
            Expectation(Action.ANSWER, 3.0, 4.0),
            [SpeechInterval(0, 4.5, 6.0, "why", "many", resumed=True)],
            Problem.WENT_ON,
        ),
        (Expectation(Action.RESUME, 3.0, 4.0), [], Problem.MISSED),
    ],
)
def test_verdicts(one: Expectation, spoken: list[SpeechInterval], problem: Problem) -> None:
    assert verdict(one, *spoken).problem is problem


def test_an_answer_to_earlier_words_is_not_early() -> None:
    one = Expectation(Action.ANSWER, 3.0, 4.0, to="no boston")
    acts = (Act(1.0, type="book a flight to austin"), Act(3.0, speak="no boston"))
    case = Case("a", "recorded", (), None, acts, (one,))
    earlier = SpeechInterval(0, 3.2, 4.1, "book a flight to austin", "Sure, to", cut=True)
    then = SpeechInterval(1, 4.2, 6.0, "no boston", "To Boston, then.")
    assert judge(case, [earlier, then])[0].right
    assert judge(case, [SpeechInterval(0, 3.2, 4.1, "no", "Sure", cut=True), then])[0].problem is Problem.EARLY


def test_speech_is_from_the_first_word_to_the_cut() -> None:
    told: list[e.Event] = [
        e.Promoted(0.0, "u", "why", 0),
        e.Said(0.1, 0, 0, "Because of"),
        e.Heard(0.6, 0, 7),
        e.Suspended(1.0, 0, "Because", " of"),
        e.Promoted(1.0, "v", "and", 1),
        e.Said(1.1, 1, 0, "Well"),
        e.TakenBack(1.2, 1),  # nothing of it was heard
        e.Resumed(1.3, 0, 0, True),
        e.Said(1.3, 0, 7, " of"),
        e.Heard(1.4, 0, 10),
        e.Committed(1.4, 0, "Because of"),
    ]
    assert speeches(told, 5.0) == [SpeechInterval(0, 0.1, 1.4, "why", "Because of")], "the gap is half a second"
    told[7:] = [e.Resumed(2.0, 0, 0, True), e.Said(2.0, 0, 7, " of"), e.Heard(2.1, 0, 10)]
    first, second = speeches(told, 5.0)
    assert (first.end, first.cut, first.resumed) == (1.0, True, False)
    assert (second.start, second.end, second.resumed) == (2.0, 5.0, True)


# ------------------------------------------------------------------------------------------------------ figures


def judged_as(case: Case, *spoken: SpeechInterval, decided: Sequence[e.Event] = ()) -> CaseResult:
    return CaseResult(Played(case, events=list(decided), context_right=True), spoken, tuple(judge(case, spoken)))


def test_penalties_are_those_of_sid_bench() -> None:
    stop = case_of(Act(3.0, speak="stop"), over(Action.STOP))
    mhm = case_of(Act(3.0, speak="mhm"), over(Action.GO_ON))
    whole, rest = len(BLUE) / 15, len(BLUE) / 15 - 2.9
    runs = [
        (judged_as(stop, cut_at(3.7)), 0.7),  # as late as that
        (judged_as(stop, SPEAKING), rest),  # to the end
        (judged_as(mhm, cut_at(3.7)), whole),  # for nothing
        (judged_as(mhm, SPEAKING), 0.0),
    ]
    for one, seconds in runs:
        assert line([one])["penalty_s"] == pytest.approx(seconds, abs=1e-3)
    together = line([one for one, _ in runs])
    assert together["penalty_s"] == pytest.approx((0.7 + rest + whole) / 4, abs=1e-3)
    assert together["stop_latency_s"] == pytest.approx(0.7)
    assert together["actions"] == {"maintain": 0.5, "stop_and_listen": 0.5, "takeover": None, "dismiss": None}
    assert together["accuracy"] == 0.5


def test_a_short_noise_is_no_takeover() -> None:
    pause = Expectation(Action.WAIT, 1.0, 2.0, 1.2)
    expect = (pause, Expectation(Action.ANSWER, 3.2, 4.0))
    case = Case("a", "pause_1.2", (), None, (Act(1.0, speak="so [1.2] what is it"),), expect)

    def rate(start: float, end: float) -> float:
        return float(
            line([judged_as(case, SpeechInterval(0, start, end, "so", "It is", cut=True))])["takeover"]["pause_1.2"]
        )

    assert rate(2.1, 2.5) == 0.0
    assert rate(2.1, 3.2) == 1.0
    assert rate(3.7, 5.0) == 1.0, "the turn goes on"
    assert rate(4.1, 5.2) == 0.0, "it has ended"
    assert not judged_as(case, SpeechInterval(0, 2.1, 2.5, "so", "It is", cut=True)).right, "but it is heard, and wrong"


def asked(at: float, p: float) -> e.Decided:
    decision = Decision(S.PROCESS, p, ((S.PROCESS, p), (S.INCOMPLETE, 1 - p)))
    return e.Decided(at + 0.05, "u", "words", decision, False, at)


def test_false_cutoffs_and_latency_of_the_best_policy() -> None:
    expect = (Expectation(Action.WAIT, 1.0, 2.0, 0.6), Expectation(Action.ANSWER, 2.6, 4.0))
    case = Case("a", "pause_0.6", (), None, (Act(1.0, speak="so [0.6] what"),), expect)
    told_apart = details([judged_as(case, decided=[asked(2.0, 0.2), asked(4.0, 0.9)])])["eot_bench"]
    assert told_apart["false_cutoffs_at"] == {"300_ms": 0.0, "600_ms": 0.0}
    assert told_apart["latency_s_at"] == {"5_%": 0.0, "10_%": 0.0}
    blind = details([judged_as(case)])["eot_bench"]
    assert blind["false_cutoffs_at"] == {"300_ms": 1.0, "600_ms": 0.0 if blind["latency_s_at"]["5_%"] <= 0.6 else 1.0}
    assert blind["latency_s_at"]["5_%"] == 0.6


def test_differences_are_ties_where_two_states_were_close() -> None:
    case = case_of(Act(3.0, speak="mhm"), over(Action.GO_ON))
    near = [
        e.Decided(3.5, "u", "mhm", Decision(state, p, ((S.IGNORE, 0.5), (S.PROCESS, 0.5))), True, 3.4)
        for state, p in ((S.IGNORE, 0.5), (S.PROCESS, 0.5))
    ]
    far = [
        e.Decided(3.5, "u", "mhm", Decision(S.IGNORE, 0.9, ((S.IGNORE, 0.9), (S.PROCESS, 0.1))), True, 3.4),
        e.Decided(3.5, "u", "mhm", Decision(S.PROCESS, 0.9, ((S.IGNORE, 0.1), (S.PROCESS, 0.9))), True, 3.4),
    ]
    right, wrong = SPEAKING, cut_at(3.5)
    a = [judged_as(case, right, decided=[near[0]]), judged_as(case, right, decided=[far[0]]), judged_as(case, right)]
    b = [judged_as(case, wrong, decided=[near[1]]), judged_as(case, wrong, decided=[far[1]]), judged_as(case, right)]
    assert difference(a, b) == {"n": 3, "equal": 1, "ties": 1, "others": 1}
    assert difference(a, a) == {"n": 3, "equal": 3, "ties": 0, "others": 0}


# ------------------------------------------------------------------------------------------------------ reports


def test_tables_picture_and_page(tmp_path: Path) -> None:
    judged = played_by_oracle(g.split("dev")[::12])
    runs = {"duplex": {**line(judged), **details(judged)}}
    text = tables(runs)
    assert "average penalty time" in text
    assert "takeover: completion" in text
    draw(runs, tmp_path / "kinds.png")
    assert (tmp_path / "kinds.png").read_bytes().startswith(b"\x89PNG")
    made = page("Behaviour", runs, {"duplex": judged})
    assert "http" not in made.replace("http://www.w3.org/2000/svg", ""), "nothing is loaded"
    assert json.loads(json.dumps(runs)) == runs
    assert judged[0].played.case.id in made


@pytest.mark.chromium
def test_the_page_opens_in_a_browser(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    judged = played_by_oracle(g.split("dev")[::12])
    path = tmp_path / "index.html"
    path.write_text(page("Behaviour", {"duplex": {**line(judged), **details(judged)}}, {"duplex": judged}), "utf-8")
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browsing.CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page()
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.goto(path.as_uri())
        assert shown.inner_text("#count") == f"{len(judged)} of {len(judged)} right"
        last = judged[-1].played.case
        shown.click(f"#list li:has-text('{last.id}')")
        assert shown.inner_text("#case h2") == f"{last.id} ({last.kind})"
        assert shown.locator("#case svg rect").count() >= 2 * len(last.expect)
        shown.check("#wrong")
        assert shown.locator("#list li").count() == 0
        browser.close()
    assert complaints == []


# ---------------------------------------------------------------------------------------------------- the command


@pytest.mark.smollm2
@pytest.mark.llamacpp
def test_a_smoke_run_of_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status = main(["eval", "behaviour", "--split", "dev", "--smoke", "--json", "--out", str(tmp_path / "report")])
    assert status == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result.keys() == KEYS
    assert result["context_correct"] == 1.0
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"result.json", "index.html", "kinds.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jsonl"], "nothing.jsonl"),
        (["--sessions", "duplex,telepathy"], "no kind of session 'telepathy'"),
        (["--read", "flexi"], "name a file"),
        (["--compare", "telepathy"], "no backend 'telepathy'"),
    ],
)
def test_bad_input_is_explained_before_a_model_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duologue.cli.eval_behaviour.load_model", None)
    assert main(["eval", "behaviour", *arguments]) == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- sets of other people


def put(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_flexi_is_read(tmp_path: Path) -> None:
    put(tmp_path / "turn_taking_text.json", {"dialog_1": [{"text": "How are you?"}]})
    paused = {
        "text": "I bake, and it fails.",
        "Pause1": "I bake",
        "Pause2": "and it fails.",
        "pause_timestamp": [2, 2.8],
    }
    put(tmp_path / "pause_handing_text.json", [{"dialog_1": paused}])
    put(tmp_path / "user_backchannel_text.json", [{"dialog_1": {"text": "Explain tides.", "Pause1": "Okay."}}])
    put(tmp_path / "user_interruption_text.json", [{"dialog1": {"context": "List ten.", "interrupt": "Just one."}}])
    put(tmp_path / "model_backchannel_text.json", [{"dialog_1": {"text": "x", "Pause1": "y"}}])
    found = {case.id: case for case in read(tmp_path, "flexi")}
    actions = {name.split("-")[0]: [one.action.value for one in case.expect] for name, case in found.items()}
    assert actions == {
        "turn_taking_text": ["answer"],
        "pause_handing_text": ["wait", "answer"],
        "user_backchannel_text": ["go_on"],
        "user_interruption_text": ["answer"],
    }
    assert found["pause_handing_text-dialog_1"].expect[0].within == 0.8


def test_full_duplex_bench_is_read(tmp_path: Path) -> None:
    words = [{"text": "so", "timestamp": [0.2, 0.6]}, {"text": " what?", "timestamp": [2.0, 2.4]}]
    put(tmp_path / "pause/1/transcription.json", {"chunks": words})
    put(tmp_path / "pause/1/pause.json", [{"text": "[PAUSE]", "timestamp": [0.6, 2.0]}])
    put(tmp_path / "turns/1/transcription.json", words)
    put(tmp_path / "turns/1/turn_taking.json", [{"text": "[TURN-TAKING]", "timestamp": [2.4, 2.9]}])
    put(tmp_path / "cut/1/interrupt.json", [{"context": "Tell me.", "interrupt": "No, wait.", "timestamp": [5, 6]}])
    actions = {
        case.id: [(one.action.value, one.at) for one in case.expect] for case in read(tmp_path, "full_duplex_bench")
    }
    assert actions == {"cut-1": [("answer", 3.8)], "pause-1": [("wait", 1.6)], "turns-1": [("answer", 3.4)]}


def test_codett_is_read(tmp_path: Path) -> None:
    def row(state: str, text: str, tags: str) -> str:
        asked = {"role": "user", "content": f"State: <|{state}|> Input: {text}"}
        before = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello there."}]
        return json.dumps({"messages": [*before, asked, {"role": "assistant", "content": tags}]}) + "\n"

    put(
        tmp_path / "a.jsonl",
        row("SystemSpeaking", "mhm", "<|Maintain|><|Backchannel|>")
        + row("SystemSpeaking", "stop", "<|Stop & Listen|><|Dismissal|>")
        + row("SystemIdle", "what is rain", "<|Takeover|><|Completion|>")
        + row("SystemIdle", "what is", "<|Dismiss|><|Incomplete|>"),
    )
    found = read(tmp_path, "codett")
    assert [case.expect[-1].action.value for case in found] == ["go_on", "stop", "answer", "wait"]
    assert [case.expect[-1].intent for case in found] == ["backchannel", "dismissal", "completion", "incomplete"]


def test_turnbench_is_read(tmp_path: Path) -> None:
    def srt(*entries: tuple[int, int, str]) -> str:
        return "\n".join(
            f"{i}\n00:00:{a:02},000 --> 00:00:{b:02},500\n{text}\n" for i, (a, b, text) in enumerate(entries)
        )

    put(
        tmp_path / "t/speaker_1_annotation_a.srt",
        srt((1, 3, "[Normal Turn] How was it?"), (6, 6, "[Continuer Backchannel] mhm"), (8, 9, "[Laughter] ")),
    )
    put(tmp_path / "t/speaker_2_annotation_a.srt", srt((4, 12, "[Normal Turn] It was a long day.")))
    found = read(tmp_path, "turnbench")
    assert [(case.expect[0].action.value, case.expect[0].intent) for case in found] == [
        ("answer", "Normal Turn"),
        ("go_on", "Continuer Backchannel"),
    ]
    assert found[1].history[0].text == "How was it?"


def test_what_is_not_in_the_format_is_explained(tmp_path: Path) -> None:
    put(tmp_path / "a.json", {"dialog": {"context": "x", "interrupt": 4}})
    with pytest.raises(BadData, match="--read flexi"):
        read(tmp_path, "flexi")
    with pytest.raises(BadData, match="nothing that --read turnbench knows"):
        read(tmp_path, "turnbench")


def test_a_recorded_conversation_becomes_cases(tmp_path: Path) -> None:
    """A conversation as a server records it; what was done in it is what is expected, to be corrected by hand."""
    case = Case(
        "a",
        "recorded",
        (ASKED,),
        BLUE,
        (Act(3.0, speak="mhm"), Act(6.0, type="stop"), Act(9.0, type="and at night")),
        (over(Action.GO_ON),),
    )
    talk = Talk(judge=lambda words: {"mhm": S.IGNORE, "stop": S.STOP}.get(words, S.PROCESS))
    model = model_of(talk)
    late = Expectation(Action.ANSWER, 9.0, 9.0)
    played = play_all(
        [Case(**{**fields(case), "expect": (late,)})], kind_of("duplex", model), model.backend, model.template
    )
    header = {"record": 1, "session": "s", "model": "m", "began": "", "settings": {}, "history": []}
    lines = [header, *(e.as_dict(event) for event in played[0].events)]
    path = put(tmp_path / "talk.jsonl", "".join(json.dumps(one) + "\n" for one in lines))
    assert main(["eval", "behaviour", str(path), "--write", str(tmp_path / "mine" / "talk.jsonl")]) == 0
    found = read(tmp_path / "mine")
    assert [case.expect[0].action.value for case in found] == ["answer", "go_on", "stop", "answer"]
    assert found[1].answer is not None
    assert found[1].answer.startswith("Because light")
    assert found[1].history == (ASKED,)
    assert found[1].acts[0].at == pytest.approx(3.0, abs=1.0), "as much has been heard"
    assert all(one.right for one in played_by_oracle([with_types(one) for one in found[1:3]]))


def fields(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in Case.__slots__}


def with_types(case: Case) -> Case:
    acts = (Act(case.acts[0].at, type=case.acts[-1].text),)
    return Case(case.id, case.kind, case.history, case.answer, acts, case.expect)
