"""Ids that are used again, and conversations that come near the end of the context."""

import gc
import weakref
from dataclasses import replace

import pytest

from duologue.baselines.sessions import Sequential, Turns, Vad
from duologue.baselines.tdm import Tdm
from duologue.core.cache import TokenSequence
from duologue.core.config import SessionConfig
from duologue.core.events import Dropped, Promoted, Refused, Trimmed
from duologue.core.policy import Policy
from duologue.core.session import Session
from duologue.errors import ContextOverflow
from duologue.text.template import Template
from duologue.types import InputState, Role, Turn
from scripted import PROBE, ByteTokenizer, Talk
from serving import scripted_model

SURE = Policy(p_sure=0.5)
LONG = ("word " * 300).strip()
SHORT_CONTEXT = SessionConfig(max_length=256, max_answer=400)


def sequence(talk: Talk) -> TokenSequence:
    return talk.session._output.sequence


@pytest.mark.parametrize("num_passes", [12, 10_000])
@pytest.mark.parametrize("end", ["what is the weather", "what is the weather in Oslo", "how is the weather in Oslo"])
def test_the_id_of_an_utterance_that_was_answered_before_its_end_can_be_used_again(num_passes, end):
    talk = Talk(policy=SURE)
    talk.hear("what is the weather", final=False)
    talk.tick(num_passes)
    assert talk.said
    talk.hear(end)
    talk.run()
    talk.hear("tell me a joke now about dogs")
    talk.run()
    assert talk.turns[-2] == ("user", "tell me a joke now about dogs")


def test_the_id_of_an_utterance_that_was_dropped_before_its_end_can_be_used_again():
    states = [InputState.IGNORE, InputState.IGNORE, InputState.PROCESS]
    talk = Talk(policy=SURE, judge=lambda words: states.pop(0))
    talk.hear("hello", final=False)
    talk.run()
    talk.hear("hello out there")
    talk.run()
    assert [type(e) for e in talk.events].count(Dropped) == 2
    talk.hear("hello", final=False)
    talk.run()
    assert talk.turns[0] == ("user", "hello")


def test_the_id_of_an_utterance_whose_last_words_were_dropped_can_be_used_again():
    states = [InputState.PROCESS, InputState.IGNORE, InputState.PROCESS]
    talk = Talk(policy=SURE, judge=lambda words: states.pop(0))
    talk.hear("hello", final=False)
    talk.run()
    talk.hear("hello mhm", final=False)
    talk.run()
    talk.hear("hello mhm")  # only the end is new
    talk.run()
    talk.hear("hello again")
    talk.run()
    assert talk.turns[-2] == ("user", "hello again")


def check_lengths(talk: Talk, count: int) -> None:
    """So many passes, none of which feeds more than the context holds."""
    for _ in range(count):
        talk.tick()
        for seq in talk.handle.sequences.seqs.values():
            assert talk.backend.length(seq) <= talk.session.config.max_length


def test_words_that_grow_beyond_the_room_there_was_wait_for_a_shorter_context():
    talk = Talk({"q": LONG}, config=SHORT_CONTEXT)
    talk.hear("q")
    talk.tick(185)
    assert len(sequence(talk).items) > 200
    talk.hear("", "v", final=False)
    talk.tick()
    words = "x" * 50 + " yes"
    talk.hear(words, "v")
    check_lengths(talk, 1000)
    assert [e.text for e in talk.events if isinstance(e, Promoted)] == ["q", words]


def test_words_are_judged_where_there_is_no_room_for_an_answer_to_them():
    talk = Talk({"q": "word " * 32}, config=SHORT_CONTEXT)
    talk.hear("q")
    talk.run()
    assert 144 < len(sequence(talk).items) <= 192, "too short for a compaction, too long for the words and an answer"
    aside = "x" * 32 + " radio talk"
    talk.hear(aside, "aside")
    talk.tick()
    assert [e.text for e in talk.events if isinstance(e, Dropped)] == [aside], "nothing was waited for"
    talk.run()
    assert [e for e in talk.events if isinstance(e, Trimmed)], "room was made for what may come"


def test_a_context_that_is_made_shorter_during_an_answer_has_room_for_the_answer():
    history = [Turn(role, "word " * 3) for _ in range(3) for role in (Role.USER, Role.ASSISTANT)]
    talk = Talk({"q": "word " * 16}, config=SHORT_CONTEXT, history=history)
    talk.hear("q")
    talk.tick(62)
    assert talk.session.running is not None
    talk.hear("oh radio talk", "aside")  # for an answer to these words there would be no room
    talk.tick()
    assert talk.session.running is not None
    assert talk.session._output.compaction is not None
    talk.run()
    (trimmed,) = [e for e in talk.events if isinstance(e, Trimmed)]
    assert trimmed.length <= 256 // 2


@pytest.mark.parametrize(("system", "num_words"), [(None, 28), ("You know all long words.", 22)])
def test_words_for_which_there_is_no_room_are_answered_after_a_compaction_in_one_go(system, num_words):
    talk = Talk({"q": "word " * num_words}, config=SHORT_CONTEXT, system=system)
    talk.hear("q")
    talk.run()
    assert 144 < len(sequence(talk).items) <= 192, "too short for a compaction, too long for the words"
    words = "x" * 40 + " yes"
    talk.hear(words)
    check_lengths(talk, 1000)
    assert [e.text for e in talk.events if isinstance(e, Promoted)] == ["q", words]


@pytest.mark.parametrize("num_letters", range(10, 30))
def test_a_long_probe_fits_behind_the_words(monkeypatch, num_letters):
    monkeypatch.setattr("scripted.PROBE", replace(PROBE, tokens=PROBE.tokens * 60))
    talk = Talk({"q": "word " * 30}, config=SHORT_CONTEXT)
    talk.hear("q")
    talk.run()
    words = "x" * num_letters + " yes"
    talk.hear(words)
    check_lengths(talk, 300)
    assert [e.text for e in talk.events if isinstance(e, Promoted)] == ["q", words]


def test_a_probe_that_leaves_no_room_for_words_is_refused(monkeypatch):
    monkeypatch.setattr("scripted.PROBE", replace(PROBE, tokens=PROBE.tokens * 65))
    with pytest.raises(ContextOverflow, match="a context of 260 or more"):
        Talk(config=SHORT_CONTEXT)


@pytest.mark.parametrize("capacity", [400, 340, 270, 220])
def test_a_cache_without_room_for_a_compaction_does_not_stop_the_answer(capacity):
    talk = Talk({"q": "word " * 40}, config=SHORT_CONTEXT, system="s" * 100, capacity=capacity)
    talk.hear("q")
    talk.tick(70)
    words = "x" * 40 + " yes"
    talk.hear(words)
    check_lengths(talk, 500)
    assert talk.session.running is None
    assert [e.text for e in talk.events if isinstance(e, Promoted)] == ["q", words]


def test_an_answer_does_not_run_far_ahead_of_what_has_been_heard():
    config = SessionConfig(heard="reported", lookahead=10)
    answer = "one two three four five six seven eight nine ten eleven twelve"
    talk = Talk({"count please": answer}, policy=SURE, config=config)
    talk.hear("count please")
    talk.run()
    assert not talk.session.running.finished
    assert talk.session.running.num_tokens == 10
    talk.session.heard(4)
    talk.run()
    assert talk.session.running.num_tokens == 14
    while talk.session.running is not None:
        talk.session.heard(talk.session.running.num_said)
        talk.run()
    assert talk.turns[-1] == ("assistant", answer)


def test_an_answer_runs_less_far_ahead_while_words_are_being_heard():
    config = SessionConfig(heard="reported", lookahead=10, lookahead_listening=4)
    answer = "one two three four five six seven eight nine ten eleven twelve"
    talk = Talk({"count please": answer}, policy=SURE, config=config)
    talk.hear("count please")
    talk.run()
    assert talk.session.running.num_tokens == 10
    talk.session.heard(4)
    talk.hear("", utterance="aside", final=False)
    talk.run()
    assert talk.session.running.num_tokens == 10
    talk.session.heard(9)
    talk.run()
    assert talk.session.running.num_tokens == 13
    talk.hear("mhm", utterance="aside", final=True)
    talk.run()
    assert talk.session.running.num_tokens > 13


def test_a_word_longer_than_the_lookahead_comes_to_its_end():
    config = SessionConfig(heard="reported", lookahead=5)
    talk = Talk({"shout please": "a" * 40 + " end"}, policy=SURE, config=config)
    talk.hear("shout please")
    talk.run()
    for _ in range(60):
        if talk.session.running is not None:
            talk.session.heard(talk.session.running.num_said)
            talk.run()
    assert talk.turns[-1] == ("assistant", "a" * 40 + " end")


class Counting:
    """Counts the characters that a tokenizer is given."""

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self.num_characters = 0
        self._encode = tokenizer.encode
        tokenizer.encode = self.encode  # type: ignore[method-assign]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        self.num_characters += len(text)
        return self._encode(text, special=special)


MEGABYTE = "word \ud800" * 170_000


def num_characters(talk: Talk) -> int:
    """Characters that a session keeps and tells, as its events and its words are."""
    told = sum(len(str(getattr(event, name, ""))) for event in talk.events for name in ("text", "reason"))
    return told + len(talk.session.input_text or "")


@pytest.mark.parametrize("make", [Session, Sequential, Turns, Vad, Tdm])
@pytest.mark.parametrize("final", [True, False])
def test_words_that_are_much_too_long_are_refused_before_anything_is_kept(make, final):
    talk = Talk({"hello": "word " * 40}, make=make)
    talk.hear("hello")
    talk.advance(3.0)
    talk.tick(50)
    counting = Counting(talk.tokenizer)
    for number in range(5):
        refused = talk.hear(MEGABYTE, f"u{number % 2}", final=final)
        assert [type(event) for event in refused] == [Refused, Dropped]
    assert counting.num_characters == 0, "nothing was tokenised"
    assert num_characters(talk) < 3000
    talk.run()
    if make is not Tdm:
        assert talk.turns == [("user", "hello"), ("assistant", "word " * 40)], "the answer went on"
    talk.hear("and now", "u0")
    for _ in range(20):
        talk.advance(1.0)
        talk.run()
    assert "and now" in [text for _, text in talk.turns]


@pytest.mark.parametrize("final", [True, False])
def test_words_that_grow_much_too_long_are_dropped_as_they_were(final):
    talk = Talk()
    talk.hear("what is the", final=False)
    talk.run()
    refused = talk.hear(MEGABYTE, final=final)
    assert [type(event) for event in refused] == [Refused, Dropped]
    assert refused[1].text == "what is the"
    assert talk.session.input_text is None
    talk.hear("what is it")
    talk.run()
    assert talk.turns[0] == ("user", "what is it")
    talk.check_cache()


@pytest.mark.parametrize("final", [True, False])
def test_words_that_grow_much_too_long_do_not_take_an_answer_back(final):
    talk = Talk({"what is it": "A cat."}, policy=Policy(p_sure=1.1))
    talk.hear("what is it", final=False)
    talk.tick(4)
    assert talk.session.running is not None
    talk.hear(MEGABYTE, final=final)
    assert talk.session.running is not None
    assert talk.session.running.is_released == final, "the end of the words was heard"
    talk.advance(3.0)
    talk.run()
    assert talk.turns == [("user", "what is it"), ("assistant", "A cat.")]


@pytest.mark.parametrize(
    "history",
    [
        [Turn(Role.USER, MEGABYTE)],
        [Turn(role, "") for _ in range(17_000) for role in (Role.USER, Role.ASSISTANT)],
        [Turn(role, "word " * 400) for _ in range(30) for role in (Role.USER, Role.ASSISTANT)],
    ],
    ids=["characters", "turns", "tokens"],
)
@pytest.mark.parametrize("make", [Session, Tdm])
def test_a_history_that_is_much_too_long_is_refused_before_it_is_tokenised(make, history):
    talk = Talk(make=make)
    counting = Counting(talk.tokenizer)
    with pytest.raises(ContextOverflow, match="raise max_length"):
        talk.session.edit(history)
    assert counting.num_characters < 10_000
    assert talk.turns == []
    talk.hear("hello")
    talk.advance(3.0)
    talk.run()
    assert talk.turns[0] == ("user", "hello")


def test_a_system_prompt_that_is_much_too_long_is_refused_before_it_is_tokenised():
    model = scripted_model({})
    counting = Counting(model.template.tokenizer)
    with pytest.raises(ContextOverflow, match="system prompt"):
        model.session(system=MEGABYTE)
    assert counting.num_characters == 0


@pytest.mark.parametrize("make", [Session, Sequential, Turns, Vad, Tdm])
def test_a_session_that_is_closed_is_gone_at_once(make):
    talk = Talk({"hello": "word " * 40}, make=make)
    talk.hear("hello")
    talk.advance(3.0)
    talk.tick(20)
    talk.hear("what is the", "v", final=False)
    talk.tick(3)
    session = weakref.ref(talk.session)
    gc.collect()
    gc.disable()
    try:
        talk.engine.close()
        talk.__dict__.clear()
        assert session() is None, "without the garbage collector: it is part of no cycle"
    finally:
        gc.enable()


def test_words_are_tokenised_once_for_each_change(monkeypatch):
    talk = Talk({"what is the tale": LONG})
    calls: list[tuple[str, bool]] = []
    user = type(talk.template).user

    def counting(template: Template, text: str, *, first: bool) -> tuple[int, ...]:
        calls.append((text, first))
        return user(template, text, first=first)

    monkeypatch.setattr(type(talk.template), "user", counting)
    talk.hear("what is the", final=False)
    talk.run()
    talk.hear("what is the tale")
    talk.tick(20)
    talk.hear("wait radio talk", "aside", final=False)
    talk.tick(3)
    talk.hear("wait what is it", "aside")
    talk.tick(20)
    assert talk.kinds().count("Decided") == 4
    assert talk.kinds().count("Promoted") == 2
    assert sorted(calls) == sorted(
        [("what is the", True), ("what is the tale", True), ("wait radio talk", False), ("wait what is it", False)]
    )
