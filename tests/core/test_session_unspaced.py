"""Conversations in a language that is written without spaces."""

import pytest

from duologue.core.config import SessionConfig
from duologue.core.events import Heard, Received
from duologue.core.input_channel import Memory, Utterance
from duologue.text.words import word_ends
from duologue.types import InputState
from scripted import Talk

WEATHER = "今天晴，最高气温二十度，适合出门散步。"
ANSWERS = {"今天天气怎么样": WEATHER, "明天早上呢": "明天早上有雨。"}


def judged(words: str) -> InputState:
    if words.endswith("你把钥匙给他"):
        return InputState.IGNORE
    return InputState.INCOMPLETE if words.endswith(("的", "把")) else InputState.PROCESS


def chat() -> Talk:
    return Talk(ANSWERS, judge=judged, config=SessionConfig(heard="reported"))


def heard(talk: Talk, position: int) -> int:
    """How much of the answer counts as heard when `position` is reported."""
    events = talk.told(talk.session.heard(position))
    return next((event.position for event in events if isinstance(event, Heard)), 0)


def test_new_words_of_a_revised_utterance_are_a_turn_of_their_own():
    talk = chat()
    talk.hear("今天天气怎么样", final=False)
    talk.run()
    talk.advance(1.0)
    assert heard(talk, 3) == 3
    talk.hear("今天的天气怎么样明天早上呢")
    talk.run()
    assert talk.kinds()[-3:] == ["Promoted", "Released", "Finished"]
    talk.told(talk.session.heard(7))
    assert talk.turns == [
        ("user", "今天天气怎么样"),
        ("assistant", "今天晴"),
        ("user", "明天早上呢"),
        ("assistant", "明天早上有雨。"),
    ]


def test_an_answer_is_cut_after_the_character_that_was_heard():
    talk = chat()
    talk.hear("今天天气怎么样")
    talk.run()
    assert heard(talk, 5) == 5
    talk.hear("你把钥匙给他", "v")
    talk.run()
    assert talk.session.running is not None, "the aside is ignored"
    talk.hear("明天早上呢", "w")
    talk.run()
    assert [turn[1] for turn in talk.turns][1] == WEATHER[:5]
    talk.check_cache()


def test_a_word_with_spaces_around_it_is_heard_as_a_whole():
    talk = Talk({"안녕": "안녕하세요 여러분"}, config=SessionConfig(heard="reported"))
    talk.hear("안녕")
    talk.run()
    assert heard(talk, 3) == 0
    assert heard(talk, 7) == 5


@pytest.mark.parametrize(
    ("before", "text", "new"),
    [
        ("今天天气怎么样", "今天的天气怎么样明天早上呢", "明天早上呢"),
        ("今天天气怎么样", "今天天气怎样", ""),
        ("今天天汽怎么样", "今天天气怎么样，明天呢", "明天呢"),
        ("你好吗", "您好吗 你在哪里", "你在哪里"),
        ("สวัสดีครับ", "สวัสดีนะครับที่นี่", "ที่นี่"),
        ("what is the time", "what was the time in rome", "in rome"),
        ("what's the time", "what is the time in rome", "time in rome"),  # as many words
        ("", "明天呢", "明天呢"),
    ],
)
def test_what_is_new_in_a_revised_text(before: str, text: str, new: str):
    memory = Memory(word_ends)
    memory.answer([Utterance("u", before)])
    assert text[memory.num_answered("u", text) :] == new


def test_a_long_revised_text_is_counted():
    memory = Memory(word_ends)
    memory.answer([Utterance("u", "天" * 1000)])
    assert memory.num_answered("u", "地" * 1200) == 1000


def test_words_that_were_heard_before_are_not_received_again():
    talk = chat()
    talk.hear("今天天气怎么样", final=False)
    talk.run()
    talk.advance(1.0)
    heard(talk, 3)
    num_received = sum(isinstance(event, Received) for event in talk.events)
    talk.hear("今天天气怎么样", final=False)
    assert sum(isinstance(event, Received) for event in talk.events) == num_received
