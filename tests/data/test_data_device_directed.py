"""Lines of talk that may be addressed to a machine, and lines that only sound similar."""

import pytest

from duologue.data.device_directed import RULES, device_directed

SAID_TO_A_MACHINE = {
    "name of an assistant": [
        "Alexa, how long until dinner?",
        "I said: Siri, call my brother.",
        "ask ChatGPT about the garden then",
    ],
    "name of an assistant (Mandarin)": ["小爱同学，现在几点了", "你问一下语音助手吧"],
    "command to a device (Mandarin)": ["把卧室的灯关掉", "提醒我晚上吃药"],
    "task for a language model (Mandarin)": ["帮我写一封邮件", "讲个笑话听听"],
    "call to a machine": ["Hey Google, what's on tonight?", "okay computer show me the map"],
    "command to a device": [
        "Please turn off the kitchen lights.",
        "could you switch the radio on",
        "turn up the volume",
        "Set a timer for nine minutes!",
        "and set another alarm for six",
        "cancel my alarm",
        "Remind me to water the ferns.",
        "wake me up at seven",
        "mute the tv please",
    ],
    "order to a service": [
        "Play some quiet piano music.",
        "add oat milk to my shopping list",
        "can you search the web for used canoes",
        "look up the weather in Oslo",
        "send a message to Ingrid",
    ],
    "task for a language model": [
        "Write me a short poem about herons.",
        "please summarize the following",
        "tell me a joke",
    ],
    "talk to a machine as such": [
        "Are you a robot?",
        "well, you're an AI, so you would say that",
        "so are you a computer?",
    ],
}

SAID_TO_PEOPLE = [
    "So we turned the lights off and went to bed.",
    "He set the alarm for six and slept until nine.",
    "Turn to page forty, please.",
    "We played some music at her wedding.",
    "Could you send me the slides after the call?",
    "She writes poems, mostly about herons.",
    "I'll remind him to bring the tent.",
    "Remind me, who was at the second table?",
    "Can you set the table while I cook?",
    "That joke he told me was awful.",
    "Okay, next question, from the back of the room.",
    "He works as a computer engineer in Leeds.",
    "the assistant to the minister will answer",
    "My sister has a robot that mows the lawn.",
    "Let's switch to the other topic and turn up early.",
    "You are an honest man, Harold.",
    "Please turn around.",
    "They could search the woods for days.",
    "We should add that to the agenda.",
    "Play the ball to the left!",
    "They sold it as an AI-based camera.",
    "Are you a computer scientist?",
]


@pytest.mark.parametrize(
    ("rule", "line"), [(rule, line) for rule, lines in SAID_TO_A_MACHINE.items() for line in lines]
)
def test_a_line_for_a_machine_is_found_by_its_rule(rule: str, line: str) -> None:
    assert device_directed(line) == rule


@pytest.mark.parametrize("line", SAID_TO_PEOPLE)
def test_talk_between_people_stays(line: str) -> None:
    assert device_directed(line) is None


def test_every_rule_has_lines() -> None:
    assert SAID_TO_A_MACHINE.keys() == RULES.keys()
