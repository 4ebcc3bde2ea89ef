"""What is planned is carried out once and in order, also where there is no room at first."""

import pytest

from duologue.backends.scripted import ScriptedBackend
from duologue.core.backend import Extend
from duologue.core.cache import Fork, Free, Truncate
from duologue.engine.sequence_map import SequenceMap
from duologue.errors import CacheFull, EngineError


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(lambda ids: 1, lambda ids: (1.0,), vocab_size=8, max_seqs=2)


def test_a_sequence_that_is_not_needed_makes_room_for_one_planned_before(backend: ScriptedBackend) -> None:
    sequences = SequenceMap(backend)
    sequences.apply([Fork(1, None, 0), Fork(2, None, 0)])
    backend.forward(sequences.renamed([Extend(2, (5, 6))]))
    sequences.apply([Fork(3, 2, 1), Free(1)])
    assert backend.tokens(sequences.seqs[3]) == [5]
    assert set(sequences.seqs) == {2, 3}


def test_what_finds_no_room_waits_and_is_carried_out_later(backend: ScriptedBackend) -> None:
    sequences, other = SequenceMap(backend), SequenceMap(backend)
    other.apply([Fork(1, None, 0)])
    sequences.apply([Fork(1, None, 0)])
    backend.forward(sequences.renamed([Extend(1, (5, 6))]))
    with pytest.raises(CacheFull):
        sequences.apply([Fork(2, 1, 2), Truncate(1, 1), Free(1)])  # 1 is needed, so it cannot be freed before
    assert sequences.is_behind
    assert backend.tokens(sequences.seqs[1]) == [5, 6]
    other.free_all()
    sequences.apply([])
    assert not sequences.is_behind
    assert {seq: backend.tokens(name) for seq, name in sequences.seqs.items()} == {2: [5, 6]}


def test_what_is_left_is_freed_whatever_waits(backend: ScriptedBackend) -> None:
    sequences = SequenceMap(backend)
    with pytest.raises(CacheFull):
        sequences.apply([Fork(1, None, 0), Fork(2, None, 0), Fork(3, None, 0)])
    sequences.free_all()
    assert backend.usage().num_seqs == 0
    assert not sequences.is_behind


def test_a_failure_of_the_library_is_put_into_words(backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("oh")

    sequences = SequenceMap(backend)
    sequences.apply([Fork(1, None, 0)])
    monkeypatch.setattr(backend, "free", broken)
    with pytest.raises(EngineError, match="the scripted backend failed: RuntimeError: oh"):
        sequences.free_all()
