"""Several caches as one backend: the contract, placement of sequences, caches that fill up or fail independently."""

from collections.abc import Callable, Sequence

import pytest
import torch

from crowd import Crowd, Guest
from duologue.backends.llamacpp.multi_cache import MultiCacheBackend
from duologue.backends.reference import ReferenceBackend
from duologue.core.backend import Backend, Extend, Step, Usage, num_passes
from duologue.core.config import SessionConfig
from duologue.core.events import Decided, Finished, Said
from duologue.core.policy import Policy
from duologue.errors import CacheFull, EngineError, UnknownSeq, UsageError
from duologue.testing.contract import CHECKS, WATCH, Subject, check_one_pass_whatever_the_number_of_channels, ids
from duologue.testing.random_walk import check_random_operations
from duologue.testing.tiny_models import tiny_model, tiny_rows
from duologue.types import Role, Turn

torch.set_num_threads(1)

SURE = Policy(p_sure=0.5)
STORY = "Once there was a word, and then came many more of them, until it was late and all went home. " * 3


def opened(number: int = 2, **limits: int) -> MultiCacheBackend:
    """A backend with this many caches of a tiny model, each with `limits`."""
    model = tiny_model("llama")
    limits = {"capacity": 64, "max_seqs": 4, "context_length": 48} | limits
    return MultiCacheBackend([ReferenceBackend(model, rows=tiny_rows(), **limits) for _ in range(number)])


def cache_of(backend: Backend, seq: int) -> int:
    """The number of the cache that holds a sequence."""
    return backend._places[seq].cache  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("check", [*CHECKS, check_one_pass_whatever_the_number_of_channels], ids=lambda c: c.__name__)
def test_the_contract_is_kept(number: int, check: Callable[[Subject], None]) -> None:
    passes: list[int] = []

    class Counted(ReferenceBackend):
        def forward(self, batch: Sequence[Extend]) -> list[Step]:
            steps = super().forward(batch)
            passes.append(len(batch))
            return steps

    def opener(**limits: int) -> Backend:
        return MultiCacheBackend([Counted(tiny_model("llama"), rows=tiny_rows(), **limits) for _ in range(number)])

    check(Subject(opener, num_passes=lambda _: len(passes)))


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_agree_with_one_cache(seed: int) -> None:
    def opener(**limits: int) -> Backend:
        tight = {**limits, "capacity": 96, "max_seqs": 4}
        return MultiCacheBackend([ReferenceBackend(tiny_model("llama"), rows=tiny_rows(), **tight) for _ in range(3)])

    twin = ReferenceBackend(tiny_model("llama"), rows=tiny_rows())
    check_random_operations(Subject(opener), twin, seed=seed, num_operations=150)


def test_sizes_and_usage_add_up() -> None:
    backend = opened(3)
    assert (backend.info.capacity, backend.info.max_seqs, backend.info.num_caches) == (192, 12, 3)
    assert backend.info.context_length == 48
    seqs = [backend.fork(None) for _ in range(3)]
    backend.forward([Extend(seq, ids(n, 3 + n)) for n, seq in enumerate(seqs)])
    assert backend.usage() == Usage(3, 12, 12 * backend.info.kv_bytes_per_token)


def test_a_pass_is_one_of_each_cache_that_feeds_anything() -> None:
    backend = opened(3)
    seqs = [backend.fork(None) for _ in range(3)]
    extends = [Extend(seq, ids(0, 4)) for seq in seqs]
    assert [num_passes(backend.forward(extends[:n])) for n in (1, 2, 3)] == [1, 2, 3]
    fork = backend.fork(seqs[1], 2)
    assert num_passes(backend.forward([Extend(seqs[1], (5,)), Extend(fork, (6,))])) == 1


# ------------------------------------------------------------------------------------------------ where a sequence lies


def test_an_empty_sequence_starts_in_the_cache_with_the_fewest_conversations() -> None:
    backend = opened(3)
    first = [backend.fork(None) for _ in range(3)]
    assert sorted(cache_of(backend, seq) for seq in first) == [0, 1, 2]
    forks = [backend.fork(first[1]), backend.fork(first[1])]
    assert {cache_of(backend, seq) for seq in forks} == {cache_of(backend, first[1])}
    backend.forward([Extend(first[0], ids(0, 9)), Extend(first[2], ids(1, 8))])
    assert cache_of(backend, backend.fork(None)) == cache_of(backend, first[1]), "its forks are no conversations"
    backend.free(first[2])
    assert cache_of(backend, backend.fork(None)) == 2
    backend.free(first[1])
    assert cache_of(backend, backend.fork(None)) == 2, "of the other, forks are left"


def test_if_a_cache_opens_no_sequence_the_next_one_does() -> None:
    backend = opened(2, max_seqs=2)
    first, second = backend.fork(None), backend.fork(None)
    backend.fork(first)
    with pytest.raises(CacheFull) as full:
        backend.fork(first)
    assert full.value.is_about([first])
    assert not full.value.is_about([second])
    assert cache_of(backend, backend.fork(None)) == cache_of(backend, second)
    with pytest.raises(CacheFull) as full:
        backend.fork(None)
    assert full.value.is_about([first])
    assert full.value.is_about([second])


# ------------------------------------------------------------------------------------------------ full or out of order


def test_a_full_cache_is_named_and_nothing_is_fed_anywhere() -> None:
    backend = opened(2)
    first, second = backend.fork(None), backend.fork(None)
    backend.forward([Extend(first, ids(0, 10)), Extend(second, ids(1, 40))])
    other = backend.fork(second, 10)
    before = backend.usage()
    with pytest.raises(CacheFull, match="30 KV entries in one of 2 caches, and 24 of its 64") as full:
        backend.forward([Extend(first, ids(2, 20)), Extend(other, ids(3, 30))])
    assert full.value.seqs == {second, other}
    assert backend.usage() == before
    backend.forward([Extend(first, ids(2, 20)), Extend(other, ids(3, 24))])


@pytest.mark.parametrize("error", [EngineError("out of order"), CacheFull("no room after all"), KeyboardInterrupt()])
def test_a_failure_in_the_second_cache_changes_nothing_in_the_first(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    backend, calm = opened(2), opened(2)
    for each in (backend, calm):
        each.forward([Extend(each.fork(None), ids(0, 10)), Extend(each.fork(None), ids(1, 12))])
    first, second = sorted(backend._places)
    fork = backend.fork(first, 5)
    batch = [Extend(second, (7,)), Extend(first, ids(2, 6)), Extend(fork, ids(3, 4))]
    for broken in backend._caches:
        before = backend.usage(), backend.length(first), backend.length(second), backend.length(fork)

        def refuse(_: object) -> list[Step]:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(broken, "forward", refuse)
            with pytest.raises(type(error)) as raised:
                backend.forward(batch)
        after = backend.usage(), backend.length(first), backend.length(second), backend.length(fork)
        assert after == before
        if isinstance(raised.value, CacheFull):
            assert raised.value.seqs is not None
            assert raised.value.is_about([first]) == (broken is backend._caches[0])
    extends = [Extend(seq, ids(4, 3), watch=WATCH) for seq in (first, second)]
    assert backend.forward(extends) == calm.forward(extends)


def test_an_illegal_call_names_what_is_wrong() -> None:
    backend = opened(2)
    seq = backend.fork(None)
    with pytest.raises(UsageError, match="occurs twice"):
        backend.forward([Extend(seq, (5,)), Extend(seq, (6,))])
    with pytest.raises(UnknownSeq, match=r"no sequence 99 is open; open ones: \[0\]"):
        backend.forward([Extend(seq, (5,)), Extend(99, (6,))])
    assert backend.length(seq) == 0


# ------------------------------------------------------------------------------------- sessions in more than one cache


def asked(crowd: Crowd, number: int, **options: object) -> list[Guest]:
    """This many guests, each of whom asked for a story."""
    guests = [crowd.guest(policy=SURE, **options) for _ in range(number)]  # type: ignore[arg-type]
    for guest in guests:
        guest.hear("tell me a story")
    return guests


def test_sessions_in_several_caches_behave_as_in_one() -> None:
    one, several = (Crowd({"tell me a story": STORY}, caches=number) for number in (1, 3))
    alike = [asked(crowd, 7) for crowd in (one, several)]
    for crowd in (one, several):
        crowd.run()
    for single, other in zip(*alike, strict=True):
        assert other.events == single.events
        assert [p.num_passes for p in other.passes] == [p.num_passes for p in single.passes], "those of its own cache"
    assert several.engine.totals.tokens == one.engine.totals.tokens
    assert 2 * one.engine.totals.passes < several.engine.totals.passes <= 3 * one.engine.totals.passes
    several.engine.close()
    assert several.backend.usage() == Usage(0, 0, 0)


def neighbours(**options: object) -> tuple[Crowd, Guest, Guest]:
    """Two sessions telling a story, each in a cache of 400 entries."""
    crowd = Crowd({"tell me a story": STORY}, caches=2, capacity=400, overcommit=1e9)
    one, other = asked(crowd, 2, **options)
    while not len(one.said) == len(other.said) == 10:
        crowd.tick()
    return crowd, one, other


def home(crowd: Crowd, guest: Guest) -> int:
    """The cache that holds a guest's sequences."""
    (found,) = {cache_of(crowd.backend, seq) for seq in guest.handle.sequences.seqs.values()}
    return found


def fill(crowd: Crowd, guest: Guest) -> None:
    """Make the cache of `guest` refuse further tokens."""
    seq = crowd.backend.fork(next(iter(guest.handle.sequences.seqs.values())))
    cache = crowd.backend._caches[home(crowd, guest)]  # type: ignore[attr-defined]
    crowd.backend.forward([Extend(seq, (5,) * (400 - cache.usage().kv_entries))])


def test_a_full_cache_delays_no_session_in_another() -> None:
    crowd, one, other = neighbours()
    assert home(crowd, one) != home(crowd, other)
    fill(crowd, one)
    other.hear("oh radio talk", "aside")  # so it has most to feed
    judged = sum(isinstance(event, Decided) for event in other.events)
    crowd.tick()
    assert sum(isinstance(event, Decided) for event in other.events) == judged + 1, "in the very pass"
    crowd.run()
    assert one.first(Finished).reason == "length", "it had nothing else to give up"
    assert other.said == STORY


@pytest.mark.parametrize("is_near", [False, True])
def test_a_suspended_answer_is_released_only_for_sessions_in_its_cache(is_near: bool) -> None:
    crowd, one, other = neighbours(config=SessionConfig(heard="reported"))
    other.told(other.session.heard(10))
    other.told(other.session.stop())
    crowd.run()
    assert other.session.num_suspended == 1
    needy = one
    if is_near:
        one.handle.close()
        silent = [crowd.guest(), crowd.guest()]  # where the first was
        (needy,) = asked(crowd, 1)
        while not needy.first(Said):
            crowd.tick()
        assert {home(crowd, guest) for guest in silent} != {home(crowd, needy)} == {home(crowd, other)}
    fill(crowd, needy)
    needy.told(needy.session.heard(needy.session.running.num_said))  # type: ignore[union-attr]
    crowd.tick(4)
    assert crowd.engine.totals.evicted == is_near
    assert (needy.first(Finished) is None) == is_near


def test_nobody_waits_for_room_that_others_cannot_make(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd, one, other = neighbours()
    other.handle.close()
    late = crowd.guest(history=[Turn(Role.USER, "well " * 40)])
    crowd.tick()
    assert home(crowd, late) != home(crowd, one)
    fill(crowd, late)
    monkeypatch.setattr(late.session, "make_room", lambda full: False)
    crowd.tick(4)
    assert isinstance(late.failure, CacheFull)
    assert crowd.engine.handles == (one.handle,)
