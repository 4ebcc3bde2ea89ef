"""Pipecat's `OpenAIRealtimeLLMService`, as it comes, against this server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
    ProposedUserStartedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner
from served import ANSWERS, LONG, run, server_history

from serving import Running, scripted_model, serving


class Sink(FrameProcessor):
    """The end of the pipeline: the text that came, by response."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = [""]
        self.num_onsets = 0
        self.errors: list[ErrorFrame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMTextFrame):
            self.texts[-1] += frame.text
        elif isinstance(frame, LLMFullResponseEndFrame) and self.texts[-1]:
            self.texts.append("")
        elif isinstance(frame, ProposedUserStartedSpeakingFrame):
            self.num_onsets += 1
        elif isinstance(frame, ErrorFrame):
            self.errors.append(frame)
        await self.push_frame(frame, direction)

    async def until(self, number: int, length: int) -> None:
        """Until so much of the response of that number was said."""
        while len(self.texts) <= number or len(self.texts[number]) < length:
            await asyncio.sleep(0.01)


def user(text: str) -> events.ConversationItemCreateEvent:
    content = [events.ItemContent(type="input_text", text=text)]
    return events.ConversationItemCreateEvent(
        item=events.ConversationItem(type="message", role="user", content=content)
    )


@contextlib.asynccontextmanager
async def piped(server: Running, words: str) -> AsyncIterator[tuple[OpenAIRealtimeLLMService, Sink]]:
    """A pipeline in which the service has been given its first context."""
    properties = events.SessionProperties(output_modalities=["text"], instructions="Be a cat.")
    service = OpenAIRealtimeLLMService(
        api_key="local",
        base_url=server.http.replace("http", "ws") + "/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(model="any", session_properties=properties),
    )
    sink = Sink()
    worker = PipelineWorker(Pipeline([service, sink]), cancel_on_idle_timeout=False, enable_rtvi=False)
    started = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def _(*_: object) -> None:
        started.set()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await asyncio.wait_for(started.wait(), 10)
    await worker.queue_frame(LLMContextFrame(LLMContext([{"role": "user", "content": words}])))
    try:
        yield service, sink
    finally:
        await worker.queue_frame(EndFrame())
        await asyncio.wait_for(running, 10)


def test_a_conversation_with_a_backchannel_and_an_interruption():
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS), words_per_second=10.0) as server,
            piped(server, "tell me a lot") as (service, sink),
        ):
            await sink.until(0, 60)
            await service.send_client_event(user("mhm"))
            await service.send_client_event(events.ResponseCreateEvent())  # is told that there is one already
            await service.send_client_event(user("mhm"))
            await sink.until(0, 110)
            assert sink.num_onsets == 0
            await service.send_client_event(user("and who"))
            await sink.until(1, len("Nobody."))
            assert sink.num_onsets == 1
            assert LONG.startswith(sink.texts[0])
            assert sink.texts[1] == "Nobody."
            await asyncio.sleep(0.8)
            await service.send_client_event(user("hello"))
            await service.send_client_event(events.ResponseCreateEvent())
            await sink.until(2, len("Hi there."))
            await asyncio.sleep(0.5)
            history = server_history(server)
            assert history[0] == ("user", "tell me a lot")
            assert sink.texts[0].startswith(history[1][1])
            assert history[2:] == [
                ("user", "and who"), ("assistant", "Nobody."), ("user", "hello"), ("assistant", "Hi there."),
            ]  # fmt: skip
            assert "Be a cat." in server_history(server, "system")[0][1]
            assert not sink.errors

    run(talk())


def test_the_service_survives_what_is_refused_when_nothing_runs():
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS), words_per_second=30.0) as server,
            piped(server, "hello") as (service, sink),
        ):
            await sink.until(0, len("Hi there."))
            await asyncio.sleep(0.5)
            await service.send_client_event(events.ResponseCancelEvent())
            await service.send_client_event(events.InputAudioBufferClearEvent())
            item = await service.retrieve_conversation_item(next(iter(await first_items(service))))
            assert item.content[0].text == "hello"
            assert not sink.errors

    run(talk())


async def first_items(service: OpenAIRealtimeLLMService) -> list[str]:
    """Ids of items that the service made."""
    made: list[str] = []

    @service.event_handler("on_conversation_item_created")
    async def _(_: object, name: str, __: object) -> None:
        made.append(name)

    event = user("hello")
    await service.send_client_event(event)
    while event.item.id not in made:
        await asyncio.sleep(0.01)
    return [event.item.id]
