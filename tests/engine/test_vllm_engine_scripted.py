"""The engine for vLLM, on a scripted model behind requests: leases, aborts and the order of what is asked."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from duologue.backends.vllm.backend import VllmBackend
from duologue.core.config import SessionConfig
from duologue.core.events import Committed, Decided, Dropped, Event, Promoted, Resumed, Said, Suspended
from duologue.core.policy import Policy
from duologue.core.session import Session
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.engine.vllm_engine import VllmEngine, engine_on
from duologue.errors import EngineError
from scripted import PROBE, Talk
from scripted_requests import ScriptedService, on_requests

SURE = Policy(p_sure=0.5)
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen."
ANSWERS = {"count": LONG, "what is a cat": "A cat is a small animal."}


def run(talk: Coroutine[Any, Any, None]) -> None:
    """Run to the end, and see that no task is left."""

    async def alone() -> None:
        await asyncio.wait_for(talk, 30)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(alone())


class Place:
    """A scripted model behind requests, and sessions with it."""

    def __init__(self) -> None:
        self.talk = Talk(ANSWERS)
        self.talk.engine.close()
        self.backend: VllmBackend = on_requests(self.talk.backend)
        self.service: ScriptedService = self.backend._service  # type: ignore[assignment]

    def engine(self) -> Engine:
        engine = engine_on(self.backend)
        assert isinstance(engine, VllmEngine)
        return engine

    def session(self, **config: Any) -> Session:
        return Session(self.talk.template, PROBE, policy=SURE, config=SessionConfig(**config))

    def closed(self) -> bool:
        """Close everything, and return whether nothing was left."""
        is_empty = self.backend.usage().num_seqs == 0
        self.backend.close()
        return is_empty and all(request.ended != "running" for request in self.service.requests)


async def until(handle: Handle, kind: type, is_it: Callable[[Any], bool] = lambda _: True) -> list[Event]:
    """The events up to the first of a kind, with it."""
    seen: list[Event] = []
    async for event in handle.events():
        seen.append(event)
        if isinstance(event, kind) and is_it(event):
            break
    return seen


async def settled(is_so: Callable[[], bool]) -> None:
    """Wait until something is so, and see that it stays."""
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert is_so()


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Said))


def test_everybody_gets_an_answer_of_their_own_and_each_is_a_few_requests() -> None:
    place = Place()

    async def main() -> None:
        async with place.engine() as engine:
            handles = [engine.open(place.session()) for _ in range(5)]
            for handle in handles:
                handle.hear("count", final=True)
            answers = await asyncio.gather(*(until(handle, Committed) for handle in handles))
            assert [said(events) for events in answers] == [LONG] * 5
            assert engine.totals.judged == 5

    run(main())
    assert len(place.service.of_decisions) == 5
    assert len(place.service.of_answers) == 5 * -(-len(LONG) // 48), "48 tokens ahead at most"
    assert place.closed()


def test_what_is_ignored_changes_neither_the_answer_nor_its_requests() -> None:
    place = Place()

    async def main() -> None:
        async with place.engine() as engine:
            handle = engine.open(place.session(heard="reported"))
            handle.hear("count", final=True)
            events = await until(handle, Said)
            handle.heard(1)
            handle.hear("mhm", utterance="aside", final=True)
            events += await until(handle, Dropped)
            while len(said(events)) < len(LONG):
                handle.heard(len(said(events)))
                events += await until(handle, Said)
            handle.heard(len(LONG))
            events += await until(handle, Committed)
            assert said(events) == LONG

    run(main())
    assert {request.ended for request in place.service.of_answers} == {"done"}
    assert place.closed()


def test_no_more_is_drawn_than_may_be_unheard_and_a_lease_is_renewed_when_half_of_it_was_heard() -> None:
    place = Place()

    def num_drawn() -> int:
        return sum(request.num_drawn for request in place.service.of_answers)

    async def main() -> None:
        async with place.engine() as engine:
            handle = engine.open(place.session(heard="reported", lookahead=20))
            handle.hear("count", final=True)
            await settled(lambda: num_drawn() == 20)
            handle.heard(4)
            await settled(lambda: num_drawn() == 20)
            assert len(place.service.of_answers) == 1, "not a request for each word that is heard"
            handle.heard(13)
            await settled(lambda: 20 < num_drawn() <= 33)
            assert len(place.service.of_answers) == 2

    run(main())
    assert place.closed()


def test_a_question_cuts_the_lease_and_resuming_goes_on_where_it_was_heard() -> None:
    place = Place()

    async def main() -> None:
        async with place.engine() as engine:
            handle = engine.open(place.session(heard="reported", lookahead=30))
            handle.hear("count", final=True)
            await settled(lambda: handle.session.running is not None and handle.session.running.num_said == 30)
            handle.heard(14)
            handle.hear("what is a cat", utterance="two", final=True)
            events = await until(handle, Said, lambda event: event.answer == 1)
            (cut,) = (event for event in events if isinstance(event, Suspended))
            assert cut.heard == "one two three"
            assert cut.unheard == LONG[13:30]
            await settled(lambda: handle.session.running is not None and handle.session.running.finished == "stop")
            handle.hear_out()
            assert (await until(handle, Committed))[-1].text == ANSWERS["what is a cat"]  # type: ignore[union-attr]
            handle.resume()
            events = await until(handle, Said, lambda event: event.start + len(event.text) >= 17)
            assert LONG[13:].startswith(said(events))

    run(main())
    assert place.closed()


def test_an_answer_that_is_cut_while_it_is_drawn_is_aborted() -> None:
    place = Place()

    async def main() -> None:
        async with place.engine() as engine:
            handle = engine.open(place.session())
            place.service.hold(after=20)
            handle.hear("count", final=True)
            await until(handle, Said, lambda event: event.start > 15)
            handle.stop()
            assert isinstance((await until(handle, Suspended))[-1], Suspended)
            await settled(lambda: place.service.of_answers[-1].ended == "aborted")
            place.service.go_on()
            handle.resume()
            events = await until(handle, Committed)
            assert any(isinstance(event, Resumed) and event.exact for event in events)
            assert events[-1].text == LONG  # type: ignore[union-attr]

    run(main())
    assert place.closed()


def test_of_two_decisions_the_newest_wins_and_the_older_is_aborted() -> None:
    place = Place()

    async def main() -> None:
        async with place.engine() as engine:
            handle = engine.open(place.session())
            place.service.hold()
            handle.hear("what is")
            await settled(lambda: len(place.service.of_decisions) == 1)
            handle.hear("what is a cat", final=True)
            await settled(lambda: len(place.service.of_decisions) == 2)
            assert [request.ended for request in place.service.of_decisions] == ["aborted", "running"]
            place.service.go_on()
            events = await until(handle, Committed)
            assert [event.text for event in events if isinstance(event, Decided)] == ["what is a cat"]
            assert said(events) == ANSWERS["what is a cat"]

    run(main())
    assert place.closed()


def test_decisions_have_priority_over_answers() -> None:
    place = Place()

    async def main() -> None:
        async with place.engine() as engine:
            handle = engine.open(place.session())
            handle.hear("what is a cat", final=True)
            await until(handle, Committed)

    run(main())
    assert [request.priority for request in place.service.requests] == [-1, 0]
    assert place.closed()


def test_a_session_that_is_closed_takes_its_requests_with_it() -> None:
    place = Place()

    async def main() -> None:
        async with place.engine() as engine:
            handle, other = engine.open(place.session()), engine.open(place.session())
            for each in (handle, other):
                each.hear("count", final=True)
            await until(handle, Said)
            place.service.hold()
            handle.close()
            place.service.go_on()
            assert said(await until(other, Committed)) == LONG
        assert not engine.handles

    run(main())
    assert place.closed()


def test_what_fails_in_vllm_ends_the_conversations_that_asked() -> None:
    place = Place()

    async def broken(*_: Any, **__: Any) -> Any:
        raise EngineError("vLLM failed: the engine is dead")
        yield

    async def main() -> None:
        async with place.engine() as engine:
            handle, idle = engine.open(place.session()), engine.open(place.session())
            place.service.generate = broken  # type: ignore[method-assign]
            handle.hear("count", final=True)
            with pytest.raises(EngineError, match="the engine is dead"):
                await until(handle, Promoted)
            assert idle.is_open

    run(main())
    assert place.closed()
