"""The benchmarks measure what they say, and notice when it is not so."""

import itertools
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from duologue.core.backend import Extend, Step
from scripted import PROBE, Talk

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def compared(talk: Talk, conversations: int = 60):
    from exactness import Comparison

    comparison = Comparison(talk.backend, talk.backend, talk.template, PROBE, noise=0.0)
    for number in range(conversations):
        comparison.conversation(number, seed=3)
    return comparison.count


def test_disturbed_conversations_say_the_same_as_calm_ones():
    count = compared(Talk())
    assert count.differences == []
    assert count.added_passes == 0
    assert count.tokens > 1000
    assert {"answer: ignored", "answer: held over", "answer: false start", "answer: stopped"} <= set(count.kinds)
    assert {"answer: interrupted", "arrival: taken back", "arrival: joined", "arrival: held"} <= set(count.kinds)


def test_a_backend_whose_channels_see_each_other_is_caught():
    talk = Talk()
    whole, alone = talk.backend.forward, talk.backend._speak

    def leaky(batch: Sequence[Extend]) -> list[Step]:
        shift = 1 if len(batch) > 1 else 0
        talk.backend._speak = lambda ids: (alone(ids) + shift) % 256  # another token when something is heard
        return whole(batch)

    talk.backend.forward = leaky
    assert any(not difference.within_noise for difference in compared(talk, 10).differences)


def test_a_session_that_listens_in_passes_of_its_own_is_caught():
    talk = Talk()
    from conversation import Talk as Driven

    def lonely(self: Driven) -> bool:
        self.passes.update(answer.id for answer in [self.session.running] if answer)  # a pass without a token
        return tick(self)

    tick, Driven.tick = Driven.tick, lonely
    try:
        assert compared(talk, 3).added_passes > 0
    finally:
        Driven.tick = tick


def test_words_grow_to_the_whole_text():
    import spoken

    chance = random.Random(5)
    parts = spoken.grown("one two three four", chance, parts=3)
    assert len(parts) == 3
    assert parts[-1] == "one two three four"
    assert all(later.startswith(f"{earlier} ") for earlier, later in itertools.pairwise(parts))
    assert spoken.grown("one", chance, parts=3) == ["one"]


def test_percentiles():
    import measuring

    assert measuring.percentile(range(1, 101), 0.95) == 95
    assert measuring.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert measuring.percentile([7.0], 0.95) == 7.0
