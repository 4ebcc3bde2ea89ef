"""LiveKit's `RealtimeModel`, as it comes, against this server."""

import asyncio
from typing import Any

import pytest
from livekit.agents import Agent, AgentSession, llm
from livekit.plugins.openai import realtime
from served import ANSWERS, LONG, run, server_history

from serving import Running, scripted_model, serving


def model_of(server: Running) -> realtime.RealtimeModel:
    return realtime.RealtimeModel(model="any", base_url=f"{server.http}/v1", api_key="local", modalities=["text"])


class Talk:
    """A session of the plugin's, and what it reads."""

    def __init__(self, session: Any) -> None:
        self.session = session

    async def type(self, text: str) -> None:
        chat = self.session.chat_ctx.copy()
        chat.add_message(role="user", content=text)
        await self.session.update_chat_ctx(chat)

    async def ask(self, text: str) -> "Reading":
        await self.type(text)
        return Reading(await self.session.generate_reply())

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(item.role, item.text_content or "") for item in self.session.chat_ctx.items]


class Reading:
    """A reply that is being read."""

    def __init__(self, generation: llm.GenerationCreatedEvent) -> None:
        self.text = ""
        self.task = asyncio.create_task(self._read(generation))

    async def _read(self, generation: llm.GenerationCreatedEvent) -> str:
        async for message in generation.message_stream:
            async for part in message.text_stream:
                self.text += part
        return self.text

    async def until(self, length: int) -> None:
        while len(self.text) < length:
            assert not self.task.done(), self.text
            await asyncio.sleep(0.01)


def test_a_conversation_with_a_backchannel_and_an_interruption():
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), words_per_second=10.0) as server:
            model = model_of(server)
            session = model.session()
            conversation = Talk(session)
            hello = await conversation.ask("hello")
            assert await asyncio.wait_for(hello.task, 10) == "Hi there."
            await asyncio.sleep(0.5)  # it has been heard
            story = await conversation.ask("tell me a lot")
            await story.until(60)
            with pytest.raises(llm.RealtimeError, match="none of the assistant's business"):
                await conversation.ask("mhm")
            assert "mhm" not in [text for _, text in conversation.said]
            await story.until(100)
            other = await conversation.ask("and who")
            assert await asyncio.wait_for(other.task, 10) == "Nobody."
            told = await asyncio.wait_for(story.task, 10)
            assert LONG.startswith(told)
            assert 100 <= len(told) < len(LONG)
            await asyncio.sleep(0.5)
            assert [role for role, _ in conversation.said] == ["user", "assistant"] * 3
            history = server_history(server)
            assert [text for _, text in history[:3]] == ["hello", "Hi there.", "tell me a lot"]
            assert told.startswith(history[3][1]), "what was heard is a part of what was said"
            assert history[4:] == [("user", "and who"), ("assistant", "Nobody.")]
            await session.aclose()
            await model.aclose()

    run(talk())


def test_instructions_and_a_reply_that_is_given_up():
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), words_per_second=10.0) as server:
            model = model_of(server)
            session = model.session()
            conversation = Talk(session)
            await session.update_instructions("Be a cat.")
            story = await conversation.ask("tell me a lot")
            await story.until(60)  # so that some of it has been heard
            session.interrupt()
            assert LONG.startswith(await asyncio.wait_for(story.task, 10))
            hello = await conversation.ask("hello")
            assert await asyncio.wait_for(hello.task, 10) == "Hi there."
            assert "Be a cat." in server_history(server, "system")[0][1]
            await session.aclose()
            await model.aclose()

    run(talk())


def test_an_agent_session_talks_and_is_interrupted():
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), words_per_second=30.0) as server:
            model = model_of(server)
            async with AgentSession(llm=model) as session:
                await session.start(Agent(instructions="Be a cat."))
                first = await session.run(user_input="hello")
                first.expect.next_event().is_message(role="assistant")
                await asyncio.sleep(0.6)  # it has been heard
                story = session.generate_reply(user_input="tell me a lot")
                await asyncio.sleep(1.0)
                await session.interrupt()
                await story
                second = await session.run(user_input="and who")
                texts = [event.item.text_content for event in second.events if event.type == "message"]
                assert texts[-1] == "Nobody."
                said = [
                    (item.role, item.text_content or "") for item in session.history.items if item.type == "message"
                ]
                assert [text for _, text in said][:3] == ["hello", "Hi there.", "tell me a lot"]
                assert LONG.startswith(said[3][1])
                assert said[4:] == [("user", "and who"), ("assistant", "Nobody.")]
                await asyncio.sleep(0.5)
                history = server_history(server)
                assert said[3][1].startswith(history[3][1]), "what was heard is a part of what was forwarded"
                assert [*history[:3], *history[4:]] == [*said[:3], *said[4:]]
            await model.aclose()

    run(talk())


def test_an_agent_session_is_told_that_a_backchannel_is_not_answered():
    async def talk() -> None:
        async with serving(scripted_model({**ANSWERS, "hi": "One two three."}), words_per_second=3.0) as server:
            model = model_of(server)
            async with AgentSession(llm=model) as session:
                await session.start(Agent(instructions="Be a cat."))
                await session.run(user_input="hi")
                await asyncio.sleep(0.4)  # somebody is reading it
                with pytest.raises(llm.RealtimeError, match="none of the assistant's business"):
                    await session.run(user_input="mhm")
                await asyncio.sleep(0.8)
                second = await session.run(user_input="and who")
                assert [event.item.text_content for event in second.events if event.type == "message"] == ["Nobody."]
                await asyncio.sleep(0.6)
                assert server_history(server) == [
                    ("user", "hi"), ("assistant", "One two three."), ("user", "and who"), ("assistant", "Nobody."),
                ]  # fmt: skip
            await model.aclose()

    run(talk())
