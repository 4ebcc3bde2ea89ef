"""The echo guard: the assistant's own words are dropped when they come back, and the user's are not."""

import pytest

from duologue.core.config import SessionConfig
from duologue.core.echo import EchoGuard
from duologue.core.events import Decided, Dropped, Promoted, Resumed
from duologue.core.policy import ECHO_S, Policy
from duologue.text.words import word_ends
from scripted import Talk

TALE = "The old keeper climbed the tower every night, lit the lamp and counted the ships on the dark water below."
ASKED = "We have rooms with a view of the harbour. Would you like a room with a view?"
ANSWERS = {"tell me": TALE, "book it": ASKED}
SPOKEN = Policy(echo_s=ECHO_S)


def heard(text: str, at: float = 0.0) -> EchoGuard:
    guard = EchoGuard(word_ends)
    guard.hear(text, at)
    return guard


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("keeper climbed the tower", ""),
        ("Keeper climbed the tower. ", ""),
        ("keeper climbed a tower every night", ""),  # one other word in four
        ("kepper climbed the tower", ""),  # the first was misheard
        ("keeper climbed the towel", ""),
        ("climbed a tower every night lit a lamp", ""),  # two in eight
        ("keeper climbed the tower stop please", "stop please"),
        ("keeper climbed the tower every night, stop", "stop"),
        ("climbed the tower", "climbed the tower"),  # three words
        ("keeper?", "keeper?"),
        ("wait keeper climbed the tower", "wait keeper climbed the tower"),  # the user came first
        ("climbed a tower each night", "climbed a tower each night"),  # two in five
        ("tower the climbed keeper", "tower the climbed keeper"),
        ("who is the old keeper", "who is the old keeper"),
        ("", ""),
        ("?", "?"),
    ],
)
def test_an_echo_is_the_beginning_of_an_utterance_that_repeats_four_words(text, rest):
    num_echoed = heard(TALE).num_echoed("u", text, 1.0, ECHO_S)
    assert text[num_echoed:] == rest


def test_two_characters_count_as_a_word_where_there_are_no_spaces():
    guard = heard("老人每天晚上爬上灯塔点亮灯")
    assert guard.num_echoed("u", "每天晚上", 1.0, ECHO_S) == 0
    assert guard.num_echoed("u", "每天晚上爬上灯塔", 1.0, ECHO_S) == 8


def test_words_that_were_heard_too_long_ago_are_the_users():
    assert heard(TALE).num_echoed("u", "keeper climbed the tower", 2.1, ECHO_S) == 0
    assert heard(TALE).num_echoed("u", "keeper climbed the tower", 1.9, ECHO_S) == 24


def test_the_last_word_of_an_echo_counts():
    guard = heard("The old keeper climbed")
    guard.hear(" the tower", 1.0)
    assert guard.num_echoed("u", "keeper climbed the tower", 2.9, ECHO_S) == 24
    assert guard.num_echoed("v", "the old keeper climbed", 2.9, ECHO_S) == 0


def test_an_echo_that_grows_counts_from_its_beginning():
    guard = heard("The old keeper climbed the tower")
    assert guard.num_echoed("u", "", 0.5, ECHO_S) == 0  # the onset
    for at in range(1, 6):
        guard.hear(" every night and every day", float(at))
    text = "keeper climbed the tower" + " every night and every day" * 5
    assert guard.num_echoed("u", text, 6.0, ECHO_S) == len(text)
    assert guard.num_echoed("u", "keeper climbed the tower, every night", 6.0, 0.0) > 24, "known from before"
    guard.end("u")
    assert guard.num_echoed("u", text, 7.5, ECHO_S) == 0


def spoken(policy: Policy = SPOKEN, question: str = "tell me") -> Talk:
    """A conversation in which the user hears the answer as far as "tower", or the first question."""
    talk = Talk(ANSWERS, policy=policy, config=SessionConfig(heard="reported", lookahead=1000))
    talk.hear(question)
    talk.run()
    talk.advance(0.1)
    answer = ANSWERS[question]
    talk.told(talk.session.heard(len(answer) if "?" in answer else answer.index(" every")))
    talk.advance(0.5)
    talk.events.clear()
    return talk


def test_an_echo_is_dropped_without_a_pass_or_a_decision():
    talk = spoken()
    passes = talk.trace.num_passes
    talk.hear("old keeper climbed the", "e", final=False)
    talk.hear("old keeper climbed the tower", "e", final=False)
    talk.hear("old keeper climbed the tower", "e")
    assert talk.run() == []
    assert talk.trace.num_passes == passes
    assert [(e.text, e.reason) for e in talk.events if isinstance(e, Dropped)] == [
        ("old keeper climbed the", "echo"),
        ("old keeper climbed the tower", "echo"),
    ]
    talk.hear("keeper?", "f")
    talk.run()
    assert [e.text for e in talk.events if isinstance(e, Promoted)] == ["keeper?"]


def test_without_a_microphone_there_is_no_echo():
    talk = spoken(Policy())
    talk.hear("old keeper climbed the tower", "e")
    talk.run()
    assert [e.text for e in talk.events if isinstance(e, Decided)] == ["old keeper climbed the tower"]


def test_the_words_behind_an_echo_are_judged_alone():
    talk = spoken()
    talk.hear("", "e", final=False)
    talk.hear("keeper climbed the tower", "e", final=False)
    talk.hear("keeper climbed the tower what about the", "e", final=False)
    talk.run()
    talk.hear("keeper climbed the tower what about the fish", "e")
    talk.run()
    assert [e.text for e in talk.events if isinstance(e, Decided)] == ["what about the", "what about the fish"]
    assert talk.turns == [("user", "tell me"), ("assistant", TALE[: TALE.index(" every")])]
    assert talk.session.running.user_text == "what about the fish"


def test_an_answer_that_the_first_words_of_an_echo_cut_goes_on():
    talk = spoken()
    talk.hear("climbed the tower", "e", final=False)
    talk.tick(2)
    events = talk.hear("keeper climbed the tower", "e")
    assert talk.kinds(events) == ["TakenBack", "Dropped", "Resumed"]
    assert next(e for e in events if isinstance(e, Resumed)).exact
    talk.run()
    talk.told(talk.session.heard(len(TALE)))
    assert talk.turns == [("user", "tell me"), ("assistant", TALE)]


def test_an_echo_leaves_the_words_of_others_waiting():
    talk = spoken()
    talk.hear("what about the", "u", final=False)
    talk.run()
    talk.hear("climbed the", "e", final=False)
    talk.hear("keeper climbed the tower", "e")
    talk.run()
    assert talk.session.input_text == "what about the"


def test_words_behind_a_question_are_a_reply():
    talk = spoken(question="book it")
    talk.hear("a room with a view", "r")
    talk.run()
    assert [e.text for e in talk.events if isinstance(e, Promoted)] == ["a room with a view"]


def test_an_echo_that_arrives_when_the_answer_is_over_or_cut_is_one_too():
    talk = spoken()
    talk.told(talk.session.stop())
    assert talk.kinds(talk.hear("old keeper climbed the tower", "e")) == ["Dropped"]


def test_an_id_is_used_again():
    talk = spoken()
    talk.hear("old keeper climbed the tower", "e")
    talk.hear("old keeper climbed the tower", "e")
    assert [e.reason for e in talk.events if isinstance(e, Dropped)] == ["echo", "echo"]
    talk.advance(5.0)
    talk.hear("old keeper climbed the tower", "e")
    assert talk.session.input_text == "old keeper climbed the tower"
