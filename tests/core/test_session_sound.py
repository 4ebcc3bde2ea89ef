"""How words sound, as soft tokens between the words and the probe."""

from collections.abc import Callable

import numpy as np
import pytest

from duologue.core.events import Decided
from duologue.errors import UsageError
from duologue.types import InputState, VirtualId
from scripted import STATES, Talk

GOES_ON, ENDS = 0.0, 1.0
QUESTION = "what is it"


class Hearing(Talk):
    """Words of users that sound as if they go on are incomplete, whatever they are. Remembers what was judged."""

    def __init__(self, judge: Callable[[str], InputState] = lambda words: InputState.PROCESS) -> None:
        self.asked: list[list[int]] = []
        super().__init__({QUESTION: "It is a cat."}, judge=judge, num_soft=2)

    def _judge(self, ids):
        self.asked.append(ids)
        heard = [id for id in ids if isinstance(id, VirtualId)]
        if heard and np.frombuffer(heard[-1].row, np.float32)[0] == GOES_ON:
            return (*(0.91 if state is InputState.INCOMPLETE else 0.03 for state in STATES), 0.5, 0.5)
        return super()._judge(ids)

    def hear_sound(self, *sounds: float, utterance: str = "u"):
        rows = np.array([[sound, 0.5] for sound in sounds], np.float32)
        return self.told(self.session.hear_sound(self.backend.embed(rows), utterance=utterance))

    @property
    def decided(self) -> list[InputState]:
        return [event.decision.state for event in self.events if isinstance(event, Decided)]


def test_a_voice_that_goes_on_is_waited_for_where_the_words_alone_would_be_answered() -> None:
    talk = Hearing()
    talk.hear(QUESTION, final=False)
    talk.hear_sound(GOES_ON, GOES_ON)
    talk.run()
    assert talk.decided == [InputState.INCOMPLETE]
    (asked,) = talk.asked
    assert [isinstance(id, VirtualId) for id in asked[-3:]] == [True, True, False], "words, sound, probe"
    talk.hear_sound(GOES_ON, ENDS)
    talk.hear(QUESTION)
    talk.run()
    assert talk.decided == [InputState.INCOMPLETE, InputState.PROCESS], "the words are judged again for their sound"
    assert talk.turns == [("user", QUESTION), ("assistant", "It is a cat.")]
    talk.check_cache()


def test_no_answer_is_given_after_a_sound() -> None:
    deaf, talk = Talk({QUESTION: "It is a cat."}), Hearing()
    for each in (deaf, talk):
        each.hear(QUESTION)
        if each is talk:
            talk.hear_sound(ENDS)
        each.run()
    assert talk.said == deaf.said
    assert talk.session._output.sequence.items == deaf.session._output.sequence.items
    assert not any(isinstance(id, VirtualId) for seq in talk.handle.sequences.seqs.values() for id in talk.held(seq))


def test_new_words_are_judged_without_the_sound_of_earlier_ones() -> None:
    talk = Hearing()
    talk.hear("what", final=False)
    talk.hear_sound(GOES_ON)
    talk.run()
    talk.hear(QUESTION, final=False)
    talk.run()
    assert talk.decided == [InputState.INCOMPLETE, InputState.PROCESS]
    assert not any(isinstance(id, VirtualId) for id in talk.asked[-1])


def test_the_end_of_an_utterance_keeps_its_sound() -> None:
    talk = Hearing()
    talk.hear(QUESTION, final=False)
    talk.hear_sound(GOES_ON)
    talk.run()
    talk.hear(QUESTION, final=True)
    talk.run()
    assert talk.decided == [InputState.INCOMPLETE]


def test_the_same_sound_is_not_judged_again_and_late_sound_changes_nothing() -> None:
    talk = Hearing()
    talk.hear(QUESTION, final=False)
    talk.hear_sound(GOES_ON)
    talk.run()
    talk.hear_sound(GOES_ON)
    talk.hear_sound(ENDS, utterance="another")
    talk.run()
    assert talk.decided == [InputState.INCOMPLETE]
    assert len(talk.asked) == 1


def test_sound_without_words_is_not_judged() -> None:
    talk = Hearing()
    talk.hear("", final=False)
    talk.hear_sound(ENDS)
    talk.run()
    assert talk.asked == []


def test_more_soft_tokens_than_the_probe_takes_are_refused() -> None:
    talk = Hearing()
    talk.hear(QUESTION, final=False)
    with pytest.raises(UsageError, match="3 soft tokens, but this probe takes 2"):
        talk.hear_sound(ENDS, ENDS, ENDS)
    with pytest.raises(UsageError, match="1 soft tokens, but this probe takes 0"):
        Talk().session.hear_sound(talk.backend.embed(np.zeros((1, 2), np.float32)))
    talk.run()
    assert talk.decided == [InputState.PROCESS]
