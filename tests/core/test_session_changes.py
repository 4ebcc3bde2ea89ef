"""What can be changed while a conversation runs: the system prompt, the length of answers, who says what was heard."""

import asyncio

import pytest

from duologue.baselines.tdm import Tdm
from duologue.core.config import SessionConfig
from duologue.core.events import Committed, Event, Finished
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.errors import ContextOverflow, UsageError
from duologue.types import Role, Turn
from scripted import Talk
from serving import scripted_model

ANSWERS = {"hello": "One two three four.", "and": "Yes."}


def test_another_system_prompt_holds_from_the_edit_on():
    talk = Talk(ANSWERS, system="Be a cat.")
    talk.hear("hello")
    talk.run()
    template = talk.template.with_system("Be a dog.")
    talk.told(talk.session.edit(talk.session.history, template=template))
    talk.run()
    assert talk._turns(talk.session._output.sequence.items)[0] == ("system", "Be a dog.")
    talk.hear("hello")
    talk.run()
    assert talk.turns == [("user", "hello"), ("assistant", "One two three four.")] * 2
    talk.check_cache()


def test_a_system_prompt_without_room_changes_nothing():
    talk = Talk(ANSWERS, system="Be a cat.", config=SessionConfig(max_length=400))
    talk.hear("hello")
    talk.run()
    items = list(talk.session._output.sequence.items)
    with pytest.raises(ContextOverflow):
        talk.session.edit(talk.session.history, template=talk.template.with_system("very " * 100))
    assert (talk.session.template, talk.session._output.sequence.items) == (talk.template, items)
    talk.hear("hello")
    talk.run()
    assert talk.turns[2:] == [("user", "hello"), ("assistant", "One two three four.")]


def test_answers_that_begin_from_now_on_are_limited():
    talk = Talk(ANSWERS, config=SessionConfig(heard="reported"))
    talk.hear("hello")
    talk.tick(3)
    talk.session.limit(7)
    talk.run()
    assert talk.said == "One two three four.", "one that runs is not"
    talk.told(talk.session.heard(19))
    talk.hear("hello")
    talk.run()
    assert talk.said.endswith("four.One two")
    assert [event.reason for event in talk.events if isinstance(event, Finished)] == ["stop", "length"]
    with pytest.raises(UsageError, match="at least 1"):
        talk.session.limit(0)


async def until(handle: Handle, kind: type[Event]) -> Event:
    async for event in handle.events():
        if isinstance(event, kind):
            return event
    raise AssertionError("the session was closed")


def test_reports_take_the_place_of_the_clock():
    async def run() -> None:
        model = scripted_model(ANSWERS)
        async with Engine(model.backend) as engine:
            handle = engine.open(model.session(config=SessionConfig(heard="reported")), words_per_second=0.01)
            handle.hear("hello", final=True)
            await until(handle, Finished)
            with pytest.raises(UsageError, match="the clock decides"):
                handle.heard(7)
            handle.hear_out(9)
            assert handle.session.running is not None
            assert handle.session.running.num_heard == 7, "whole words"
            handle.take_reports()
            handle.heard(13)
            handle.pause(False)
            assert handle.session.running.num_heard == 13
            handle.hear_out()
            assert isinstance(await until(handle, Committed), Committed)
            handle.hear_out()  # nothing runs: nothing changes
            assert handle.num_told >= 5

    asyncio.run(run())


def test_only_a_duplex_session_can_be_limited():
    async def run() -> None:
        talk = Talk(ANSWERS, make=Tdm)
        talk.engine.close()
        async with Engine(talk.backend) as engine:
            handle = engine.open(talk.session)
            for command in (lambda: handle.limit(3), lambda: handle.edit((), template=talk.template)):
                with pytest.raises(UsageError, match="a session of kind"):
                    command()
            handle.edit([Turn(Role.USER, "hi")])

    asyncio.run(run())
