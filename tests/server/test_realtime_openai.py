"""OpenAI's own client, as it comes, against `/v1/realtime`; the manual's example is run as it stands."""

import asyncio
import contextlib
import io
import re
import time
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAI
from openai.types import realtime as types
from test_realtime import ANSWERS, LONG, history, run

from duologue.server.realtime.messages import EVENTS, EXTENSIONS
from serving import Running, scripted_model, serving

PAGE = Path(__file__).parents[2] / "docs" / "realtime.md"


@contextlib.asynccontextmanager
async def connected(server: Running, **options: Any) -> Any:
    async with (
        AsyncOpenAI(base_url=f"{server.http}/v1", api_key="local") as client,
        client.realtime.connect(model="any", **options) as connection,
    ):
        yield connection


def words(text: str, role: str = "user") -> Any:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def test_a_conversation_with_an_aside_and_an_interruption():
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS), words_per_second=10.0) as server,
            connected(server) as connection,
        ):
            told: list[Any] = []
            sent = 0
            answer = ""
            await connection.session.update(
                session={
                    "type": "realtime",
                    "instructions": "Be brief.",
                    "output_modalities": ["text"],
                    "audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}},
                }
            )
            await connection.conversation.item.create(item=words("tell me a lot"))
            await connection.response.create(response={"metadata": {"number": "1"}})
            async for event in connection:
                told.append(event)
                if event.type == "response.output_text.delta":
                    answer += event.delta
                    for number, (length, text) in enumerate(((60, "mhm"), (100, "and who"))):
                        if sent == number and len(answer) > length:
                            sent += 1
                            await connection.conversation.item.create(item=words(text))
                            await connection.response.create(response={"metadata": {"number": str(sent + 1)}})
                elif event.type == "response.done":
                    if event.response.status == "completed":
                        break
                    answer = ""
            kinds = [event.type for event in told]
            assert kinds.count("response.created") == 2
            cut, other = (event.response for event in told if event.type == "response.done")
            assert (cut.status, cut.status_details.reason, cut.metadata) == (
                "cancelled", "turn_detected", {"number": "1"},
            )  # fmt: skip
            assert LONG.startswith(cut.output[0].content[0].text)
            assert (other.output[0].content[0].text, other.metadata) == ("Nobody.", {"number": "3"})
            assert other.usage.output_tokens == len("Nobody.")
            (error,) = (event.error for event in told if event.type == "error")
            assert error.code == "conversation_already_has_active_response"
            (gone,) = (event.item_id for event in told if event.type == "conversation.item.deleted")
            assert gone in [event.item.id for event in told if event.type == "conversation.item.added"]
            while history(server)[2:] != [("user", "and who"), ("assistant", "Nobody.")]:  # until it has been heard
                await asyncio.sleep(0.01)
            assert [role for role, _ in history(server)] == ["user", "assistant"] * 2

    run(talk())


CLASSES = {
    "session.created": types.SessionCreatedEvent,
    "session.updated": types.SessionUpdatedEvent,
    "error": types.RealtimeErrorEvent,
    "conversation.item.added": types.ConversationItemAdded,
    "conversation.item.done": types.ConversationItemDone,
    "conversation.item.deleted": types.ConversationItemDeletedEvent,
    "conversation.item.truncated": types.ConversationItemTruncatedEvent,
    "input_audio_buffer.speech_started": types.InputAudioBufferSpeechStartedEvent,
    "input_audio_buffer.speech_stopped": types.InputAudioBufferSpeechStoppedEvent,
    "input_audio_buffer.cleared": types.InputAudioBufferClearedEvent,
    "response.created": types.ResponseCreatedEvent,
    "response.done": types.ResponseDoneEvent,
    "response.output_item.added": types.ResponseOutputItemAddedEvent,
    "response.output_item.done": types.ResponseOutputItemDoneEvent,
    "response.content_part.added": types.ResponseContentPartAddedEvent,
    "response.content_part.done": types.ResponseContentPartDoneEvent,
    "response.output_text.delta": types.ResponseTextDeltaEvent,
    "response.output_text.done": types.ResponseTextDoneEvent,
}


def test_every_event_is_what_the_client_knows_by_its_name():
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS), words_per_second=10.0) as server,
            connected(server) as connection,
        ):
            await connection.session.update(session={"type": "realtime"})
            await connection.input_audio_buffer.clear()
            await connection.response.cancel(event_id="mine")
            await connection.conversation.item.create(item=words("tell me a lot"))
            await connection.response.create()
            seen, answer, is_over = {}, "", False
            async for event in connection:
                seen[event.type] = event
                kind = CLASSES[event.type]
                assert isinstance(event, kind)
                kind.model_validate(event.model_dump(), strict=True)
                if event.type == "response.output_text.delta":
                    answer += event.delta
                    if len(answer) == 60:
                        await connection.conversation.item.create(item=words("stop"))
                is_over |= event.type == "response.done"
                if is_over and "conversation.item.truncated" in seen:
                    break
            assert seen.keys() == CLASSES.keys()
            assert seen["error"].error.event_id == "mine"

    run(talk())


def test_the_extension_by_the_stock_client():
    async def talk() -> None:
        async with (
            serving(scripted_model(ANSWERS), words_per_second=10.0) as server,
            connected(server, extra_query={"duplex": "1"}) as connection,
        ):
            await connection.send({"type": "input.text.append", "text": "hello", "final": True})
            told: dict[str, Any] = {}
            async for event in connection:
                told[event.type] = event
                if event.type == "response.done":
                    await connection.send({"type": "playback.ack", "played_chars": 9})
                if event.type == "playback.acknowledged":
                    break
            assert told["overlap.decision"].state == "process"
            assert told["response.done"].response.output[0].content[0].text == "Hi there."
            assert told["playback.acknowledged"].heard_chars == 9

    run(talk())


def test_the_client_without_async():
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server:
            assert await asyncio.to_thread(ask, server.http) == "Hi there."

    def ask(address: str) -> str:
        with OpenAI(base_url=f"{address}/v1", api_key="local") as client, client.realtime.connect(model="m") as talk:
            talk.conversation.item.create(item=words("hello"))
            talk.response.create()
            for event in talk:
                if event.type == "response.output_text.done":
                    return str(event.text)
        raise AssertionError("nothing was said")

    run(talk())


class Typist:
    """Somebody who types in answer to what is printed: each line when so much of an answer, or that, is there."""

    def __init__(self, out: io.StringIO, *lines: tuple[int | str, str]) -> None:
        self.out = out
        self.lines = list(lines)

    def __call__(self) -> str:
        until, text = self.lines.pop(0)
        while not (len(self.out.getvalue()) >= until if isinstance(until, int) else until in self.out.getvalue()):
            time.sleep(0.01)
        return text


def test_the_example_of_the_manual_is_interrupted_in_fifteen_lines():
    (snippet,) = re.findall(
        r"^```python realtime\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 15
    answers = {"tell me a story": LONG, "wait, who wrote it?": "Nobody did."}
    out = io.StringIO()
    typist = Typist(out, (0, "tell me a story"), (60, "mhm"), (100, "wait, who wrote it?"), ("did.\n", ""))

    async def talk() -> None:
        async with serving(scripted_model(answers), words_per_second=10.0) as server:
            names: dict[str, Any] = {"input": typist}
            code = snippet.removesuffix("asyncio.run(main())\n").replace("http://127.0.0.1:8080", server.http)
            exec(compile(code, PAGE.name, "exec"), names)
            with contextlib.redirect_stdout(out):
                await asyncio.wait_for(names["main"](), 20)

    run(talk())
    story, answer = out.getvalue().splitlines()
    assert LONG.startswith(story)
    assert 100 <= len(story) < len(LONG)
    assert answer == "Nobody did."


def test_the_page_names_every_event_of_a_client():
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in (*EVENTS, *EXTENSIONS) if f"`{name}`" not in page] == []
