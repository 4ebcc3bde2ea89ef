"""Which samples repeat or contradict another, and which only seem to."""

import random
from dataclasses import replace

import pytest

from duologue.data.samples import DuplicateKind, Duplicates, Sample, content_words
from duologue.types import InputState, Role, Turn

PROCESS, INCOMPLETE, IGNORE, STOP = InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE, InputState.STOP
TALK = (Turn(Role.USER, "tell me of the sea"), Turn(Role.ASSISTANT, "The sea is wide and"))
ASKED = Sample("where do the grey whales sleep in winter", PROCESS, "kitchen")


def admitted(*samples: Sample) -> list[DuplicateKind | None]:
    seen = Duplicates()
    return [seen.admit(sample) for sample in samples]


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        (ASKED, DuplicateKind.EXACT),
        (replace(ASKED, text="Where do the grey whales sleep, in winter?", source="garden"), DuplicateKind.EXACT),
        (replace(ASKED, text="in winter where do grey whales sleep"), DuplicateKind.NEAR),
        (replace(ASKED, text="when do the grey whales sleep in winter"), None),
        (replace(ASKED, text="where do the grey whales sleep in summer"), None),
        (replace(ASKED, context=TALK), None),
        (replace(ASKED, context=TALK, speaking=True), None),
        (replace(ASKED, system="Be brief."), None),
        (replace(ASKED, state=IGNORE), DuplicateKind.CONFLICT),
        (replace(ASKED, state=IGNORE, context=TALK), None),
        (replace(ASKED, state=IGNORE, context=TALK, speaking=True), None),
        (replace(ASKED, state=STOP, context=TALK, accept=(PROCESS,)), None),
        (replace(ASKED, text="where do the grey whales sleep in winter and", state=INCOMPLETE), None),
    ],
)
def test_a_second_sample_is_judged_by_the_first(second: Sample, verdict: DuplicateKind | None) -> None:
    assert admitted(ASKED, second) == [None, verdict]


def test_the_first_may_accept_the_second() -> None:
    cut = Sample("and so we", IGNORE, "harbour", accept=(INCOMPLETE,))
    waiting, asked = replace(cut, state=INCOMPLETE, accept=(), system="Wait."), replace(cut, state=PROCESS, accept=())
    assert admitted(cut, waiting, asked) == [None, None, DuplicateKind.CONFLICT]


def test_short_phrases_with_one_content_word_are_different_phrases() -> None:
    texts = ("stop", "please stop", "can you stop", "stop it", "could you please stop this")
    assert admitted(*(Sample(text, STOP, "own") for text in texts)) == [None] * len(texts)


def test_what_is_refused_leaves_no_trace() -> None:
    seen = Duplicates()
    assert seen.admit(ASKED) is None
    assert seen.admit(replace(ASKED, text="grey whales sleep where in winter")) is DuplicateKind.NEAR
    assert seen.admit(replace(ASKED, text="grey whales sleep where in winter", state=IGNORE)) is None


QUESTION = (Turn(Role.USER, "hello"), Turn(Role.ASSISTANT, "Which of the two boats was it?"))


def test_words_have_one_label_behind_one_turn_of_the_assistant() -> None:
    reply = Sample("the red one", PROCESS, "harbour", context=QUESTION)
    other = (*QUESTION, Turn(Role.USER, "none"), Turn(Role.ASSISTANT, "I see."))
    later = (Turn(Role.USER, "good evening"), QUESTION[-1])
    assert admitted(reply, replace(reply, state=IGNORE, context=other)) == [None, None]
    assert admitted(reply, replace(reply, state=IGNORE, context=later)) == [None, DuplicateKind.CONFLICT]
    assert admitted(reply, replace(reply, state=IGNORE, context=TALK, speaking=True)) == [None, None]


def test_a_claim_wins_over_samples_that_come_first() -> None:
    seen = Duplicates()
    seen.claim("Never mind!", STOP, (IGNORE,))
    seen.claim("never mind", PROCESS)
    mind = Sample("never mind", PROCESS, "queries")
    for sample in (mind, replace(mind, context=TALK), replace(mind, speaking=True, context=TALK)):
        assert seen.admit(sample) is DuplicateKind.CONFLICT
    assert seen.admit(replace(mind, state=STOP)) is None
    assert seen.admit(replace(mind, state=IGNORE, context=TALK)) is None


def test_a_claim_does_not_hold_behind_a_question() -> None:
    seen = Duplicates()
    seen.claim("never mind", STOP)
    reply = Sample("never mind", PROCESS, "own", context=QUESTION)
    assert seen.admit(reply) is None
    assert seen.admit(replace(reply, speaking=True)) is DuplicateKind.CONFLICT


def test_many_samples_are_judged_as_sets_of_texts_would() -> None:
    rng = random.Random(5)
    seen, exact, labels, verdicts = Duplicates(), set(), {}, set()
    for _ in range(20_000):
        sample = Sample(f"say {rng.randrange(6000)}", rng.choice([PROCESS, IGNORE]), "made")
        verdict = seen.admit(sample)
        verdicts.add(verdict)
        if labels.setdefault(sample.text, sample.state) is not sample.state:
            assert verdict is DuplicateKind.CONFLICT
        else:
            assert verdict is (DuplicateKind.EXACT if sample.text in exact else None)
            exact.add(sample.text)
    assert verdicts == {None, DuplicateKind.EXACT, DuplicateKind.CONFLICT}


def test_content_words_keep_what_turns_the_meaning() -> None:
    assert content_words("how do i not burn the rice") == {"how", "not", "burn", "rice"}
