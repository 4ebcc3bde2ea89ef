"""A conversation by voice: who is heard when, what comes of it, and how it sounds. On a virtual clock, with scripts."""

import asyncio

import numpy as np
import pytest

from duologue.core.transitions import Interruptible
from duologue.errors import UsageError
from duologue.types import InputState
from duologue.voice.player import DUCK_DB
from duologue.voice.recording import Recording, converse
from duologue.voice.sound import gain, silence
from duologue.voice.voice import VoiceConfig
from scripted import judged
from voiced import Spoken, in_loop

QUESTION = {0.5: "what is", 0.9: "what is a cat"}
ANSWER = "A cat is a small animal, which lives with people. It sleeps a lot, and hunts at night. " * 3
ANSWERS = {"what is a cat": ANSWER, "and a dog": "A dog is another one."}
FULL, DUCKED = 0.5, 0.5 * gain(DUCK_DB)


def spoken(*scripts: dict[float, str], **more: object) -> Spoken:
    return Spoken([QUESTION, *scripts], ANSWERS, **more)  # type: ignore[arg-type]


async def asked(talk: Spoken) -> None:
    """The question is asked, and the answer has been running for a second."""
    await talk.hears(0.5, speech=False)
    await talk.hears(1.0, speech=True)
    await talk.hears(2.0, speech=False)
    assert talk.voice.player.is_playing


@in_loop
async def test_a_question_is_answered_after_it_ends_and_heard_as_it_is_played() -> None:
    async with spoken() as talk:
        during = await talk.hears(1.0, speech=True)
        assert not during.any(), "nothing is said while the user speaks"
        assert "promoted" in talk.kinds, "but the answer is being prepared"
        after = await talk.hears(1.5, speech=False)
        begins = np.flatnonzero(after)[0] / 24_000
        assert 0.2 < begins < 0.6
        heard = talk.history[-1][1]
        assert heard
        assert ANSWER.startswith(heard)
        assert len(heard) * 0.04 == pytest.approx(1.5 - begins, abs=0.45), "what was heard is what has been played"


@in_loop
async def test_words_that_do_not_matter_make_it_quieter_and_nothing_else() -> None:
    async with spoken({0.4: "mhm"}) as talk:
        await asked(talk)
        before = await talk.hears(0.1, speech=False)
        during = await talk.hears(0.6, speech=True)
        after = await talk.hears(2.0, speech=False)
        assert before[-1] == pytest.approx(FULL)
        assert talk.first("ducked") - talk.times("speech_started")[1] == 0.0
        assert np.isclose(during, DUCKED, atol=1e-3).mean() > 0.3
        assert after[-1] == pytest.approx(FULL)
        assert talk.times("came_back")
        assert "cut" not in talk.kinds
        assert talk.history[0] == ("user", "what is a cat")
        assert len(talk.history) == 2, "the aside left no trace"


@in_loop
async def test_an_interruption_silences_it_and_the_history_has_what_was_played() -> None:
    async with spoken({0.4: "and a", 0.8: "and a dog"}) as talk:
        await asked(talk)
        during = await talk.hears(1.2, speech=True)
        cut = talk.first("cut")
        assert not during[-4800:].any(), "silence"
        await talk.hears(3.0, speech=False)
        assert talk.history[0] == ("user", "what is a cat")
        first = talk.history[1][1]
        assert ANSWER.startswith(first)
        spoken_s = cut - talk.first("sound_begins")
        assert len(first) * 0.04 == pytest.approx(spoken_s, abs=0.45)
        assert talk.history[2:] == [("user", "and a dog"), ("assistant", "A dog is another one.")]


@in_loop
async def test_stop_silences_it_and_nothing_follows() -> None:
    async with spoken({0.3: "stop"}) as talk:
        await asked(talk)
        await talk.hears(0.6, speech=True)
        after = await talk.hears(2.0, speech=False)
        assert "cut" in talk.kinds
        assert not after.any()
        assert len(talk.history) == 2


@in_loop
async def test_what_sounded_like_stop_and_was_not_lets_it_go_on() -> None:
    async with spoken({0.4: "stop", 0.9: "stop radio talk"}) as talk:
        await asked(talk)
        await talk.hears(1.2, speech=True)
        assert talk.times("cut")
        await talk.hears(20.0, speech=False)
        assert talk.times("resumed")
        assert talk.history == [("user", "what is a cat"), ("assistant", ANSWER)]


@in_loop
async def test_noise_ducks_for_a_moment() -> None:
    async with spoken({}) as talk:
        await asked(talk)
        await talk.hears(0.3, speech=True)
        after = await talk.hears(1.5, speech=False)
        assert talk.times("ducked")
        assert "cut" not in talk.kinds
        assert after[-1] == pytest.approx(FULL)


@in_loop
async def test_nothing_said_is_no_turn() -> None:
    async with Spoken([{}]) as talk:
        await talk.hears(0.5, speech=True)
        out = await talk.hears(3.0, speech=False)
        assert not out.any()
        assert talk.history == []
        assert talk.handle.session.input_text is None


@in_loop
async def test_a_pause_for_thought_does_not_end_the_utterance() -> None:
    async with Spoken([{0.5: "tell me about the", 1.4: "tell me about the moon"}]) as talk:
        await talk.hears(0.7, speech=True)
        await talk.hears(0.6, speech=False)  # longer than a finished sentence would be waited for
        await talk.hears(0.6, speech=True)
        await talk.hears(1.5, speech=False)
        assert talk.recogniser.num_begun == 1
        assert talk.history[0] == ("user", "tell me about the moon")


@in_loop
async def test_words_after_the_end_belong_to_the_turn_while_nothing_was_heard() -> None:
    async with Spoken([{0.4: "what is a cat"}, {0.4: "and a dog"}], speaking_s=1.0) as talk:
        await talk.hears(0.6, speech=True)
        await talk.hears(0.8, speech=False)  # answered, but the synthesiser is slow
        out = await talk.hears(0.6, speech=True)
        assert not out.any(), "it does not begin while the user speaks"
        await talk.hears(4.0, speech=False)
        assert talk.history[0] == ("user", "what is a cat and a dog")


@in_loop
async def test_slow_recognition_loses_nothing() -> None:
    async with spoken({0.4: "and a", 0.8: "and a dog"}, recognising_s=0.7) as talk:
        await talk.hears(1.0, speech=True)
        await talk.hears(4.0, speech=False)
        await talk.hears(1.1, speech=True)
        await talk.hears(5.0, speech=False)
        assert [text for role, text in talk.history if role == "user"] == ["what is a cat", "and a dog"]


@in_loop
async def test_a_recogniser_that_fails_is_told_and_the_answer_goes_on() -> None:
    async with spoken({}) as talk:
        await asked(talk)
        talk.recogniser.fails = True
        await talk.hears(0.5, speech=True)
        after = await talk.hears(2.0, speech=False)
        assert "recogniser_failed" in talk.kinds
        assert after[-1] == pytest.approx(FULL)


@in_loop
async def test_choppy_generation_is_spoken_in_order_and_without_clicks() -> None:
    async with spoken(passes=1, speaking_s=0.2) as talk:  # a letter in 20 ms is twice as fast as it is said
        await talk.hears(1.0, speech=True)
        out = await talk.hears(14.0, speech=False)
        assert "".join(talk.synthesiser.texts) == ANSWER
        assert talk.history[-1] == ("assistant", ANSWER)
        assert np.abs(np.diff(out)).max() < 0.02, "no sample jumps"


@in_loop
async def test_what_is_cut_fades() -> None:
    async with spoken({0.3: "stop"}) as talk:
        await asked(talk)
        out = await talk.hears(1.0, speech=True)
        assert not out[-1]
        assert np.abs(np.diff(out)).max() < 0.02


@in_loop
async def test_nothing_comes_behind_a_cut_where_the_other_side_drops_what_it_has() -> None:
    async with spoken({0.3: "stop"}, fades=False) as talk:
        await asked(talk)
        while "cut" not in talk.kinds:
            out = await talk.hears(0.02, speech=True)
        assert not out.any()


@in_loop
async def test_an_answer_that_may_not_be_cut_is_not() -> None:
    async with spoken({0.4: "and a dog"}) as talk:
        await asked(talk)
        talk.handle.session.protect(Interruptible.NO)
        await talk.hears(0.8, speech=True)
        after = await talk.hears(3.0, speech=False)
        assert "cut" not in talk.kinds
        assert after[-1] == pytest.approx(FULL)


@in_loop
async def test_marks_of_writing_are_not_spoken_and_count_as_heard() -> None:
    async with Spoken([QUESTION], {"what is a cat": "**A cat** is:\n\n* small\n* `grey`\n"}) as talk:
        await talk.hears(1.0, speech=True)
        await talk.hears(5.0, speech=False)
        assert not any(c in "".join(talk.synthesiser.texts) for c in "*`")
        assert talk.history[-1] == ("assistant", "**A cat** is:\n\n* small\n* `grey`\n")


@pytest.mark.parametrize("wrong", [{"rate": 100}, {"sure_end_s": 2.0}, {"end_s": 0.1}, {"partial_s": -1.0}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        VoiceConfig(**wrong)  # type: ignore[arg-type]


@in_loop
async def test_who_speaks_can_be_told_to_have_ended_and_goes_on_as_somebody_new() -> None:
    async with Spoken([{0.3: "what is", 0.5: "what is a cat"}, {0.3: "and a dog"}], ANSWERS) as talk:
        await talk.hears(0.6, speech=True)
        (ending,) = talk.voice.end()
        assert not talk.voice.is_hearing
        await ending.over.wait()
        assert ending.text == "what is a cat", "without any silence"
        assert talk.voice.end() == []
        await talk.hears(0.6, speech=True)
        await talk.hears(2.0, speech=False)
        assert talk.recogniser.num_begun == 2
        assert talk.history[0] == ("user", "what is a cat and a dog")


@in_loop
async def test_what_is_forgotten_while_it_is_being_recognised_is_never_told() -> None:
    async with Spoken([{0.3: "what is a cat"}, {0.3: "and a dog"}], ANSWERS, recognising_s=0.5) as talk:
        await talk.hears(0.6, speech=True)
        assert "recognised" not in talk.kinds
        talk.voice.hang_up(forgets=True)
        await talk.hears(0.8, speech=True)  # without a pause
        await talk.hears(3.0, speech=False)
        assert talk.history[0] == ("user", "and a dog")


@in_loop
async def test_an_answer_that_does_not_yield_begins_and_goes_on_at_full_volume_whoever_speaks() -> None:
    async with spoken({}, {}, speaking_s=1.0) as talk:
        talk.voice.yields = False
        await talk.hears(1.0, speech=True)
        await talk.hears(0.6, speech=False)
        assert not talk.voice.player.is_playing, "the synthesiser is slow"
        during = await talk.hears(1.8, speech=True)
        assert talk.voice.is_hearing
        assert during.max() == pytest.approx(FULL), "it begins"
        await talk.hears(1.0, speech=False)
        await talk.hears(0.4, speech=True)
        assert len(talk.times("speech_started")) == 3
        assert "ducked" not in talk.kinds


@in_loop
async def test_an_utterance_may_end_at_the_moment_at_which_it_has_been_recognised() -> None:
    async with Spoken([{0.3: "what is", 0.5: "what is a cat"}], ANSWERS, recognising_s=5.0) as talk:
        await talk.hears(0.6, speech=True)
        talk.recogniser.clock.advance(5.0)
        while "recognised" not in talk.kinds:
            await asyncio.sleep(0)
        (ending,) = talk.voice.end()
        assert ending.text == "what is", "there is more to recognise"
        for _ in range(8):
            talk.recogniser.clock.advance(5.0)
            await asyncio.sleep(0)
        assert ending.over.is_set()
        assert ending.text == "what is a cat"


LONG = {0.4: "and a", 1.8: "and a dog"}  # over a second of it, more is expected


@in_loop
async def test_a_recording_that_is_interrupted_has_what_there_is() -> None:
    async with spoken({0.4: "what is a cat"}) as talk:
        begun, now = asyncio.Event(), 0.0

        async def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds
            if now > 0.1:
                begun.set()
            await asyncio.sleep(0)

        def recording(*, ends: bool) -> "asyncio.Task[Recording]":
            how = {"clock": lambda: now, "sleep": sleep, "ends_when_cancelled": ends}
            return asyncio.create_task(converse(talk.voice, silence(600 * 16_000), is_over=lambda: True, **how))

        task = recording(ends=True)
        await begun.wait()
        task.cancel()
        found = await task
        assert 0 < len(found.user) < 600 * 16_000
        assert len(found.assistant) / found.rate == pytest.approx(len(found.user) / 16_000)
        begun.clear()
        now = 0.0
        task = recording(ends=False)
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@in_loop
async def test_who_goes_on_speaking_to_it_is_not_spoken_to() -> None:
    async with spoken(LONG, yield_s=1.0) as talk:
        await asked(talk)
        during = await talk.hears(1.6, speech=True)
        began = talk.times("speech_started")[1]
        assert talk.first("yielded") - began == pytest.approx(1.0, abs=0.06)
        assert "cut" not in talk.kinds
        assert during[24_000 * 7 // 10 : 24_000 * 9 // 10].any(), "not before the time"
        assert not during[24_000 * 13 // 10 :].any(), "silence"
        assert np.abs(np.diff(during)).max() < 0.02, "no click"


@in_loop
async def test_what_was_heard_of_an_answer_that_yielded_and_is_cut_is_what_had_been_played() -> None:
    async with spoken(LONG, yield_s=1.0) as talk:
        await asked(talk)
        await talk.hears(1.5, speech=True)
        yielded, heard = talk.first("yielded"), talk.history[1][1]
        await talk.hears(0.6, speech=True)
        assert talk.first("cut") > yielded + 0.5
        assert "came_back" not in talk.kinds
        await talk.hears(3.0, speech=False)
        assert talk.history[1][1] == heard
        assert len(heard) * 0.04 == pytest.approx(yielded - talk.first("sound_begins"), abs=0.45)
        assert talk.history[2:] == [("user", "and a dog"), ("assistant", "A dog is another one.")]


@in_loop
async def test_an_answer_that_yielded_to_nothing_goes_on_to_its_end() -> None:
    async with spoken({0.4: "and a", 1.8: "and a mhm"}, yield_s=1.0) as talk:
        await asked(talk)
        await talk.hears(2.4, speech=True)
        assert talk.times("dropped")
        assert "came_back" not in talk.kinds, "who speaks may have been misunderstood"
        after = await talk.hears(20.0, speech=False)
        assert talk.times("came_back", why="dropped") == talk.times("speech_ended", utterance="voice-2")
        assert np.abs(np.diff(after)).max() < 0.02, "no click"
        assert after.max() == pytest.approx(FULL)
        assert talk.history == [("user", "what is a cat"), ("assistant", ANSWER)]
        assert talk.times("committed")
        assert "cut" not in talk.kinds


@in_loop
async def test_words_that_are_ignored_three_times_end_the_pause_and_twice_do_not() -> None:
    words = ["and a", "and a mhm", "and a radio talk", "and a mhm to", "to mhm", "to radio talk", "to mhm mhm"]
    script = {0.4 + 0.8 * number: text for number, text in enumerate(words)}
    async with spoken(script, yield_s=1.0) as talk:
        await asked(talk)
        await talk.hears(6.0, speech=True)
        assert len(talk.times("dropped")) == 5
        assert talk.times("came_back") == talk.times("dropped")[4:]
        await talk.hears(20.0, speech=False)
        assert talk.history == [("user", "what is a cat"), ("assistant", ANSWER)]


@in_loop
async def test_an_answer_that_yielded_to_words_that_were_never_finished_goes_on() -> None:
    async with spoken({0.4: "and a"}, yield_s=1.0) as talk:
        await asked(talk)
        await talk.hears(1.4, speech=True)
        waiting = await talk.hears(1.2, speech=False)
        assert not waiting.any(), "more may come"
        await talk.hears(20.0, speech=False)
        assert len(talk.times("came_back")) == 1
        assert talk.history == [("user", "what is a cat"), ("assistant", ANSWER)]


@in_loop
async def test_an_answer_that_yielded_to_words_that_were_none_goes_on() -> None:
    async with spoken({0.4: "and a", 1.4: ""}, yield_s=1.0) as talk:
        await asked(talk)
        await talk.hears(1.8, speech=True)
        assert talk.times("yielded")
        await talk.hears(20.0, speech=False)
        assert talk.times("came_back")
        assert talk.history == [("user", "what is a cat"), ("assistant", ANSWER)]


@in_loop
async def test_short_words_that_want_more_silence_it_once_they_have_ended_until_nothing_comes_of_them() -> None:
    async with spoken({0.4: "and a"}, yield_s=1.0) as talk:
        await asked(talk)
        await talk.hears(0.8, speech=True)
        await talk.hears(0.8, speech=False)
        assert talk.times("decided", state="incomplete", speaking=True)
        assert "yielded" not in talk.kinds, "more may come"
        await talk.hears(20.0, speech=False)
        assert talk.times("yielded") == talk.times("speech_ended", utterance="voice-2")
        assert talk.times("came_back", why="dropped") == talk.times("dropped", reason="patience")
        assert talk.history == [("user", "what is a cat"), ("assistant", ANSWER)]


@in_loop
async def test_words_that_want_more_and_are_recognised_after_they_ended_silence_it_as_well() -> None:
    async with spoken({0.75: "and a"}, yield_s=1.0) as talk:
        await asked(talk)
        talk.recogniser.takes_s = 0.7
        await talk.hears(0.8, speech=True)
        await talk.hears(20.0, speech=False)
        (recognised,) = talk.times("recognised", text="and a")
        assert recognised >= talk.first("speech_ended", utterance="voice-2")
        assert talk.first("yielded") == pytest.approx(recognised, abs=0.06)
        assert talk.times("came_back") == talk.times("dropped", reason="patience")
        assert talk.history == [("user", "what is a cat"), ("assistant", ANSWER)]


@in_loop
async def test_short_words_that_want_more_are_answered_if_they_are_meant_for_it() -> None:
    def judge(words: str) -> InputState | tuple[float, ...]:
        return (0.1, 0.85, 0.02, 0.03) if words == "and a" else judged(words)

    async with spoken({0.4: "and a"}, judge=judge, yield_s=1.0) as talk:
        await asked(talk)
        await talk.hears(0.8, speech=True)
        await talk.hears(6.0, speech=False)
        assert talk.first("yielded") < talk.first("cut")
        assert "came_back" not in talk.kinds
        assert talk.history[2][:2] == ("user", "and a")


@in_loop
async def test_words_that_are_meant_for_others_make_it_wait_for_nothing() -> None:
    async with spoken({0.4: "radio talk"}, yield_s=1.0) as talk:
        await asked(talk)
        await talk.hears(2.0, speech=True)
        assert talk.times("decided", state="ignore")
        assert "yielded" not in talk.kinds


@in_loop
async def test_an_echo_of_the_answer_changes_nothing() -> None:
    async with spoken({0.4: "small animal which lives", 0.8: "small animal which lives with people"}) as talk:
        await asked(talk)
        await talk.hears(1.2, speech=True)
        await talk.hears(2.0, speech=False)
        assert len(talk.times("dropped", reason="echo")) == 2
        assert "yielded" not in talk.kinds
        assert "cut" not in talk.kinds


@in_loop
async def test_an_utterance_ends_soon_when_the_words_behind_an_echo_are_judged() -> None:
    async with spoken({0.4: "small animal which lives", 0.8: "small animal which lives and a dog"}) as talk:
        await asked(talk)
        await talk.hears(1.2, speech=True)
        await talk.hears(4.0, speech=False)
        ends = talk.times("speech_ended")[1]
        assert ends - talk.times("speech_started")[1] < 1.2 + talk.voice.config.end_s, "not after the longest silence"
        assert talk.history[2][:2] == ("user", "and a dog")


@in_loop
async def test_what_the_recogniser_writes_for_a_noise_reaches_nobody() -> None:
    async with spoken({0.4: "[NOISE]"}) as talk:
        await asked(talk)
        await talk.hears(1.0, speech=True)
        await talk.hears(2.0, speech=False)
        assert {row["text"] for row in talk.voice.timeline.rows if row["type"] == "received"} == {
            *QUESTION.values(),
            "",
        }
        lasted = talk.times("speech_ended")[1] - talk.times("speech_started")[1]
        assert lasted == pytest.approx(1.0 + talk.voice.config.no_words_end_s, abs=0.1), "as if there were no words"
        assert "cut" not in talk.kinds


@in_loop
async def test_where_nothing_is_being_said_nothing_yields() -> None:
    async with Spoken([{0.4: "hm, to"}, {0.4: "what is a cat"}, {0.4: "and a"}], {"what is a cat": "Who?"}) as talk:
        await talk.hears(2.0, speech=True)
        await talk.hears(4.0, speech=False)
        await talk.hears(0.6, speech=True)
        await talk.hears(4.0, speech=False)
        await talk.hears(2.0, speech=True)
        assert talk.times("committed")
        assert len(talk.times("decided", state="incomplete")) == 2
        assert "yielded" not in talk.kinds


@pytest.mark.parametrize("how", list(Interruptible))
@in_loop
async def test_an_answer_that_may_not_be_cut_does_not_yield(how: Interruptible) -> None:
    async with spoken({0.4: "and a"}, yield_s=1.0) as talk:
        await asked(talk)
        talk.handle.session.protect(how)
        await talk.hears(1.5, speech=True)
        assert ("yielded" in talk.kinds) == (how is Interruptible.YES)
        talk.handle.session.protect(Interruptible.NO)
        after = await talk.hears(0.4, speech=True)
        assert after.any(), "nor does it go on to be silent"


@in_loop
async def test_where_answers_do_not_yield_none_does() -> None:
    async with spoken({0.4: "and a"}, yield_s=1.0) as talk:
        await asked(talk)
        talk.voice.yields = False
        during = await talk.hears(2.0, speech=True)
        assert "yielded" not in talk.kinds
        assert during.max() == pytest.approx(FULL)


@in_loop
async def test_what_is_generated_during_a_pause_waits() -> None:
    async with spoken({0.4: "and a", 2.4: "and a mhm"}, yield_s=1.0, passes=1, speaking_s=0.3) as talk:
        await asked(talk)
        await talk.hears(1.3, speech=True)
        paused = await talk.hears(1.0, speech=True)
        assert not paused.any()
        await talk.hears(20.0, speech=False)
        assert talk.history == [("user", "what is a cat"), ("assistant", ANSWER)]


@in_loop
async def test_how_words_sound_is_told_after_the_words_and_again_where_only_the_sound_changes() -> None:
    told: list[tuple[str, float]] = []
    spoken = Spoken([{0.4: "what is it"}], ANSWERS)
    spoken.recogniser.sounds = True
    spoken.voice._hear_sound = lambda name, features: told.append((name, float(features[0, 0])))
    async with spoken:
        await spoken.hears(1.5, speech=True)
        await spoken.hears(1.0, speech=False)
    heard = [seconds for _, seconds in told]
    assert {name for name, _ in told} == {"voice-1"}
    assert heard == sorted(set(heard)), "each time there is more sound"
    assert len(heard) > 2
    assert len(spoken.times("recognised")) >= len(heard)
