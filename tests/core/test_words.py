"""What counts as words, and that a session does not read anything else."""

import pytest

from duologue.core.config import SessionConfig
from duologue.core.events import Dropped, Promoted, TakenBack
from duologue.core.words import words_in
from scripted import Talk

SOUNDS = (
    "[NOISE]", "[ background noise ]", "[SPEAKING_ELSEWHERE]", "(door closes)", "(dog barking) (rain)", "( laughing. )",
    "*yawns*", "*clears throat*", "{cough}", "【音楽】", "（拍手）", "(笑)", "<UNK>", "<unk> <noise>", "<|nospeech|>",
    "♪", "♪ come with me to the sea ♪", "♫ ♫", "♪ la la la ♪", "♪ (slow music) ♪",
    ".", "…", ". . .", "!", "-- ", "“”", "。", "(sighs) ...",
)  # fmt: skip
WORDS = (
    "why do you write [NOISE]", "[NOISE] who is it", "(door closes) come in", "(x+1)*2", "(x)", "[1, 2]", "[]", "f()",
    "[row for row in table]", "print(total)", "*args", "**never**", "<b>", "<div>", "<|im_end|>", "{\"size\": 2}", ":)",
    ":-)", ";-(", "^^", "<3", "👍", "7", "(020) 7946", "(are you there)", "(who said that?)", "[what is it]", "a.",
    "the unk token", "*", "#", "one * two * three", "no (sighs)", "да", "好",
)  # fmt: skip
TALE = {"hi": "Once there was a fox, and it lived in a wood of beeches with its mother."}


@pytest.mark.parametrize("text", SOUNDS)
def test_what_recognisers_write_where_nobody_speaks_is_no_words(text):
    assert words_in(text) == ""


@pytest.mark.parametrize("text", WORDS)
def test_brackets_and_smileys_that_users_write_are_kept(text):
    assert words_in(f" {text}\n") == text


@pytest.mark.parametrize(
    "text", ["(a" * 50_000, "[ab ]" * 50_000 + "x", "." * 100_000 + "x", "♪a" * 50_000, "[ab" + " " * 90_000]
)
def test_long_texts_are_read_once(text):
    assert words_in(text) == text.strip()  # quadratic matching would take minutes


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("is_answering", [True, False])
def test_non_speech_text_is_dropped_without_a_pass_or_a_decision(is_answering, final):
    alone, talk = Talk(TALE), Talk(TALE)
    for each in (alone, talk):
        if is_answering:
            each.hear("hi")
            each.tick(20)
    events = talk.hear("[NOISE]", "v", final=final)
    assert [(e.text, e.reason) for e in events if isinstance(e, Dropped)] == [("[NOISE]", "no words")]
    assert talk.session.input_text is None
    alone.run()
    assert talk.kinds(talk.run()) == (["Finished", "Committed"] if is_answering else [])
    assert (talk.said, talk.trace.num_passes) == (alone.said, alone.trace.num_passes)


def test_non_speech_text_becomes_words_and_the_reverse():
    talk = Talk(TALE)
    talk.hear("(coughs)", final=False)
    talk.hear("what about the", final=False)
    talk.run()
    talk.hear("(coughs)", final=False)  # the recogniser takes its words back
    assert talk.session.input_text == ""
    talk.hear("what about the", final=False)
    talk.run()
    talk.hear("(coughs)")
    assert [(e.text, e.reason) for e in talk.events if isinstance(e, Dropped)] == [
        ("(coughs)", "no words"),
        ("", "retracted"),
    ]
    talk.hear("hi")
    talk.run()
    assert talk.turns == [("user", "hi"), ("assistant", TALE["hi"])]


def test_an_unheard_answer_to_words_that_become_non_speech_text_is_taken_back():
    talk = Talk(TALE, config=SessionConfig(heard="reported"))
    talk.hear("hi", final=False)
    talk.tick(5)
    assert any(isinstance(e, TakenBack) for e in talk.hear("*coughs*"))
    talk.run()
    assert talk.turns == []


def test_non_speech_text_that_replaces_words_brings_the_answer_back_that_they_cut():
    talk = Talk(TALE)
    talk.hear("hi")
    talk.tick(20)
    talk.hear("stop", "v", final=False)
    talk.tick()
    talk.hear("stop (coughs) about the", "v", final=False)
    talk.tick()
    talk.hear("(coughs)", "v")
    talk.run()
    assert talk.turns == [("user", "hi"), ("assistant", TALE["hi"])]


def test_non_speech_text_leaves_the_words_beside_it_alone():
    talk = Talk(TALE)
    talk.hear("tell me about the", "a")
    talk.run()
    talk.hear("[NOISE]", "b")
    talk.hear("fox [NOISE]", "c")
    talk.run()
    assert [e.text for e in talk.events if isinstance(e, Promoted)] == ["tell me about the fox [NOISE]"]
