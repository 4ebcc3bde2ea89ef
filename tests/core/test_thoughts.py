"""What a reasoning model thinks: never said, heard, or part of the history; bounded, and no obstacle to words."""

import pytest

from chat_formats import THINKING_ONLY
from duologue.core.answer import Stage, Thinking
from duologue.core.config import SessionConfig
from duologue.core.events import Committed, Said, Thought
from duologue.text.thoughts import THOUGHT_MARKS, open_thought
from scripted import CHATML, Talk

ANSWERS = {"what is it": "A cat.", "and the dog": "It is out.", "tell me a story": "Once there was a fox, and a hen."}


def thoughtful(thought: str = "They ask.", end: str = "\n</think>\n\n", *, opener: str = "", **more) -> Talk:
    """A model that thinks before each of its `ANSWERS`."""
    answers = {asked: f"{opener}{thought}{end}{answer}" for asked, answer in ANSWERS.items()}
    header = "" if opener else "<think>\n"
    written = {asked: header + answer for asked, answer in answers.items()}
    return Talk(written, **{"chat_template": CHATML if opener else THINKING_ONLY, **more})


def thoughts_of(talk: Talk) -> str:
    return "".join(event.text for event in talk.events if isinstance(event, Thought))


def speak_until(talk: Talk, word: str) -> None:
    for _ in range(200):
        talk.tick()
        if word in talk.said:
            return
    raise AssertionError(f"it never said {word}")


def laid_out(talk: Talk) -> list[tuple[str, str]]:
    return talk.template_turns(talk.session._output.sequence.items)


@pytest.mark.parametrize("opener", ["", "<think>\n", "\n<think>", "<thinking>", "[THINK]"])
def test_a_thought_is_an_event_of_its_own(opener):
    end = "</thinking>\n" if "thinking" in opener else "[/THINK]" if "[" in opener else "\n</think>\n\n"
    talk = thoughtful(opener=opener, end=end)
    for number, (asked, answer) in enumerate(list(ANSWERS.items())[:2]):
        talk.hear(asked, f"u{number}")
        talk.run()
        assert talk.turns[-2:] == [("user", asked), ("assistant", answer)]
        talk.check_cache()
    assert talk.said == "A cat.It is out."
    assert thoughts_of(talk).replace("\n", "") == "They ask." * 2
    assert laid_out(talk) == talk.turns, "the model reads no thoughts of earlier turns"


def test_an_answer_that_looks_like_a_thought_for_a_moment_is_said():
    for answer in ("<thin ice> is dangerous", "<", "</think> is a mark", "  <b>bold</b>", "[THIN", "\n\nTwo lines"):
        talk = Talk({"what is it": answer})
        talk.hear("what is it")
        talk.run()
        assert (talk.said, thoughts_of(talk)) == (answer, "")
        assert talk.turns[-1] == ("assistant", answer)


def test_a_thought_that_takes_too_long_is_ended():
    talk = thoughtful("So many words. " * 100, config=SessionConfig(max_thought=40))
    talk.hear("what is it")
    talk.run()
    assert 20 < len(thoughts_of(talk)) <= 41
    assert talk.said == "A cat."
    assert [type(event) for event in talk.events].count(Committed) == 1
    assert laid_out(talk) == talk.turns


def test_a_model_need_not_think_at_all():
    talk = Talk(
        {"what is it": "<think>\n\n</think>\n\nA cat."},
        chat_template=THINKING_ONLY,
        config=SessionConfig(max_thought=0),
    )
    talk.hear("what is it")
    talk.run()
    assert (talk.said, thoughts_of(talk)) == ("A cat.", "")
    assert laid_out(talk) == talk.turns


def test_a_thought_without_an_end_gives_way_to_an_answer():
    """The model stops in its thought. It is asked for its answer, and if it only thinks again, that is empty."""
    talk = Talk({"what is it": "<think>\nI do not know"}, chat_template=THINKING_ONLY)
    talk.hear("what is it")
    talk.run()
    assert (talk.said, thoughts_of(talk).count("I do not know")) == ("", 2)
    assert talk.turns == [("user", "what is it"), ("assistant", "")]


@pytest.mark.parametrize(("words", "outcome"), [("stop", "Withdrawn"), ("and the dog", "TakenBack")])
def test_words_are_heard_while_the_model_thinks(words, outcome):
    talk = thoughtful("A long thought about cats. " * 10)
    talk.hear("what is it")
    talk.tick(20)
    assert thoughts_of(talk)
    assert not talk.said
    talk.hear(words, "v")
    talk.run()
    assert outcome in talk.kinds()
    assert "long thought" not in talk.said
    assert laid_out(talk) == talk.turns
    talk.check_cache()


def test_an_answer_is_cut_and_resumed_with_its_thought():
    talk = thoughtful()
    talk.hear("tell me a story")
    speak_until(talk, "fox")
    talk.hear("what is it", "v")
    talk.run()
    assert talk.said.startswith("Once there was a fox")
    assert laid_out(talk) == talk.turns, "what was heard of it has no thought"
    talk.told(talk.session.resume())
    talk.run()
    assert [turn[0] for turn in talk.turns[-2:]] == ["assistant", "assistant"]
    assert laid_out(talk) == talk.turns
    assert thoughts_of(talk).count("They ask.") == 2, "nothing is thought again"


@pytest.mark.parametrize("is_evicted", [False, True])
def test_a_stopped_answer_goes_on_where_it_was_stopped(is_evicted):
    talk = thoughtful()
    talk.hear("tell me a story")
    speak_until(talk, "fox")
    talk.told(talk.session.stop())
    talk.run()
    assert laid_out(talk) == talk.turns
    if is_evicted:
        assert talk.session.evict()
    talk.told(talk.session.resume())
    talk.run()
    assert talk.turns == [("user", "tell me a story"), ("assistant", ANSWERS["tell me a story"])]
    assert laid_out(talk) == talk.turns
    talk.check_cache()


def test_an_answer_that_is_reported_as_heard_has_no_thought():
    talk = thoughtful(config=SessionConfig(heard="reported"))
    talk.hear("tell me a story")
    talk.run()
    answer = talk.session.running
    assert answer is not None
    assert answer.text == "".join(e.text for e in talk.events if isinstance(e, Said)) == ANSWERS["tell me a story"]
    talk.told(talk.session.heard(len("Once there")))
    talk.hear("what is it", "v")
    talk.run()
    assert talk.turns[:2] == [("user", "tell me a story"), ("assistant", "Once there")]


def test_a_grammar_sees_the_answer_and_no_thought():
    class Seen:
        def __init__(self):
            self.answers = []

        def apply(self, tokens, logits):
            self.answers.append(bytes(tokens).decode())
            return logits

    seen = Seen()
    draws = []
    talk = thoughtful(config=SessionConfig(constraint=seen, num_alternatives=1))
    step = talk.backend.step
    talk.backend.step = lambda extend, tokens: (draws.append(extend.draw), step(extend, tokens))[1]
    talk.hear("what is it")
    talk.run()
    constrained = [draw for draw in draws if draw is not None and draw.constraint is seen]
    answers = dict.fromkeys(bytes(draw.answer).decode() for draw in constrained)
    assert list(answers) == ["A cat."[:size] for size in range(7)]
    assert len(constrained) < len([draw for draw in draws if draw is not None]), "what it thinks is free"


def test_marks_that_are_split_between_pieces_of_text():
    for size in range(1, 12):
        text = "\n<think>a < b, </ c></think>\n <think>d</think>\n\n the answer <think> </think>"
        thinking = Thinking(THOUGHT_MARKS, None)
        said = "".join(thinking.push(text[start : start + size]) for start in range(0, len(text), size))
        assert (thinking.text, said + thinking.flush()) == ("a < b, </ c>d", "the answer <think> </think>")
        assert thinking.stage is Stage.ANSWER


def test_which_thought_a_header_opens():
    assert open_thought("assistant\n<think>\n") is THOUGHT_MARKS[0]
    assert open_thought("assistant\n<think>\n\n</think>\n\n") is None
    assert open_thought("<think></think><seed:think>").opener == "<seed:think>"
    assert open_thought("assistant\n") is None
