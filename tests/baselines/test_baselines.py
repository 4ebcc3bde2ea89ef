"""The sessions that duplex decoding is compared with: same interface, same events, and passes counted by hand."""

import random
from functools import partial

import pytest

from crowd import Crowd, Guest
from duologue.baselines.sessions import NAMES, Sequential, Turns, Vad, factory
from duologue.baselines.tdm import Tdm
from duologue.core.base_session import Phase
from duologue.core.config import SessionConfig
from duologue.core.events import Decided, Dropped, Held, Promoted, Refused, Suspended, Trimmed
from duologue.core.session import Session
from duologue.engine.replay import Cue, Replay, Script
from duologue.errors import ContextOverflow, UsageError
from duologue.types import InputState, Role, Turn
from scripted import PROBE, Talk, judged

ANSWERS = {"what is it": "It is a cat.", "and the dog": "The dog is out."}
STAR = (42,)  # one id that stands for <idle>, as a trained model has it
SAID = "x x x x x "  # ten tokens
IDLE_PAIR = 6 + 1 + 13 + 1 + 2  # user's opener, idle, header, idle, closer: what an idle pair takes in ChatML bytes


def spoken_to(make, *overheard, ticks_between=1):
    """A conversation in which `overheard` is heard while the answer runs."""
    talk = Talk(make=make)
    talk.hear("tell me a story")
    talk.tick(12)
    for number, words in enumerate(overheard):
        talk.hear(words, f"v{number}")
        talk.tick(ticks_between)
    talk.run()
    return talk


# ------------------------------------------------------------------------------------------------------- sequential


def test_listening_costs_the_sequential_session_one_pass_more_each_time():
    alone = spoken_to(Session)
    asides = ("mhm", "radio talk", "mhm mhm")
    cdm, sequential = spoken_to(Session, *asides), spoken_to(Sequential, *asides, ticks_between=2)
    assert cdm.trace.num_passes == alone.trace.num_passes
    assert cdm.trace.passes[Phase.OVERLAP] == 3
    assert sequential.trace.passes[Phase.OVERLAP] == 6
    assert sequential.trace.num_passes == alone.trace.num_passes + 3
    assert sequential.trace.tokens_fed.total() == cdm.trace.tokens_fed.total()
    assert spoken_to(Sequential).trace.passes == alone.trace.passes, "with one channel there is no difference"


def test_sequential_decides_and_says_the_same():
    cdm, sequential = (spoken_to(make, "mhm", "what is it", "stop", ticks_between=9) for make in (Session, Sequential))
    assert sequential.turns == cdm.turns
    assert sequential.kinds() == cdm.kinds()
    sequential.check_cache()


def test_two_channels_hold_the_prefix_once_and_their_own_tokens():
    talk = Talk(make=Session)
    talk.hear("tell me a story")
    talk.tick(12)
    before = talk.backend.usage().kv_entries
    talk.hear("what is the", "v", final=False)  # incomplete: held
    talk.tick()
    words = talk.template.user("what is the", first=False)
    own = len(talk.template.close) + len(words) + 1  # and the probe, which is rolled back in the next plan
    assert talk.backend.usage().kv_entries == before + 1 + own
    assert before > 2 * own, "the prefix is the larger part, and there is no second one"


# ------------------------------------------------------------------------------------------------------- gated


def test_turns_answer_when_the_turn_has_ended_in_one_pass_for_the_first_token():
    talk = Talk(ANSWERS, make=Turns)
    talk.hear("what", final=False)
    talk.hear("what is", final=False)
    assert talk.tick() == []
    assert talk.trace.num_passes == 0, "nothing is read before the end"
    talk.hear("what is it")
    talk.tick()
    assert talk.said == "I"
    assert talk.trace.passes == {Phase.LISTENING: 1}
    talk.run()
    assert talk.trace.num_passes == len("It is a cat.") + 1
    assert talk.turns == [("user", "what is it"), ("assistant", "It is a cat.")]
    assert not any(isinstance(event, Decided) for event in talk.events)


def test_turns_are_deaf_while_they_answer():
    alone, talk = spoken_to(Turns), Talk(make=Turns)
    talk.hear("tell me a story")
    talk.tick(12)
    talk.hear("stop", "v")
    talk.hear("and the", "w", final=False)
    talk.run()
    assert talk.said == alone.said
    assert [event.reason for event in talk.events if isinstance(event, Dropped)] == ["deaf", "deaf"]
    talk.hear("and the dog", "w")  # what was said meanwhile is lost, the rest is not
    talk.run()
    assert talk.turns[2] == ("user", "dog")


def test_any_sound_stops_vad():
    talk = Talk(make=Vad)
    talk.hear("tell me a story")
    talk.advance(1.0)
    talk.tick(12)
    num_passes = talk.trace.num_passes
    talk.hear("mhm", "v", final=False)
    assert talk.kinds()[-1] == "Suspended"
    assert talk.trace.num_passes == num_passes, "it takes no pass"
    assert talk.session.num_suspended == 0, "and nothing is kept to go on with"


def test_silence_starts_vad():
    talk = Talk(ANSWERS, make=Vad)
    talk.hear("what is", final=False)
    talk.advance(1.0)
    assert talk.run() == []
    talk.hear("what is it")
    assert talk.session.next_deadline == pytest.approx(1.6)
    talk.advance(0.5)
    assert talk.run() == []
    talk.advance(0.2)
    talk.run()
    assert talk.turns == [("user", "what is it"), ("assistant", "It is a cat.")]


def test_vad_takes_words_without_an_end_for_ended_after_patience():
    talk = Talk(ANSWERS, make=Vad)
    talk.hear("what is it", final=False)
    talk.advance(3.9)
    assert talk.run() == []
    talk.advance(0.2)
    assert talk.run() != []


def test_a_sound_before_vad_was_heard_continues_the_turn():
    talk = Talk(ANSWERS, make=Vad)
    talk.hear("what is", "v")
    talk.advance(1.0)  # the answer begins, and nothing of it has been heard
    talk.hear("it", "w")
    assert talk.kinds()[-1] == "TakenBack"
    talk.advance(1.0)
    talk.run()
    assert talk.turns[0] == ("user", "what is it")


# ------------------------------------------------------------------------------------------------------- tdm


class Sliced(Talk):
    """A conversation of time division: the model says x x x without an end, unless a judge lets it be silent."""

    def __init__(self, *, period_s=2.0, **options):
        config = options.pop("config", SessionConfig(max_answer=25))
        settings = {"judge": judged, "idle": STAR, **options}
        capacity = settings.pop("capacity", 1 << 20)
        super().__init__(make=partial(Tdm, period_s=period_s, **settings), config=config, capacity=capacity)
        self.period_s = period_s

    def _speak(self, ids):
        return ord(" ") if ids[-1] == ord("x") else ord("x")

    def slice(self, count=1):
        """So many periods with all their passes."""
        for _ in range(count):
            self.advance(self.period_s)
            self.run()


def test_every_period_of_silence_takes_a_pass():
    talk = Sliced()
    talk.slice(5)
    assert talk.trace.passes == {Phase.SILENCE: 5}
    assert talk.trace.num_passes == 5


def test_kept_idle_pairs_grow_and_skipped_ones_and_channel_division_do_not():
    kept, skipped, cdm = Sliced(), Sliced(skip_idle=True), Talk()
    begin = len(kept.template.begin)
    for talk in (kept, skipped):
        talk.slice(30)
        talk.engine.tick()  # what is taken out is taken out before the next pass
    cdm.advance(60.0)
    cdm.run()
    # the last pair's own idle and the closer behind it are fed with the next slice
    assert kept.backend.usage().kv_entries == begin + 30 * IDLE_PAIR - 3
    assert skipped.backend.usage().kv_entries == begin
    assert cdm.backend.usage().kv_entries == 0
    assert cdm.trace.num_passes == 0
    assert skipped.trace.num_passes == kept.trace.num_passes == 30


def test_an_answer_comes_in_slices_of_ten_tokens():
    talk = Sliced()
    talk.hear("what is it")
    talk.slice()
    assert talk.said == SAID
    assert talk.trace.passes == {Phase.LISTENING: 1, Phase.SPEAKING: 9}
    talk.slice(2)
    assert talk.said == SAID + SAID + "x x x"
    assert talk.kinds() == ["Decided", "Promoted", "Released", "Finished", "Committed"]
    assert talk.trace.num_passes == 25, "a slice is read in the pass that draws its first token"
    assert talk.turns == [("user", "what is it"), ("assistant", SAID + SAID + "x x x")]


def test_the_channel_holds_slices_of_both_sides_in_turn():
    talk = Sliced()
    talk.hear("what is it")
    talk.slice(2)
    written = talk.tokenizer.decode(talk.session._channel.items).split("<|im_end|>\n")
    begun = "<|im_start|>assistant\n" + SAID
    assert written == ["<|im_start|>user\nwhat is it", begun, "<|im_start|>user\n*", begun]


def test_words_that_came_in_a_period_are_one_slice_and_grow_into_a_turn():
    talk = Sliced()
    talk.hear("what is the", final=False)
    talk.slice()
    assert isinstance(talk.events[-1], Held)
    talk.hear("what is the colour", final=False)
    talk.hear("what is the colour of it")
    talk.slice()
    promoted = next(event for event in talk.events if isinstance(event, Promoted))
    assert promoted.text == "what is the colour of it"
    words = talk.tokenizer.decode(talk.session._channel.items)
    assert "user\nwhat is the<" in words
    assert "user\ncolour of it<" in words


@pytest.mark.parametrize(("num_drawn", "reaction"), [(3, 8), (9, 2)])
def test_an_interruption_waits_for_the_end_of_the_slice(num_drawn, reaction):
    talk = Sliced()
    talk.hear("what is it")
    talk.advance(2.0)
    talk.tick(num_drawn)
    talk.hear("and the dog", "v")
    before = talk.trace.num_passes
    talk.advance(2.0)
    while not any(isinstance(event, Suspended) for event in talk.tick()):
        pass
    assert talk.trace.num_passes - before == reaction, "the rest of ten tokens, and the pass that reads the words"
    assert talk.trace.passes[Phase.OVERLAP] == 1


def test_what_is_ignored_stays_in_the_channel_and_the_answer_goes_on():
    talk = Sliced()
    talk.hear("what is it")
    talk.slice()
    talk.hear("mhm", "v")
    talk.slice(2)
    assert talk.said == SAID + SAID + "x x x"
    assert [event.reason for event in talk.events if isinstance(event, Dropped)] == ["ignore"]
    assert "mhm" in talk.tokenizer.decode(talk.session._channel.items)


def test_stop_ends_it_with_an_idle_slice():
    talk = Sliced()
    talk.hear("what is it")
    talk.slice()
    talk.hear("stop", "v")
    talk.slice(2)
    assert talk.said == SAID
    assert talk.kinds()[-3:] == ["Decided", "Suspended", "Dropped"]


def test_without_a_judge_the_model_decides_by_what_it_draws():
    talk = Sliced(judge=None, idle=(42, 43))
    assert talk.session.decider == "prompted"
    assert Sliced().session.decider == "forced"
    drawn = iter([42, 43, *b"Hi there", 257])
    talk._speak = lambda ids: next(drawn)
    talk.backend._speak = talk._speak
    talk.hear("what is the", final=False)
    talk.slice()
    assert talk.trace.num_passes == 2, "<idle> of two ids is two passes"
    assert talk.said == ""
    talk.hear("what is the time")
    talk.slice()
    assert talk.said == "Hi there"
    states = [event.decision.state for event in talk.events if isinstance(event, Decided)]
    assert states == [InputState.INCOMPLETE, InputState.PROCESS]
    assert talk.turns == [("user", "what is the time"), ("assistant", "Hi there")]


def test_a_word_that_only_begins_like_idle_is_said():
    talk = Sliced(judge=None, idle=(42, 43))
    drawn = iter([42, 65, 257])
    talk.backend._speak = lambda ids: next(drawn)
    talk.hear("what is it")
    talk.slice()
    assert talk.said == "*A"


def test_a_channel_that_is_full_keeps_the_newest_slices():
    talk = Sliced(config=SessionConfig(max_length=256))
    talk.slice(30)
    assert any(isinstance(event, Trimmed) for event in talk.events)
    assert talk.trace.kv_entries_peak <= 256
    items = talk.session._channel.items
    assert items[:6] == list(talk.template.user("", first=True))
    talk.hear("what is it")
    talk.slice()
    assert talk.said == SAID


def test_a_full_cache_makes_it_leave_out_slices_too():
    talk = Sliced(capacity=180)
    talk.slice(7)
    talk.hear("what is it")
    talk.slice()
    assert any(isinstance(event, Trimmed) for event in talk.events), "while the slice was being read"
    assert talk.said == SAID
    written = talk.tokenizer.decode(talk.session._channel.items)
    assert written.endswith("user\nwhat is it<|im_end|>\n<|im_start|>assistant\n" + SAID)
    talk.slice(2)
    assert talk.turns == [("user", "what is it"), ("assistant", SAID + SAID + "x x x")]
    assert talk.backend.usage().kv_entries <= 180


def test_an_answer_that_fills_its_slices_ends_with_idle():
    talk = Sliced()
    drawn = iter([*b"It is so. ", 257])
    talk.backend._speak = lambda ids: next(drawn)
    talk.hear("what is it")
    talk.slice(2)
    assert talk.turns == [("user", "what is it"), ("assistant", "It is so. ")]
    assert talk.tokenizer.decode(talk.session._channel.items).endswith("user\n*<|im_end|>\n<|im_start|>assistant\n*")


def test_tdm_refuses_what_it_cannot_do_and_says_so():
    talk = Sliced()
    assert isinstance(talk.session.resume()[0], Refused)
    assert isinstance(talk.session.stop()[0], Refused)
    talk.hear("no " * 2000)
    talk.advance(2.0)
    assert any(isinstance(event, Refused) for event in talk.events)
    with pytest.raises(UsageError, match="time goes forward"):
        talk.session.advance(0.0)
    with pytest.raises(ContextOverflow, match="more than 2048 tokens"):
        talk.session.edit([Turn(Role.USER, "no " * 2000)])
    with pytest.raises(UsageError, match="slices of"):
        Sliced(period_s=0.0)


def test_tdm_can_be_stopped_and_its_history_replaced():
    talk = Sliced()
    talk.hear("what is it")
    talk.slice()
    talk.told(talk.session.stop())
    assert talk.turns == [("user", "what is it"), ("assistant", SAID.strip())]
    talk.told(talk.session.edit([Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "hello")]))
    talk.hear("what is it", "v")
    talk.slice()
    assert talk.turns[-1] == ("assistant", SAID.strip())
    assert talk.backend.usage().num_seqs == 1


# ------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_runs_on_the_same_replay_and_frees_all_it_held(name):
    talk = Talk(ANSWERS)
    cues = (Cue(1.0, text="what is it", final=True), Cue(9.0, text="mhm", utterance="v", final=True))
    make = factory(name, judge=judged, idle=STAR)
    replay = Replay(Script(cues), talk.backend, talk.template, PROBE, make=make, end=20.0)
    events = list(replay)
    assert any(isinstance(event, Promoted) for event in events)
    assert replay.result.history[0] == Turn(Role.USER, "what is it")
    assert replay.session.now <= 20.5
    replay.close()
    assert talk.backend.usage().num_seqs == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("heard", ["shown", "reported"])
def test_nothing_that_can_be_told_breaks_a_session_or_leaks(name, heard):
    for seed in range(25):
        chance = random.Random(f"{name}/{seed}")
        make = factory(name, judge=judged if seed % 2 else None, idle=STAR)
        config = SessionConfig(heard=heard, max_answer=30, max_length=512)
        talk = Talk(make=make, config=config, capacity=700)
        said = ""
        for _ in range(120):
            match chance.randrange(10):
                case 0 | 1 | 2:
                    said = f"{said} {chance.choice(['what', 'is', 'the', 'mhm', 'stop', 'it'])}".strip()
                    is_final = chance.random() < 0.3
                    talk.hear(said, chance.choice("uuuv"), final=is_final)
                    said = "" if is_final else said
                case 3:
                    command = chance.choice([talk.session.stop, talk.session.resume, talk.session.respond])
                    talk.told(command())
                case 4 if talk.session.running:
                    talk.told(talk.session.heard(chance.randint(0, talk.session.running.num_said)))
                case 5 if chance.random() < 0.1:
                    talk.told(talk.session.edit([Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "hello")]))
                case 6:
                    talk.advance(chance.choice([0.1, 0.7, 2.0, 5.0]))
                case _:
                    talk.tick(chance.randrange(12))
        talk.engine.close()
        assert talk.backend.usage().num_seqs == 0


def test_kinds_of_sessions_run_side_by_side_on_one_backend():
    crowd = Crowd(ANSWERS, tick_s=0.2)
    config = SessionConfig()
    guests = {}
    for name in NAMES:
        make = factory(name, judge=judged, idle=STAR)
        guests[name] = Guest(crowd, make(crowd.script.template, PROBE, config=config), None)
    for guest in guests.values():
        guest.hear("what is it")
    for _ in range(40):
        crowd.tick()
        crowd.now += 0.1
    for name, guest in guests.items():
        assert guest.failure is None
        assert guest.said.startswith("It is a ca"), name  # what comes in the first slice of time division
        guest.handle.close()
    crowd.tick()
    assert crowd.backend.usage().num_seqs == 0
