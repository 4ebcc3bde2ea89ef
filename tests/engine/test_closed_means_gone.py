"""What is closed is freed at once, without the cycle collector, and many conversations leave nothing behind."""

import asyncio
import gc
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence

import pytest

from duologue.core.backend import Extend, Step
from duologue.core.events import Committed, Said
from duologue.core.policy import Policy
from duologue.core.session import Session
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.errors import DuologueError, UsageError
from scripted import PROBE, Talk
from soak import size

SURE = Policy(p_sure=0.5)
ANSWERS = {"hello": "Hello to you, and to all your friends as well.", "hi": "Hi."}


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Nothing but reference counts frees memory."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Log:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.records: list[object] = []

    def __call__(self, record: object) -> None:
        self.records.append(record)


class Engaged:
    """An engine, and what was open on it."""

    def __init__(self) -> None:
        self.script = Talk(ANSWERS)
        self.script.engine.close()
        self.engine = Engine(self.script.backend)
        self.refs: list[weakref.ref[object]] = []

    def open(self, *, says: str = "hello") -> Handle:
        log = Log()
        session = Session(self.script.template, PROBE, policy=SURE)
        handle = self.engine.open(session, sink=log)
        if says == "hello":
            handle.hear("mhm", utterance="aside", final=True)
        handle.hear(says, final=True)
        assert log.records
        self.refs += [weakref.ref(one) for one in (session, session._output, handle, handle.sequences, log)]
        return handle

    def check(self) -> None:
        """All that was open is gone."""
        assert self.refs
        assert [type(one).__name__ for ref in self.refs if (one := ref()) is not None] == []
        assert self.script.backend.usage().num_seqs == 0


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("num_ticks", [0, 1, 5, 1000])
def test_a_session_is_freed_when_it_is_closed(num_ticks: int) -> None:
    engaged = Engaged()
    handle = engaged.open()
    for _ in range(num_ticks):
        engaged.engine.tick()
    handle.close()
    del handle
    engaged.check()


@pytest.mark.usefixtures("no_gc")
def test_a_session_that_is_closed_during_a_pass_is_freed_after_it() -> None:
    engaged = Engaged()
    handle = engaged.open()
    engaged.engine.tick()
    forward_pass = engaged.engine.plan()
    assert forward_pass is not None
    handle.close()
    forward_pass.run()
    engaged.engine.take(forward_pass)
    del handle, forward_pass
    engaged.check()


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("reads", [False, True])
def test_a_session_is_freed_while_the_engine_runs_on(reads: bool) -> None:
    engaged = Engaged()

    async def converse() -> None:
        handle = engaged.open()
        if reads:
            await anext(event async for event in handle.events() if isinstance(event, Committed))
        else:
            while handle.session.running is None:
                await asyncio.sleep(0)
        handle.close()

    async def main() -> None:
        async with engaged.engine as engine:
            await converse()
            while engine._running is not None:
                await asyncio.sleep(0)
            await asyncio.get_running_loop().run_in_executor(engine._worker, int)  # the worker drops the last pass
            for _ in range(5):  # the event loop closes generators that were left
                await asyncio.sleep(0)
            engaged.check()

    asyncio.run(main())


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("kind", [RuntimeError, UsageError])
def test_a_session_that_failed_is_freed_with_its_handle(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    engaged = Engaged()

    def broken(batch: Sequence[Extend]) -> list[Step]:
        raise kind("out of order")

    monkeypatch.setattr(engaged.script.backend, "forward", broken)
    handle = engaged.open()
    while engaged.engine.tick():
        pass
    for _ in range(2):
        with pytest.raises(DuologueError, match="out of order"):
            handle.stop()
    assert engaged.engine.handles == ()
    del handle
    engaged.check()


def test_many_short_conversations_take_no_more_memory_than_a_few() -> None:
    engaged = Engaged()
    held = []
    number = size(1000, 20_000)
    tracemalloc.start()
    try:
        for count in range(number):
            handle = engaged.open(says="hi")
            engaged.refs.clear()
            while engaged.engine.tick():
                pass
            assert any(isinstance(event, Said) for event in handle.new_events())
            handle.close()
            del handle
            if count in (100, number - 1):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 100_000, "free lists of the interpreter, which fill up; not kilobytes a conversation"
