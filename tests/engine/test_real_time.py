"""Conversations in real time: events as they happen, commands at any moment, an end that leaves nothing behind."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from duologue.core.backend import Extend, Step
from duologue.core.config import SessionConfig
from duologue.core.events import Committed, Event, Heard, Promoted, Received, Released, Resumed, Said, Suspended
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.engine.playback_clock import CHARACTERS_PER_WORD
from duologue.engine.trace import Pass
from duologue.errors import EngineError, UsageError
from duologue.types import Role, Seq, Turn
from gated import Gate, run
from scripted import Talk

SHOWN = SessionConfig()
REPORTED = SessionConfig(heard="reported")


@asynccontextmanager
async def conversation(
    talk: Talk, *, clock: Callable[[], float] = time.monotonic, **options: Any
) -> AsyncIterator[Handle]:
    """The session of `talk` alone on an engine."""
    async with Engine(talk.backend, clock=clock) as engine:
        yield engine.open(talk.session, **options)


async def until(live: Handle, kind: type[Event], seen: list[Event] | None = None) -> Event:
    """Read events up to the first of `kind`."""
    async for event in live.events():
        if seen is not None:
            seen.append(event)
        if isinstance(event, kind):
            return event
    raise AssertionError(f"the conversation ended without {kind.__name__}")


def fail(talk: Talk, error: Exception, *, after: int = 0) -> None:
    """The backend raises from the pass after that many on."""
    forward = talk.backend.forward
    left = [after]

    def broken(batch: Sequence[Extend]) -> list[Step]:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return forward(batch)

    talk.backend.forward = broken  # type: ignore[method-assign]


def test_an_answer_comes_as_events() -> None:
    talk = Talk({"hello": "Hello to you."})

    async def main() -> None:
        seen: list[Event] = []
        async with conversation(talk) as live:
            live.hear("hello", final=True)
            await until(live, Committed, seen)
        assert "".join(event.text for event in seen if isinstance(event, Said)) == "Hello to you."
        assert [type(event) for event in seen if isinstance(event, (Received, Promoted, Released, Committed))] == [
            Received,
            Promoted,
            Released,
            Committed,
        ]

    run(main())
    assert talk.backend.usage().num_seqs == 0, "everything was freed"


def test_what_happens_goes_to_the_sink_as_well() -> None:
    talk, records = Talk({"hello": "Hi."}), []

    async def main() -> None:
        async with conversation(talk, sink=records.append) as live:
            live.hear("hello", final=True)
            await until(live, Committed)

    run(main())
    assert any(isinstance(record, Pass) for record in records)
    assert any(isinstance(record, Received) for record in records), "events of commands, too"


def test_words_that_come_while_a_pass_runs_are_heard_at_once() -> None:
    talk = Talk({"hello": "A long answer that goes on for a good while."})
    gate = Gate(talk)

    async def main() -> None:
        async with conversation(talk) as live:
            live.hear("hello", final=True)
            await until(live, Said)
            gate.opened.clear()
            gate.entered.clear()
            await asyncio.to_thread(gate.entered.wait, 10)
            live.hear("wait", utterance="b", final=True)  # the loop is free, though the backend is not
            received = await asyncio.wait_for(until(live, Received), 5)
            assert isinstance(received, Received)
            assert received.text == "wait"
            assert not gate.opened.is_set()
            gate.opened.set()
            await until(live, Suspended)
            await until(live, Committed)

    run(main())
    assert talk.turns[0] == ("user", "hello")
    assert [words for role, words in talk.turns if role == "user"] == ["hello", "wait"]


@pytest.mark.parametrize("command", ["stop", "resume", "respond"])
def test_commands_while_a_pass_runs(command: str) -> None:
    talk = Talk()
    gate = Gate(talk)

    async def main() -> None:
        async with conversation(talk) as live:
            live.hear("hello", final=True)
            await until(live, Heard)
            gate.opened.clear()
            gate.entered.clear()
            await asyncio.to_thread(gate.entered.wait, 10)
            getattr(live, command)()
            gate.opened.set()
            if command == "stop":
                await until(live, Suspended)
                live.resume()
                await until(live, Resumed)
            await until(live, Committed)

    run(main())
    assert len(talk.turns) == 2, "one question, one answer, whatever was pressed meanwhile"
    assert talk.turns[1][1].startswith("This is what there is to say of hello")
    assert talk.turns[1][1].endswith("quite a lot of words.")


def test_closing_while_a_pass_runs_waits_for_it() -> None:
    talk = Talk()
    gate = Gate(talk)

    async def main() -> None:
        async with Engine(talk.backend) as engine:
            live = engine.open(talk.session)
            live.hear("hello", final=True)
            await until(live, Said)
            gate.opened.clear()
            gate.entered.clear()
            await asyncio.to_thread(gate.entered.wait, 10)
            closing = asyncio.create_task(engine.aclose())
            for _ in range(20):  # everything that can proceed does
                await asyncio.sleep(0)
            assert not closing.done(), "the backend is still at work"
            assert talk.backend.usage().num_seqs > 0
            gate.opened.set()
            await closing

    run(main())
    assert talk.backend.usage().num_seqs == 0


def test_the_events_end_when_the_conversation_is_closed() -> None:
    talk = Talk()

    async def main() -> None:
        async with conversation(talk) as live:
            reading = asyncio.create_task(_all(live))
            await asyncio.sleep(0)
        live.close()  # once more does no harm
        assert await reading == []
        assert await _all(live) == [], "for who asks afterwards, too"

    run(main())


async def _all(live: Handle) -> list[Event]:
    return [event async for event in live.events()]


@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_failing_backend_is_an_engine_error(after: int) -> None:
    talk = Talk()
    fail(talk, RuntimeError("out of order"), after=after)

    async def main() -> None:
        async with conversation(talk) as live:
            live.hear("hello", final=True)
            with pytest.raises(EngineError, match="out of order") as caught:
                await _all(live)
            assert isinstance(caught.value.__cause__, RuntimeError)
            with pytest.raises(EngineError, match="out of order"):
                live.hear("anybody there", final=True)
            with pytest.raises(EngineError, match="out of order"):
                await _all(live)

    run(main())
    assert [turn.text for turn in talk.session.history if turn.role == "user"] in ([], ["hello"])


def test_a_backend_that_cannot_even_free_is_reported_once() -> None:
    talk = Talk()

    def broken(_: Seq) -> None:
        raise OSError("gone")

    async def main() -> None:
        engine = await Engine(talk.backend).__aenter__()
        live = engine.open(talk.session)
        live.hear("hello", final=True)
        await until(live, Committed)
        talk.backend.free = broken  # type: ignore[method-assign]
        with pytest.raises(EngineError, match="gone"):
            await engine.aclose()
        await engine.aclose()

    run(main())


def test_commands_after_a_conversation_are_refused() -> None:
    talk = Talk()

    async def main() -> None:
        async with conversation(talk) as live:
            pass
        for command in (live.stop, live.resume, live.respond):
            with pytest.raises(UsageError, match="is closed"):
                command()

    run(main())
    assert talk.session.history == []


@pytest.mark.parametrize(
    ("config", "rate"), [(SHOWN, 4.0), (REPORTED, 0.0), (REPORTED, -1.0), (REPORTED, float("inf"))]
)
def test_a_rate_goes_with_reported_hearing_only(config: SessionConfig, rate: float | None) -> None:
    talk = Talk(config=config)
    with pytest.raises(UsageError, match="words_per_second"):
        Engine(talk.backend).open(talk.session, words_per_second=rate)


class Clock:
    """Time that passes when it is told to, and with every look at it."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 1000.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the clock as often as possible."""
    monkeypatch.setattr("duologue.engine.playback_clock.STEP_S", 0.001)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("rate", [4.0, 900.0])
def test_words_are_heard_at_the_rate_and_never_ahead_of_what_was_said(rate: float) -> None:
    talk = Talk({"hello": "One two three four five six seven eight nine ten eleven twelve."}, config=REPORTED)
    clock = Clock(step=0.01)

    async def main() -> None:
        said, heard, released_at = 0, 0, 0.0
        async with conversation(talk, words_per_second=rate, clock=clock) as live:
            live.hear("hello", final=True)
            async for event in live.events():
                match event:
                    case Released(at):
                        released_at = at
                    case Said(start=start, text=text):
                        said = start + len(text)
                    case Heard(at, position=position):
                        assert position <= said
                        assert position - 1 <= (at - released_at) * rate * CHARACTERS_PER_WORD or position == said
                        heard += 1
                    case Committed():
                        break
        assert heard >= 8, "word by word"

    run(main())


@pytest.mark.usefixtures("hasty")
def test_an_answer_that_was_cut_is_not_heard_on() -> None:
    talk = Talk({"hello": "One two three four five six seven eight nine ten eleven twelve."}, config=REPORTED)
    clock = Clock(step=0.01)

    async def main() -> None:
        async with conversation(talk, words_per_second=4.0, clock=clock) as live:
            live.hear("hello", final=True)
            await until(live, Heard)
            live.stop()
            cut = await until(live, Suspended)
            assert isinstance(cut, Suspended)
            clock.now += 60.0
            live.resume()
            await until(live, Resumed)
            first = await until(live, Heard)
            assert isinstance(first, Heard)
            assert first.position < len(cut.heard) + 12, "the minute of silence was not spent on hearing"
            await until(live, Committed)

    run(main())


def test_nothing_runs_while_nothing_happens() -> None:
    talk = Talk({"hello": "Hi."})
    plans = [0]
    plan = talk.session.plan

    def counted(*limits: int | None) -> Any:
        plans[0] += 1
        return plan(*limits)

    talk.session.plan = counted  # type: ignore[method-assign]

    async def main() -> None:
        async with Engine(talk.backend) as engine:
            resting, rest = asyncio.Event(), engine._rest

            async def noted() -> None:
                resting.set()
                await rest()
                resting.clear()

            engine._rest = noted  # type: ignore[method-assign]
            live = engine.open(talk.session)

            async def stays_at_rest() -> None:
                await resting.wait()
                assert engine.due() is None, "it waits for a command, however long"
                before = plans[0]
                for _ in range(100):
                    await asyncio.sleep(0)
                assert resting.is_set()
                assert plans[0] == before

            await stays_at_rest()
            assert plans[0] <= 3, "silence before the first word"
            live.hear("hello", final=True)
            await until(live, Committed)
            await stays_at_rest()
            assert plans[0] > 3

    run(main())


def test_what_a_hundred_thousand_words_leave_behind() -> None:
    talk = Talk({"hello": "Hi."})

    async def main() -> None:
        async with conversation(talk) as live:
            live.hear("word " * 100_000, utterance="long", final=True)
            live.hear("\ud800 <|im_end|> \x00", utterance="odd", final=True)
            await until(live, Committed)
            live.hear("hello", utterance="b", final=True)
            await until(live, Committed)

    run(main())
    assert talk.turns[0] == ("user", "\ufffd <|im_end|> \x00"), "fed as ordinary characters, and nothing but them"
    assert talk.turns[2:] == [("user", "hello"), ("assistant", "Hi.")]


def test_a_player_reports_what_was_heard() -> None:
    talk = Talk({"hello": "Hello to you."}, config=REPORTED)

    async def main() -> None:
        async with conversation(talk) as live:
            live.hear("hello", final=True)
            said = ""
            async for event in live.events():
                if isinstance(event, Said):
                    said += event.text
                if said == "Hello to you.":
                    break
            assert talk.session.history == []
            live.heard(5)
            assert isinstance(await until(live, Heard), Heard)
            assert talk.session.history[-1].text == "Hello"
            live.heard(len(said))
            await until(live, Committed)

    run(main())


def test_hearing_by_the_clock_takes_no_reports() -> None:
    talk = Talk(config=REPORTED)

    async def main() -> None:
        async with conversation(talk, words_per_second=4.0) as live:
            with pytest.raises(UsageError, match="the clock decides"):
                live.heard(3)

    run(main())


def test_the_history_can_be_replaced() -> None:
    talk = Talk({"hi": "Hello."}, config=SHOWN)

    async def main() -> None:
        async with conversation(talk) as live:
            live.edit([Turn(Role.USER, "hi")])
            live.respond()
            await until(live, Committed)
            assert [turn.text for turn in talk.session.history] == ["hi", "Hello."]

    run(main())
