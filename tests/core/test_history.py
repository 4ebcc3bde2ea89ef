"""The history that events tell is the session's."""

import random

import pytest

from duologue.core.config import SessionConfig
from duologue.core.events import EVENT_TYPES, Resumed, as_dict, from_dict
from duologue.core.history import Ledger
from duologue.core.policy import Policy
from duologue.errors import BadData, UsageError
from duologue.types import Role, Turn
from scripted import CHATML, STRICT, Talk

WORDS = ("what is the", "what is a cat", "mhm", "stop", "go on", "tell me about owls", "be quiet", "and the")


def step(talk: Talk, chance: random.Random) -> None:
    session = talk.session
    match chance.randrange(11):
        case 0 | 1 | 2:
            talk.hear(chance.choice(WORDS), f"u{chance.randrange(3)}", final=chance.random() < 0.6)
        case 3 | 4:
            talk.tick(chance.randrange(1, 40))
        case 5:
            if session.running is not None and session.running.num_said:
                talk.told(session.heard(chance.randrange(session.running.num_said + 1)))
        case 6:
            talk.told(chance.choice((session.respond, session.stop, session.resume))())
        case 7:
            talk.told(session.advance(session.now + chance.choice((0.1, 0.7, 5.0))))
        case 8:
            if session.running is not None:
                talk.told(session.heard(session.running.num_said))
        case 9:
            talk.told(session.resume())
        case _:
            if chance.random() < 0.2:
                ends = [Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "hello")][: chance.randrange(3)]
                talk.told(session.edit(ends))


@pytest.mark.parametrize("template", [CHATML, STRICT])
@pytest.mark.parametrize("heard", ["shown", "reported"])
@pytest.mark.parametrize("seed", range(12))
def test_events_tell_the_history(seed, heard, template):
    chance = random.Random(seed)
    config = SessionConfig(max_length=400, max_answer=60, heard=heard)
    start = [Turn(Role.USER, "hi")] if seed % 2 else []
    talk = Talk(policy=Policy(p_sure=0.5), config=config, history=start, chat_template=template)
    ledger, told = Ledger(start), 0
    for _ in range(150):
        try:
            step(talk, chance)
        except UsageError:
            assert template == STRICT  # an edit that leaves out whose turn it is
        for event in talk.events[told:]:
            again = from_dict(as_dict(event))
            assert type(again) is type(event)
            assert as_dict(again) == as_dict(event)
            ledger(again)
        told = len(talk.events)
        assert ledger.history == talk.session.history
    assert {type(event) for event in talk.events} <= set(EVENT_TYPES.values())


def test_what_is_no_event_is_passed_over_and_what_is_broken_is_said():
    assert from_dict({"type": "pong"}) is None
    assert from_dict({}) is None
    with pytest.raises(BadData, match="not a valid event of type heard"):
        from_dict({"type": "heard", "at": 1.0, "answer": 0})
    with pytest.raises(BadData, match="not a valid event of type heard"):
        from_dict({"type": "heard", "at": 1.0, "answer": True, "position": 4})
    with pytest.raises(BadData, match="not a valid event of type decided"):
        from_dict({"type": "decided", "at": 1.0, "utterance": "u", "text": "x", "state": "perhaps"})


def test_what_came_in_last_is_known_until_it_is_answered_or_dropped():
    talk, ledger = Talk(policy=Policy(p_sure=0.5)), Ledger()
    for words, final, waiting in (
        ("what is the", False, ["what is the"]),
        ("what is the cat", True, []),
        ("mhm", True, []),
    ):
        told = len(talk.events)
        talk.hear(words, final=final)
        talk.run()
        for event in talk.events[told:]:
            ledger(event)
        assert [received.text for received in ledger.unanswered.values()] == waiting


def test_words_that_let_an_answer_go_on_are_part_of_the_history():
    config = SessionConfig(heard="reported")
    talk, ledger = (
        Talk({"count": "one two three four five six seven eight"}, policy=Policy(p_sure=0.5), config=config),
        Ledger(),
    )
    talk.hear("count")
    talk.tick(30)
    talk.told(talk.session.heard(13))
    talk.hear("what is a cat")  # cuts it, and is answered
    talk.run()
    for _ in range(20):
        if talk.session.running is not None:
            talk.told(talk.session.heard(talk.session.running.num_said))
            talk.run()
    talk.hear("go on")
    talk.run()
    talk.told(talk.session.heard(talk.session.running.num_said))
    talk.run()
    assert any(isinstance(event, Resumed) and not event.exact for event in talk.events)
    for event in talk.events:
        ledger(event)
    assert ledger.history == talk.session.history
    assert "go on" in [turn.text for turn in ledger.history]
