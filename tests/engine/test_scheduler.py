"""Many sessions in one pass: who is served when, who is let in, who gives way, and whose mistakes are whose."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

import scripted
from crowd import Crowd, Guest
from duologue.core.backend import Extend, Step
from duologue.core.config import SessionConfig
from duologue.core.events import Committed, Decided, Event, Released, Resumed, Said, Suspended, Trimmed
from duologue.core.policy import Policy
from duologue.core.session import Session
from duologue.engine.engine import Engine
from duologue.engine.scheduler import MAX_WAIT_S
from duologue.engine.trace import Pass
from duologue.errors import CacheFull, ContextOverflow, EngineError, EngineFull, UsageError
from duologue.types import Role, Turn
from soak import size

SURE = Policy(p_sure=0.5)
STORY = "Once there was a word, and then came many more of them, until it was late and all went home. " * 3
LONG = [Turn(Role.USER, "well " * 100), Turn(Role.ASSISTANT, "so " * 100)] * 2


def asked(crowd: Crowd, number: int, **options: object) -> list[Guest]:
    """So many guests who have asked for a story."""
    guests = [crowd.guest(policy=SURE, **options) for _ in range(number)]  # type: ignore[arg-type]
    for guest in guests:
        guest.hear("tell me a story")
    return guests


def fed(batch: Sequence[Extend]) -> int:
    return sum(len(extend.tokens) for extend in batch)


# ------------------------------------------------------------------------------------------------------------- passes


def test_many_sessions_take_as_many_passes_as_one() -> None:
    alone, many = (Crowd({"tell me a story": STORY}, max_tokens_per_pass=4096) for _ in range(2))
    (single,), guests = asked(alone, 1), asked(many, 8)
    assert many.run() == alone.run()
    assert {guest.said for guest in guests} == {single.said} == {STORY}
    for guest in guests:
        assert guest.events == single.events, "times included"
        assert [p.output_tokens for p in guest.passes] == [p.output_tokens for p in single.passes]


def test_each_session_answers_its_own_words() -> None:
    crowd = Crowd({f"count to {n}": " ".join(map(str, range(1, n + 1))) for n in range(2, 9)})
    guests = [crowd.guest(policy=SURE) for _ in range(2, 9)]
    for n, guest in enumerate(guests, 2):
        guest.hear(f"count to {n}")
    crowd.run()
    assert [guest.said for guest in guests] == [" ".join(map(str, range(1, n + 1))) for n in range(2, 9)]


@pytest.mark.parametrize("budget", [4, 16, 64, 128])
def test_no_pass_feeds_more_than_the_limit(budget: int) -> None:
    crowd = Crowd({"tell me a story": STORY}, max_tokens_per_pass=budget)
    guests = asked(crowd, 3, history=LONG)
    crowd.run()
    assert max(map(fed, crowd.batches)) == crowd.engine.scheduler.max_tokens == budget
    assert {guest.said for guest in guests} == {STORY}


def test_a_probe_that_is_longer_than_the_limit_raises_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripted.PROBE", replace(scripted.PROBE, tokens=scripted.PROBE.tokens * 50))
    crowd = Crowd({"tell me a story": STORY}, max_tokens_per_pass=16)
    guests = asked(crowd, 3)
    crowd.run()
    assert crowd.engine.scheduler.max_tokens == 100
    assert {guest.said for guest in guests} == {STORY}


def test_a_long_prefill_does_not_stall_the_speech_of_others() -> None:
    crowd = Crowd({"tell me a story": STORY * 3}, max_tokens_per_pass=64)
    speakers = asked(crowd, 4)
    while not all(guest.first(Said) for guest in speakers):
        crowd.tick()
    late = crowd.guest(history=LONG, policy=SURE)
    late.hear("tell me a story")
    said = [len(guest.said) for guest in speakers]
    num_passes = 0
    while late.first(Decided) is None:
        crowd.tick()
        num_passes += 1
        now = [len(guest.said) for guest in speakers]
        assert [b - a for a, b in zip(said, now, strict=True)] == [1, 1, 1, 1], "a token in every pass"
        said = now
    tokens = len(late.session._output.sequence.items)
    assert num_passes <= tokens / (64 - 4) + 6, "what the speakers leave is used"


def test_new_words_are_judged_in_the_next_pass_whatever_else_is_being_fed() -> None:
    crowd = Crowd({"tell me a story": STORY}, max_tokens_per_pass=64)
    speakers = asked(crowd, 2)
    while not all(guest.first(Said) for guest in speakers):
        crowd.tick()
    for _ in range(3):
        crowd.guest(history=LONG)
    crowd.tick(2)
    speakers[0].hear("oh radio talk", "aside")
    judged = sum(isinstance(event, Decided) for event in speakers[0].events)
    crowd.tick(2)
    assert sum(isinstance(event, Decided) for event in speakers[0].events) == judged + 1


def test_long_texts_are_fed_one_after_the_other_in_the_order_they_came() -> None:
    crowd = Crowd(max_tokens_per_pass=64)
    guests = [crowd.guest(history=LONG) for _ in range(4)]
    ended: list[int] = []
    for _ in range(1000):
        if not crowd.tick():
            break
        ended += [i for i, g in enumerate(guests) if i not in ended and not g.session.backlog]
    assert ended == [0, 1, 2, 3]
    assert len(crowd.batches) < 4 * 1700 / 64 + 4
    halfway = guests[3].passes[0].at
    assert halfway == 0.0, "the last one gets a little all the while"


def test_a_long_turn_does_not_wait_for_a_history() -> None:
    crowd = Crowd(max_tokens_per_pass=64)
    history, turn = crowd.guest(history=LONG), crowd.guest()
    crowd.tick()
    assert history.session.backlog > 1000
    turn.hear("and what about the other one that you spoke of before " * 2)
    crowd.tick(3)
    assert turn.first(Decided) is not None
    assert history.session.backlog > 1000


def being_trimmed(crowd: Crowd) -> Guest:
    """A guest whose context is being made shorter."""
    config = SessionConfig(max_length=1024)
    history = [Turn(Role.USER, "well " * 40), Turn(Role.ASSISTANT, "so " * 90)]
    guest = crowd.guest(history=history, config=config, policy=SURE)
    for number in range(9):
        guest.hear("tell me a story", f"q{number}")
        while not guest.session.compaction_backlog and crowd.tick():
            pass
        if guest.session.compaction_backlog:
            break
    assert guest.session.compaction_backlog > 200
    return guest


def test_making_contexts_shorter_takes_half_of_a_pass_while_somebody_speaks() -> None:
    crowd = Crowd({"tell me a story": STORY}, max_tokens_per_pass=64)
    guests = [being_trimmed(crowd) for _ in range(2)]
    (speaker,) = asked(crowd, 1)
    while not speaker.first(Said):
        crowd.tick()
    del crowd.batches[:]
    begun = speaker.session.running.num_tokens  # type: ignore[union-attr]
    crowd.tick(5)
    assert speaker.session.running.num_tokens == begun + 5  # type: ignore[union-attr]
    assert [fed(batch) for batch in crowd.batches] == [1 + 64 // 2] * 5
    left = sorted(guest.session.compaction_backlog for guest in guests)
    assert left[1] - left[0] > 100, "one after the other"
    speaker.hear("oh radio talk", "aside")
    crowd.tick()
    assert [e.text for e in speaker.events if isinstance(e, Decided)][-1] == "oh radio talk"
    crowd.run()
    assert all(guest.first(Trimmed) for guest in guests)


def test_words_come_before_contexts_that_are_made_shorter_but_not_for_ever() -> None:
    crowd = Crowd({"tell me a story": STORY}, max_tokens_per_pass=64)
    guest, hearer = being_trimmed(crowd), crowd.guest()
    for number in range(10):
        wanted = guest.session.compaction_backlog
        hearer.hear(f"aside {number} radio talk", f"aside{number}")
        crowd.tick()
        assert wanted - guest.session.compaction_backlog == (64 // 4 if number % 4 == 3 else 0), number
    decided = [e.text for e in hearer.events if isinstance(e, Decided)]
    assert decided == [f"aside {number} radio talk" for number in range(10)]


def test_contexts_are_made_shorter_in_whole_passes_while_all_are_silent() -> None:
    crowd = Crowd({"tell me a story": STORY}, max_tokens_per_pass=64)
    guest = being_trimmed(crowd)
    wanted = guest.session.compaction_backlog
    del crowd.batches[:]
    crowd.run()
    assert guest.first(Trimmed)
    assert len(crowd.batches) == -(-wanted // 64)


def test_passes_that_take_too_long_are_made_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd({"tell me a story": STORY}, max_tokens_per_pass=128, max_seconds_per_pass=0.25)
    clock, forward, cost = [0.0], crowd.backend.forward, [0.005]

    def slow(batch: Sequence[Extend]) -> list[Step]:
        clock[0] += cost[0] * fed(batch)
        return forward(batch)

    crowd.backend.forward = slow  # type: ignore[method-assign]
    monkeypatch.setattr("duologue.engine.forward_pass.time.perf_counter", lambda: clock[0])
    asked(crowd, 2)
    crowd.guest(history=LONG)
    crowd.tick(12)
    assert fed(crowd.batches[0]) > 100, "it is not known before"
    assert [fed(batch) for batch in crowd.batches[-4:]] == [50] * 4
    cost[0] = 0.05
    crowd.guest(history=LONG)
    crowd.tick(8)
    assert fed(crowd.batches[-1]) == 32, "never narrower than that"
    cost[0] = 0.0001
    crowd.tick(12)
    assert fed(crowd.batches[-1]) == 128


def test_passes_are_not_made_narrower_than_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd({"tell me a story": STORY}, max_tokens_per_pass=128, max_seconds_per_pass=0.25)
    clock, forward = [0.0], crowd.backend.forward

    def slow(batch: Sequence[Extend]) -> list[Step]:
        clock[0] += 0.5 + 0.005 * fed(batch)
        return forward(batch)

    crowd.backend.forward = slow  # type: ignore[method-assign]
    monkeypatch.setattr("duologue.engine.forward_pass.time.perf_counter", lambda: clock[0])
    asked(crowd, 2)
    crowd.tick(12)
    crowd.guest(history=LONG)
    del crowd.batches[:]
    crowd.tick(4)
    assert [fed(batch) for batch in crowd.batches[1:]] == [100] * 3, "half of the time of a pass is for its tokens"


def test_a_slow_pass_is_never_too_narrow_for_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd({"tell me a story": STORY}, max_tokens_per_pass=128, max_seconds_per_pass=0.001)
    clock, forward = [0.0], crowd.backend.forward

    def slow(batch: Sequence[Extend]) -> list[Step]:
        clock[0] += fed(batch)
        return forward(batch)

    crowd.backend.forward = slow  # type: ignore[method-assign]
    monkeypatch.setattr("duologue.engine.forward_pass.time.perf_counter", lambda: clock[0])
    probe = replace(scripted.PROBE, tokens=scripted.PROBE.tokens * 50)
    talk = Guest(crowd, Session(crowd.script.template, probe, policy=SURE), None)
    crowd.guest(history=LONG)
    crowd.tick(40)
    assert fed(crowd.batches[-1]) <= 2 * len(probe.tokens)
    talk.hear("tell me a story")
    crowd.tick(12)
    assert talk.first(Decided)


def test_who_finds_no_room_and_has_nothing_to_give_up_waits_while_the_others_go_on() -> None:
    crowd = Crowd({"tell me a story": STORY, "hello": "Hi."}, capacity=250, overcommit=1e9)
    (speaker,) = asked(crowd, 1)
    while speaker.session.running is None or crowd.backend.usage().kv_entries < 225:
        crowd.tick()
    late = crowd.guest(policy=SURE)
    late.hear("hello")
    for _ in range(12):
        crowd.tick()
        assert late.failure is None
    assert not late.said, "there is no room for it"
    speaker.told(speaker.session.edit([]))
    late.hear("hello", "again")
    crowd.run()
    assert late.said == "Hi."


def test_a_shorter_context_that_words_wait_for_is_as_urgent_as_the_words() -> None:
    crowd = Crowd({"tell me a story": STORY}, max_tokens_per_pass=64)
    guest = being_trimmed(crowd)
    asked(crowd, 1)
    crowd.tick(3)
    guest.hear("well " * 45)  # more than the old context has room for
    crowd.tick()
    assert guest.session.compaction_backlog == 0
    assert guest.session.backlog > 100
    wanted = guest.session.backlog
    crowd.tick(2 + wanted // 60)
    assert guest.first(Trimmed)


def test_a_long_text_comes_first_when_it_has_waited_long_enough() -> None:
    crowd = Crowd({"tell me a story": STORY * 9}, max_tokens_per_pass=8)
    asked(crowd, 12)  # more speakers than a pass has tokens
    crowd.tick(60)
    late = crowd.guest(history=LONG)
    before = late.session.backlog
    crowd.tick(100)
    assert late.session.backlog <= before - 100, "it is not starved"


def test_speakers_take_turns_when_a_pass_cannot_take_all() -> None:
    crowd = Crowd({"tell me a story": STORY * 9}, max_tokens_per_pass=8)
    guests = asked(crowd, 24)
    crowd.tick(400)
    before = [len(guest.said) for guest in guests]
    crowd.tick(300)
    progress = [len(guest.said) - b for guest, b in zip(guests, before, strict=True)]
    assert min(progress) >= 99
    assert max(progress) <= 101


def test_what_is_cut_by_the_limit_changes_no_answer() -> None:
    wide, narrow = Crowd({"tell me a story": STORY}), Crowd({"tell me a story": STORY}, max_tokens_per_pass=3)
    for crowd in (wide, narrow):
        guests = asked(crowd, 3, history=LONG)
        for i in range(3):
            crowd.run()
            for guest in guests:
                guest.hear(f"and then {i}", f"v{i}")
        crowd.run()
    turns = [[handle.session.history for handle in crowd.engine.handles] for crowd in (wide, narrow)]
    assert turns[0] == turns[1]
    assert len(turns[0][0]) == len(LONG) + 8


# --------------------------------------------------------------------------------------------------------------- time


def test_waits_go_by_the_clock_that_is_handed_in() -> None:
    crowd = Crowd({"what is a duck": "A bird."}, tick_s=0.0)
    crowd.now = 1000.0
    guest = crowd.guest()
    guest.hear("what is a duck", final=False)
    crowd.run()
    assert guest.first(Released) is None
    due = crowd.engine.due()
    assert due == pytest.approx(1000.6)
    crowd.now = due
    crowd.run()
    assert guest.first(Released).at == pytest.approx(0.6), "the session's time begins when it comes in"
    assert guest.said == "A bird."


def test_a_pace_is_kept_by_the_same_clock() -> None:
    config = SessionConfig(heard="reported")
    crowd = Crowd({"what is a duck": "A bird of the water with a bill."}, tick_s=0.0)
    guest = crowd.guest(config=config, policy=SURE, rate=2.0)
    guest.hear("what is a duck")
    while guest.first(Committed) is None:
        crowd.run()
        crowd.now += 0.05
    assert guest.first(Committed).at - guest.first(Released).at == pytest.approx(32 / 12, abs=0.11)


# ----------------------------------------------------------------------------------------------- admission and eviction


def test_sessions_are_refused_when_their_contexts_would_not_fit() -> None:
    crowd = Crowd(capacity=1100)
    config = SessionConfig(max_length=512)
    first, _ = crowd.guest(config=config), crowd.guest(config=config)
    with pytest.raises(EngineFull, match=r"2 sessions are open.*1024 of 1100 KV entries.*needs 512"):
        crowd.guest(config=config)
    assert crowd.engine.totals.refused == 1
    first.handle.close()
    crowd.guest(config=config)


def test_sessions_are_refused_when_there_are_no_sequences_for_them() -> None:
    crowd = Crowd(max_seqs=7)
    crowd.guest(), crowd.guest()
    with pytest.raises(EngineFull, match="8 sequences of 7"):
        crowd.guest()


def test_an_operator_may_promise_more_than_there_is() -> None:
    crowd = Crowd(capacity=600, overcommit=3.0)
    for _ in range(3):
        crowd.guest(config=SessionConfig(max_length=512))
    with pytest.raises(EngineFull):
        crowd.guest(config=SessionConfig(max_length=512))


def test_one_session_is_always_let_in() -> None:
    crowd = Crowd({"hello": "Hi."}, capacity=300, max_seqs=3)
    guest = crowd.guest(policy=SURE)
    guest.hear("hello")
    crowd.run()
    assert guest.said == "Hi."


def test_what_cannot_be_let_in_says_why() -> None:
    crowd = Crowd()
    guest = crowd.guest()
    with pytest.raises(UsageError, match="open already"):
        crowd.engine.open(guest.session)
    with pytest.raises(ContextOverflow, match="max_length=65536"):
        crowd.guest(config=SessionConfig(max_length=1 << 17))
    for options in ({"max_tokens_per_pass": 0}, {"overcommit": 0.0}):
        with pytest.raises(UsageError):
            Engine(crowd.backend, **options)  # type: ignore[arg-type]


REPORTED = SessionConfig(heard="reported")


def listen(crowd: Crowd, guest: Guest, events: Sequence[Event] = ()) -> str:
    """Hear a guest's answer to its end. Returns what was said from now on, with what a command has led to."""
    first = len(guest.events)
    guest.told(list(events))
    while crowd.run() or guest.session.running is not None:
        if guest.session.running is not None:
            guest.told(guest.session.heard(guest.session.running.num_said))
    return "".join(event.text for event in guest.events[first:] if isinstance(event, Said))


def crowded(capacity: int, *, talks_on: bool) -> tuple[Crowd, Guest, str]:
    """A guest with an answer that was cut, and one who needs the room. Returns the first, and what was heard of it."""
    crowd = Crowd({"tell me a story": STORY, "so": "Yes."}, capacity=capacity, overcommit=1e9)
    (first,) = asked(crowd, 1, config=REPORTED)
    crowd.run()
    first.told(first.session.heard(20))
    crowd.run()
    first.told(first.session.stop())
    if talks_on:
        first.hear("so")
        listen(crowd, first)
    (second,) = asked(crowd, 1)
    crowd.run()
    assert second.said == STORY
    assert second.session.running is None, "heard to the end, and not cut"
    return crowd, first, first.first(Suspended).heard


@pytest.mark.parametrize("talks_on", [False, True])
def test_a_suspended_answer_gives_way_to_a_live_one_and_is_resumed_all_the_same(talks_on: bool) -> None:
    roomy, first, heard = crowded(1 << 20, talks_on=talks_on)
    peak = roomy.backend.usage().kv_entries
    expected = listen(roomy, first, first.session.resume())
    crowd, first, _ = crowded(peak - 10, talks_on=talks_on)
    assert crowd.engine.totals.evicted == 1
    assert roomy.engine.totals.evicted == 0
    assert first.session.num_suspended == 1
    crowd.engine.handles[1].close()
    assert listen(crowd, first, first.session.resume()) == expected
    assert first.first(Resumed).exact != talks_on
    if not talks_on:
        assert heard + expected == STORY


def test_evicted_answers_are_those_of_the_session_that_was_quiet_longest() -> None:
    crowd = Crowd({"tell me a story": STORY}, overcommit=1e9)
    guests = asked(crowd, 3, config=REPORTED)
    crowd.run()
    for guest in guests:
        guest.told(guest.session.heard(20))
        guest.told(guest.session.stop())
        crowd.run()
    guests[0].hear("hm radio talk", "aside")
    crowd.run()
    suspended = [guest.session._output.suspended[0] for guest in guests]
    for expected in ([False, True, False], [False, True, True], [True, True, True]):
        assert crowd.engine._evict(CacheFull("full"))
        assert [cut.is_evicted for cut in suspended] == expected
    assert not crowd.engine._evict(CacheFull("full"))


def test_a_session_that_needs_more_than_there_is_gives_way_itself() -> None:
    crowd = Crowd({"tell me a story": STORY, "more": STORY * 4}, capacity=760, overcommit=1e9)
    calm, greedy = asked(crowd, 2)
    crowd.run()
    greedy.hear("more", "m")
    crowd.run()
    assert calm.said == STORY
    assert calm.failure is greedy.failure is None
    assert greedy.session.running is None, "its answer was cut, or its history was"


def test_a_fork_for_which_there_is_no_sequence_takes_that_of_a_suspended_answer() -> None:
    crowd = Crowd({"tell me a story": STORY}, max_seqs=6)
    (first,) = asked(crowd, 1, config=REPORTED)
    crowd.run()
    first.told(first.session.heard(20))
    first.told(first.session.stop())  # live branch, and what was cut
    crowd.run()
    others = asked(crowd, 1)
    extra = [crowd.backend.fork(None) for _ in range(6 - crowd.backend.usage().num_seqs)]
    crowd.backend.free(extra.pop())
    crowd.run()
    assert others[0].said == STORY
    assert crowd.engine.totals.evicted == 1


def test_while_there_is_no_room_for_a_long_text_the_others_go_on() -> None:
    crowd = Crowd({"tell me a story": STORY}, capacity=600, overcommit=1e9)
    speakers = asked(crowd, 2)
    while not all(guest.first(Said) for guest in speakers):
        crowd.tick()
    crowd.guest(history=LONG[:2])  # 800 tokens, for which there will never be room
    said = [len(guest.said) for guest in speakers]
    for _ in range(20):
        crowd.tick()
        now = [len(guest.said) for guest in speakers]
        assert [b - a for a, b in zip(said, now, strict=True)] == [1, 1]
        said = now


def test_an_answer_that_is_ahead_of_its_listener_does_not_count_as_waiting() -> None:
    crowd = Crowd({"tell me a story": STORY})
    (guest,) = asked(crowd, 1, config=REPORTED)
    crowd.run()
    assert not guest.session.running.finished  # type: ignore[union-attr]
    assert guest.session.backlog == 0
    assert guest.handle.waiting_since is None


def test_answers_that_are_ahead_of_their_listeners_share_passes() -> None:
    crowd = Crowd({"tell me a story": STORY})
    first, second = asked(crowd, 2, config=REPORTED)
    crowd.run()
    enough = REPORTED.lookahead // 2 + 1
    assert [guest.session.running.num_tokens for guest in (first, second)] == [enough] * 2  # type: ignore[union-attr]
    first.told(first.session.heard(10))
    del crowd.batches[:]
    assert crowd.run() == 10
    assert {len(batch) for batch in crowd.batches} == {2}, "the second has gone along"
    second.told(second.session.heard(10))
    assert crowd.run() == 0, "it is well ahead still"
    assert crowd.engine.due() == pytest.approx(crowd.now - crowd.tick_s + MAX_WAIT_S)
    while (due := crowd.engine.due()) is not None:
        crowd.now = due
        assert crowd.run() == 1
    made = [guest.session.running.num_tokens for guest in (first, second)]  # type: ignore[union-attr]
    assert made == [10 + REPORTED.lookahead] * 2, "in the end they are as far ahead as they may be"


def test_answers_that_are_ahead_of_their_listeners_leave_passes_with_words_alone() -> None:
    crowd = Crowd({"tell me a story": STORY}, tick_s=MAX_WAIT_S / 7.5)
    speaker, listener = asked(crowd, 1, config=REPORTED)[0], crowd.guest()
    crowd.run()
    speaker.told(speaker.session.heard(1))
    del crowd.batches[:]
    for number in range(24):
        listener.hear("and so " * (number + 1), final=False)
        crowd.tick()
    assert len(crowd.batches) == 24
    along = [number for number, batch in enumerate(crowd.batches) if len(batch) == 2]
    assert len(along) == 4, "now and then"
    assert {later - earlier for earlier, later in pairwise(along)} == {7, 8}


# ---------------------------------------------------------------------------------------------------------- failures


def test_a_sink_that_raises_is_the_end_of_its_session_alone() -> None:
    crowd = Crowd({"tell me a story": STORY})
    bad, good = asked(crowd, 2)

    def broken(record: Pass | Event) -> None:
        raise OSError("the disk is full")

    bad.handle._sink = broken
    crowd.run()
    assert good.said == STORY
    assert isinstance(bad.failure, EngineError)
    assert "the disk is full" in str(bad.failure)
    assert crowd.engine.handles == (good.handle,)
    good.handle.close()
    assert crowd.backend.usage().num_seqs == 0


@pytest.mark.parametrize("method", ["plan", "take", "advance"])
def test_a_session_that_raises_ends_alone(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd({"tell me a story": STORY})
    bad, good = asked(crowd, 2)
    crowd.tick(30)

    def broken(*_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(bad.session, method, broken)
    crowd.run()
    assert good.said == STORY
    assert isinstance(bad.failure, EngineError)
    assert isinstance(bad.failure.__cause__, KeyError)
    crowd.engine.close()
    assert crowd.backend.usage().num_seqs == 0


def failing(crowd: Crowd, offends: Callable[[Extend], bool], error: Exception) -> None:
    """The backend refuses every pass that has such an `Extend`."""
    forward = crowd.backend.forward

    def refuse(batch: Sequence[Extend]) -> list[Step]:
        if any(map(offends, batch)):
            raise error
        return forward(batch)

    crowd.backend.forward = refuse  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [RuntimeError("a bad tensor"), UsageError("a bad id")])
def test_a_pass_that_fails_is_made_without_the_one_it_fails_for(error: Exception) -> None:
    crowd = Crowd({"tell me a story": STORY})
    guests = asked(crowd, 4)
    crowd.tick(40)
    offender = set(guests[1].handle.sequences.seqs.values())
    failing(crowd, lambda extend: extend.seq in offender, error)
    crowd.run()
    assert [guest.said == STORY for guest in guests] == [True, False, True, True]
    assert [guest.failure is None for guest in guests] == [True, False, True, True]
    assert str(error) in str(guests[1].failure)


def test_when_the_backend_is_broken_everybody_is_told() -> None:
    crowd = Crowd({"tell me a story": STORY})
    guests = asked(crowd, 4)
    crowd.tick(40)
    failing(crowd, lambda extend: True, RuntimeError("out of order"))
    crowd.run()
    assert all("out of order" in str(guest.failure) for guest in guests)
    assert crowd.engine.handles == ()
    assert crowd.backend.usage().num_seqs == 0


def test_a_session_can_go_at_any_moment_and_leaves_nothing() -> None:
    for moment in range(60):
        crowd = Crowd({"tell me a story": STORY})
        leaving, staying = asked(crowd, 2)
        crowd.tick(moment // 2)
        if moment % 7 == 3:
            leaving.hear("and why is that", "v", final=False)
        if moment % 2:
            forward_pass = crowd.engine.plan()
            assert forward_pass is not None
            leaving.handle.close()
            assert leaving.handle.sequences.seqs or not moment // 2, "the pass still needs them"
            forward_pass.run()
            crowd.engine.take(forward_pass)
        else:
            leaving.handle.close()
        assert not leaving.handle.sequences.seqs
        num_events = len(leaving.events)
        crowd.run()
        assert len(leaving.events) == num_events
        assert staying.said == STORY
        staying.handle.close()
        assert crowd.backend.usage().kv_entries == crowd.backend.usage().num_seqs == 0


def test_sessions_that_come_and_go_leave_nothing() -> None:
    crowd = Crowd({"tell me a story": STORY})
    asked(crowd, 1)
    crowd.run()
    held = crowd.backend.usage()
    for number in range(size(300, 10_000)):
        other = crowd.guest(policy=SURE)
        other.hear("tell me a story")
        crowd.tick(number % 23)
        other.handle.close()
        crowd.batches.clear()
    assert crowd.backend.usage() == held
    assert len(crowd.engine.handles) == 1
