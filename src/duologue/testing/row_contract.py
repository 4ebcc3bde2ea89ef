"""The contract of `Backend.embed` as functions that every backend with an `embedding_width` must pass. For tests.

The embedding rows of known tokens are fed in their place, so that nothing may differ. `as_rows` does this for a whole
subject, which then has to keep the rest of the contract (`duologue.testing.contract`) as well.
"""

import gc
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeAlias

from duologue.core.backend import Backend, BackendInfo, Draw, Extend, Step, Usage
from duologue.errors import CacheFull, ContextOverflow, UsageError
from duologue.testing.contract import (
    OTHER,
    PREFIX,
    WATCH,
    WORDS,
    Subject,
    ids,
    probe_of,
    refuses,
    require_equal,
    states_of,
)
from duologue.types import Seq, Token, VirtualId

RowsOf: TypeAlias = Callable[[Sequence[Token]], Any]
"""The embedding rows of base ids: a NumPy array [N, D] of float32."""

IsRow: TypeAlias = Callable[[Token], bool]
"""Whether a base id is fed as a row."""


class AsRows(Backend):
    """Passes everything on to `backend`, and feeds those base ids as embedding rows for which `is_row` holds."""

    def __init__(self, backend: Backend, rows_of: RowsOf, is_row: IsRow) -> None:
        self.backend = backend
        self._rows_of = rows_of
        self._is_row = is_row

    @property
    def info(self) -> BackendInfo:
        return self.backend.info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self.backend.fork(parent, length)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        return self.backend.forward([replace(extend, tokens=self._replaced(extend.tokens)) for extend in batch])

    def truncate(self, seq: Seq, length: int) -> None:
        self.backend.truncate(seq, length)

    def free(self, seq: Seq) -> None:
        self.backend.free(seq)

    def length(self, seq: Seq) -> int:
        return self.backend.length(seq)

    def usage(self) -> Usage:
        return self.backend.usage()

    def close(self) -> None:
        self.backend.close()

    def _replaced(self, tokens: Sequence[Token]) -> tuple[Token, ...]:
        base = [token for token in tokens if 0 <= token < self.info.vocab_size and self._is_row(token)]
        rows = iter(self.backend.embed(self._rows_of(base)) if base else ())
        return tuple(
            next(rows) if 0 <= token < self.info.vocab_size and self._is_row(token) else token for token in tokens
        )


def every_second(token: Token) -> bool:
    """An `IsRow`: about half of all ids."""
    return token % 2 == 1


def as_rows(subject: Subject, rows_of: RowsOf, is_row: IsRow = every_second) -> Subject:
    """The same subject, except that base ids are fed as their embedding rows where `is_row` holds."""
    counted = subject.num_passes

    def opener(**limits: int) -> Backend:
        return AsRows(subject.opener(**limits), rows_of, is_row)

    def passes(backend: Backend) -> int:
        assert isinstance(backend, AsRows), "it was opened here"
        assert counted is not None, "checked below"
        return counted(backend.backend)

    return replace(subject, opener=opener, num_passes=None if counted is None else passes)


def check_rows_equal_tokens(subject: Subject, rows_of: RowsOf) -> None:
    """Fed as tokens, as embedding rows or mixed, a conversation has the same results, bit for bit.

    Sequences are forked, extended beside each other, probed, rolled back, freed, promoted, drawn from and scored.
    """
    results = []
    for is_row in (lambda _: False, lambda _: True, every_second):
        with subject.open() as backend:
            results.append(_conversation(AsRows(backend, rows_of, is_row)))
    require_equal(results[1], results[0], "results with rows instead of tokens")
    require_equal(results[2], results[0], "results with rows among tokens")


def _conversation(backend: Backend) -> list[Step]:
    probe, states = probe_of(backend), states_of(backend)
    output = backend.fork(None)
    steps = backend.forward([Extend(output, PREFIX, draw=Draw(num_alternatives=3))])
    dropped = backend.fork(output, len(PREFIX) - 3)
    for index, forced in enumerate(WORDS):
        words = Extend(dropped, OTHER[: 1 + index % 3] + probe, watch=(states or WATCH[0],))
        steps += backend.forward([Extend(output, (forced,), draw=Draw()), words])
        backend.truncate(dropped, backend.length(dropped) - len(probe) - index % 2)
    backend.free(dropped)
    promoted = backend.fork(output, len(PREFIX) + 2)
    steps += backend.forward([Extend(output, OTHER[:1], draw=Draw()), Extend(promoted, WORDS, watch=WATCH)])
    backend.free(output)
    steps += backend.forward([Extend(promoted, OTHER[:2], draw=Draw())])
    steps += backend.forward([Extend(promoted, WORDS[:4], score=OTHER[:4])])
    return steps


def check_ids_name_rows(subject: Subject, rows_of: RowsOf) -> None:
    """The same row has the same id, another row another one, and no id is one of the model's."""
    with subject.open() as backend:
        made = backend.embed(rows_of(PREFIX))
        info = backend.info
        require_equal(len(made), len(PREFIX), "number of ids")
        require_equal(min(made) >= info.vocab_size + info.num_added, True, "ids are above those of the model")
        require_equal([token.width for token in made], [info.embedding_width] * len(made), "widths")
        again = dict(zip(PREFIX[::-1], backend.embed(rows_of(PREFIX[::-1])), strict=True))
        require_equal([again[token] for token in PREFIX], list(made), "ids of the same rows")
        require_equal(len(set(made)), len(set(PREFIX)), "ids of different rows")
        require_equal(backend.usage(), Usage(0, 0, 0), "what is held before anything is fed")


def check_illegal_rows_change_nothing(subject: Subject, rows_of: RowsOf) -> None:
    """Rows and ids that do not fit raise, and have no effect on later calls."""
    with subject.begun() as (backend, seq):
        width = backend.info.embedding_width
        (fitting,) = backend.embed(rows_of(PREFIX[:1]))
        for rows in _wrong_rows(width):
            refuses(UsageError, lambda rows=rows: backend.embed(rows))  # type: ignore[misc]
        good = Extend(backend.fork(seq, 5), WORDS)
        other = VirtualId(bytes(4 * (width + 1)))
        wrong = (
            Extend(seq, (5, other)),
            Extend(seq, (int(fitting),)),
            Extend(seq, (5,), watch=((3, fitting),)),
            Extend(seq, (5, fitting), score=(fitting,)),
        )
        before = backend.usage(), backend.length(seq)
        for extend in wrong:
            refuses(UsageError, lambda extend=extend: backend.forward([good, extend]))  # type: ignore[misc]
            require_equal((backend.usage(), backend.length(seq)), before, "state after a refused call")
        subject.require_fresh(backend, seq, PREFIX, WORDS, "after refused rows")


def _wrong_rows(width: int) -> list[object]:
    """What is not an array [N, D] of finite float32."""
    shape = (2, width)

    def filled(kind: str, value: float, *shape: int) -> object:
        number = int(value) if kind == "i" else value
        count = 1
        for size in shape:
            count *= size
        return memoryview(array(kind, [number] * count)).cast("B").cast(kind, shape)  # type: ignore[call-overload]

    return [
        [[0.0] * width],
        None,
        b"rows",
        filled("f", 0.0, 2, width + 1),
        filled("f", 0.0, width),
        filled("f", 0.0, 1, 2, width),
        filled("d", 0.0, *shape),
        filled("i", 0.0, *shape),
        filled("f", float("nan"), *shape),
        filled("f", float("inf"), *shape),
        filled("f", float("-inf"), *shape),
    ]


def check_nothing_is_left(subject: Subject, rows_of: RowsOf, *, num_operations: int) -> None:
    """After so many random operations with embedding rows, all memory is free, and no row is alive."""
    random, held = Random(0), dict[Seq, list[Token]]()
    alive = num_alive()
    with subject.open() as backend:
        for _ in range(num_operations):
            _operate(backend, rows_of, random, held)
        for seq, tokens in held.items():
            require_equal(backend.length(seq), len(tokens), f"length of sequence {seq}")
        while len(held) > 1:
            backend.free(held.popitem()[0])
        (seq, tokens) = held.popitem() if held else (backend.fork(None), [])
        backend.truncate(seq, min(len(tokens), 20))
        subject.require_fresh(backend, seq, tokens[:20], WORDS, "after all these operations")
        backend.free(seq)
        require_equal(backend.usage(), Usage(0, 0, 0), "what is held when all is free")
    del tokens
    require_equal(num_alive(), alive, "embedding rows that are alive")


def _operate(backend: Backend, rows_of: RowsOf, random: Random, held: dict[Seq, list[Token]]) -> None:
    """One random operation. `held`: what every open sequence holds."""
    roll, seq = random.random(), random.choice(list(held)) if held else None
    if seq is None or (roll < 0.2 and len(held) < 5):
        length = 0 if seq is None else random.randint(0, len(held[seq]))
        try:
            child = backend.fork(seq, length)
        except CacheFull:  # one of several caches
            return
        held[child] = [] if seq is None else held[seq][:length]
    elif roll < 0.6:
        base = ids(random.randrange(50), random.randint(1, 12))
        rows = backend.embed(rows_of(base))
        mixed = tuple(random.choice(pair) for pair in zip(base, rows, strict=True))
        try:
            backend.forward([Extend(seq, mixed)])
            held[seq] += mixed
        except (CacheFull, ContextOverflow):
            backend.free(seq)
            del held[seq]
    elif roll < 0.85:
        length = random.randint(0, len(held[seq]))
        backend.truncate(seq, length)
        del held[seq][length:]
    else:
        backend.free(seq)
        del held[seq]


def num_alive() -> int:
    """The number of virtual ids that anything in this process holds, and so of their rows."""
    return sum(type(one) is VirtualId for one in gc.get_objects())


ROW_CHECKS: tuple[Callable[[Subject, RowsOf], None], ...] = (
    check_rows_equal_tokens,
    check_ids_name_rows,
    check_illegal_rows_change_nothing,
)
