"""What is planned is carried out once and in order, also where there is no room at first."""

import pytest

from duologue.backends.scripted import ScriptedBackend
from duologue.core.backend import Extend
from duologue.core.cache import Fork, Free, Truncate
from duologue.engine.sequence_map import Carrier
from duologue.errors import CacheFull, EngineError


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(lambda ids: 1, lambda ids: (1.0,), vocab_size=8, max_seqs=2)


def test_a_sequence_that_is_not_needed_makes_room_for_one_planned_before(backend: ScriptedBackend) -> None:
    carrier = Carrier(backend)
    carrier.carry_out([Fork(1, None, 0), Fork(2, None, 0)])
    backend.forward(carrier.renamed([Extend(2, (5, 6))]))
    carrier.carry_out([Fork(3, 2, 1), Free(1)])
    assert backend.tokens(carrier.seqs[3]) == [5]
    assert set(carrier.seqs) == {2, 3}


def test_what_finds_no_room_waits_and_is_carried_out_later(backend: ScriptedBackend) -> None:
    carrier, other = Carrier(backend), Carrier(backend)
    other.carry_out([Fork(1, None, 0)])
    carrier.carry_out([Fork(1, None, 0)])
    backend.forward(carrier.renamed([Extend(1, (5, 6))]))
    with pytest.raises(CacheFull):
        carrier.carry_out([Fork(2, 1, 2), Truncate(1, 1), Free(1)])  # 1 is needed, so it cannot be freed before
    assert carrier.is_behind
    assert backend.tokens(carrier.seqs[1]) == [5, 6]
    other.free_all()
    carrier.carry_out([])
    assert not carrier.is_behind
    assert {seq: backend.tokens(name) for seq, name in carrier.seqs.items()} == {2: [5, 6]}


def test_what_is_left_is_freed_whatever_waits(backend: ScriptedBackend) -> None:
    carrier = Carrier(backend)
    with pytest.raises(CacheFull):
        carrier.carry_out([Fork(1, None, 0), Fork(2, None, 0), Fork(3, None, 0)])
    carrier.free_all()
    assert backend.usage().num_seqs == 0
    assert not carrier.is_behind


def test_a_failure_of_the_library_is_put_into_words(backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("oh")

    carrier = Carrier(backend)
    carrier.carry_out([Fork(1, None, 0)])
    monkeypatch.setattr(backend, "free", broken)
    with pytest.raises(EngineError, match="the scripted backend failed: RuntimeError: oh"):
        carrier.free_all()
