"""Behind the assistant's question: replies are answered, requests for a moment are granted, silence is no end."""

import pytest

from duologue.core.config import SessionConfig
from duologue.core.events import Decided, Promoted, Resumed
from duologue.core.policy import Policy
from duologue.core.words import asks, asks_for_a_moment
from duologue.types import InputState, Role, Turn
from scripted import STRICT, Talk, judged

QUESTION = (Turn(Role.USER, "book a table"), Turn(Role.ASSISTANT, "Gladly. Under which name?"))
STATEMENT = (Turn(Role.USER, "book a table"), Turn(Role.ASSISTANT, "It is booked. Which is nice."))
ANSWERS = {"mhm": "For whom?", "smith aside": "Was that Smith?", "what is it": "It is a cat."}


def promoted(talk: Talk) -> list[str]:
    return [event.text for event in talk.events if isinstance(event, Promoted)]


@pytest.mark.parametrize(
    ("text", "is_question"),
    [
        ("Which one?", True), ("Shall I?!", True), ('He said: "who?"', True), ("Which one? 😊", True), ("几位？", True),
        ("Which one? ", True), ("Why? Because.", False), ("", False), ("I see.", False), ("Really? Yes", False),
        ("Sure. Please tell me the name of the street.", True), ("Please give me a moment. Here it is.", False),
    ],
)  # fmt: skip
def test_a_question_is_known_by_its_end(text, is_question):
    assert asks(text) is is_question


@pytest.mark.parametrize(
    "text",
    [
        "Hang on.", "wait wait", "one sec", "Okay, give me a minute", "could you hold on a second please",
        "bear with me", "um let me think", "Let me check that.", "hold on, i'll get my glasses",
        "just a moment while i look it up",
        "give me a moment i need to find the letter", "wait a second so i can open it",
    ],
)  # fmt: skip
def test_requests_for_a_moment(text):
    assert asks_for_a_moment(text, "Which one would you like?")


@pytest.mark.parametrize(
    "text",
    [
        "hang on it's seven", "wait for me at the door", "let me have the green one", "one minute", "a second",
        "give me a beer", "i'll get the small one", "the second", "let me see the menu", "hold on what was that",
        "seven", "", "let me see " * 9,
    ],
)  # fmt: skip
def test_replies_are_no_requests_for_a_moment(text):
    assert not asks_for_a_moment(text, "Which one would you like?")


def test_words_that_the_question_offers_are_a_reply():
    assert not asks_for_a_moment("Wait.", "Shall I call them, or wait?")
    assert asks_for_a_moment("wait", "Shall I call the waiter?")


def test_an_ignored_reply_is_answered_when_nothing_else_comes():
    talk = Talk(ANSWERS, history=QUESTION)
    talk.hear("mhm", "a")
    talk.run()
    assert talk.kinds() == ["Decided", "Dropped"]
    talk.advance(5.9)
    assert talk.run() == []
    assert talk.session.next_deadline == pytest.approx(6.0)
    talk.advance(0.2)
    talk.run()
    assert talk.turns[2:] == [("user", "mhm"), ("assistant", "For whom?")]
    assert talk.session.next_deadline is None
    talk.check_cache()


def test_without_a_question_ignored_words_stay_ignored():
    talk = Talk(history=STATEMENT)
    talk.hear("mhm", "a")
    talk.run()
    assert talk.session.next_deadline is None


def test_the_rule_can_be_switched_off():
    talk = Talk(history=QUESTION, policy=Policy(reply_s=0.0))
    talk.hear("mhm", "a")
    talk.run()
    assert talk.session.next_deadline is None


def test_several_ignored_utterances_are_one_reply():
    talk = Talk(history=QUESTION)
    for number, word in enumerate(("anna aside", "with two mhm")):
        talk.hear(word, f"u{number}")
        talk.run()
        talk.advance(3.0)
    talk.advance(3.1)
    talk.run()
    assert promoted(talk) == ["anna aside with two mhm"]


def test_a_reply_that_is_judged_well_replaces_what_was_ignored():
    talk = Talk(ANSWERS, history=QUESTION)
    talk.hear("mhm", "a")
    talk.run()
    talk.advance(3.0)
    talk.hear("what is it", "b")
    talk.run()
    talk.advance(20.0)
    talk.run()
    assert promoted(talk) == ["what is it"]


def test_background_talk_is_answered_once_and_not_again_until_somebody_speaks_to_it():
    talk = Talk(ANSWERS, history=QUESTION)
    for number in range(4):
        talk.hear("smith aside", f"tv{number}")
        talk.run()
        talk.advance(7.0)
        talk.run()
    assert promoted(talk) == ["smith aside"]
    talk.hear("smith", "me")  # is answered with no question
    talk.run()
    talk.session.edit(QUESTION)
    talk.hear("mhm", "b")
    talk.run()
    talk.advance(7.0)
    talk.run()
    assert promoted(talk)[1:] == ["smith", "mhm"]


def test_a_request_to_stop_is_no_reply():
    talk = Talk(history=QUESTION)
    talk.hear("mhm", "a")
    talk.run()
    talk.hear("stop", "b")
    talk.run()
    assert talk.session.next_deadline is None


@pytest.mark.parametrize("end", ["grows", "ends", "is taken back", "is noise"])
def test_ignored_words_that_change(end):
    talk = Talk(history=QUESTION)
    talk.hear("mhm", "a", final=False)
    talk.run()
    match end:
        case "grows":
            talk.hear("mhm anna aside", "a")
        case "ends":
            talk.hear("mhm", "a")
        case "is taken back":
            talk.told(talk.session.retract("a"))
        case "is noise":
            talk.hear("[NOISE]", "a")
    talk.run()
    talk.advance(6.1)
    talk.run()
    assert promoted(talk) == {"grows": ["mhm anna aside"], "ends": ["mhm"]}.get(end, [])
    if end == "ends":  # the id names a new utterance
        talk.hear("what is it", "a")
        talk.run()
        assert promoted(talk) == ["mhm", "what is it"]


def test_a_held_reply_is_answered_in_time_however_patient_the_policy():
    talk = Talk(history=QUESTION, policy=Policy(quiet_periods=30))
    talk.hear("my name is the", "a")
    talk.run()
    talk.advance(6.1)
    talk.run()
    assert promoted(talk) == ["my name is the"]


@pytest.mark.parametrize("state", [InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE, InputState.STOP])
def test_who_asks_for_a_moment_gets_it_and_what_comes_next_is_the_reply(state):
    talk = Talk(
        history=QUESTION,
        judge=lambda words: state if asks_for_a_moment(words, "") else judged(words),
        chat_template=STRICT,
    )
    talk.hear("hang on let me think", "a")
    talk.run()
    assert InputState.PROCESS not in [e.decision.state for e in talk.events if isinstance(e, Decided)]
    talk.advance(60.0)
    talk.run()
    assert promoted(talk) == []
    assert talk.session.input_text is None
    talk.hear("it is Smith", "b")
    talk.run()
    assert promoted(talk) == ["it is Smith"]


def test_who_asks_for_a_moment_behind_an_ignored_reply_gets_it_too():
    talk = Talk(history=QUESTION)
    talk.hear("mhm", "a")
    talk.run()
    talk.hear("hold on", "b")
    talk.run()
    talk.advance(60.0)
    talk.run()
    assert promoted(talk) == []
    assert talk.session.next_deadline is None


def test_a_request_for_a_moment_is_answered_where_nothing_was_asked():
    talk = Talk(history=STATEMENT)
    talk.hear("give me a second", "a")
    talk.run()
    assert promoted(talk) == ["give me a second"]


@pytest.mark.parametrize(
    ("answer", "phrase", "resumes"),
    [
        ("That is Rome. Shall I go on with it?", "go on", False),
        ("That is Rome. Shall I go on with it?", "Go ahead.", False),
        ("That is Rome.", "go on", True),
        ("That is Rome.", "Go ahead.", False),
    ],
)
def test_a_resume_phrase_is_about_what_was_said_last(answer, phrase, resumes):
    talk = Talk({"which town": answer})
    talk.hear("tell me a story", "a")
    talk.tick(30)
    talk.hear("which town", "b")
    talk.run()
    talk.hear(phrase, "c")
    talk.run()
    assert any(isinstance(e, Resumed) for e in talk.events) is resumes
    assert talk.turns[4] == ("user", phrase)


def test_go_ahead_resumes_what_was_stopped():
    talk = Talk()
    talk.hear("tell me a story", "a")
    talk.tick(30)
    talk.hear("stop", "b")
    talk.tick()
    talk.hear("go ahead", "c")
    talk.run()
    assert any(isinstance(e, Resumed) for e in talk.events)


LATE = {"book it": "I have booked the table. Under which name is it?", "smith aside": "Was that Smith?"}


def over_the_end(said: str, *, seconds: float) -> Talk:
    """`said` over the last words of the answer to "book it", which ends so many seconds later."""
    talk = Talk(LATE, config=SessionConfig(heard="reported"))
    talk.hear("book it", "a")
    talk.run()
    answer = LATE["book it"]
    talk.told(talk.session.heard(len(answer) - 8))
    talk.hear(said, "b")
    talk.run()
    talk.advance(seconds)
    talk.told(talk.session.heard(len(answer)))
    return talk


def test_a_reply_over_the_last_words_of_the_question_is_judged_again_and_not_lost():
    talk = over_the_end("smith aside", seconds=1.0)
    talk.run()
    assert talk.kinds()[-3:] == ["Committed", "Decided", "Dropped"], "what is still ignored then may be the reply"
    talk.advance(6.1)
    talk.run()
    assert promoted(talk) == ["book it", "smith aside"]
    talk.check_cache()


def test_what_was_said_earlier_over_the_question_is_no_reply():
    talk = over_the_end("smith aside", seconds=3.0)
    assert talk.run() == []
    assert talk.session.next_deadline is None
    talk = over_the_end("smith aside", seconds=0.5)
    talk.hear("what is it", "c")  # the reply itself
    talk.run()
    talk.advance(20.0)
    talk.run()
    assert promoted(talk) == ["book it", "smith aside what is it"]
