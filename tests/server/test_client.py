"""The client of `/v1/duplex`, where connections and servers come and go."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from duologue.client import Talk, connect
from duologue.core.events import Committed, Event, Promoted, Said
from duologue.errors import RemoteError
from duologue.server.folder_store import FolderStore
from duplex_peer import ANSWERS, join, run
from serving import scripted_model, serving

STARTED = {"type": "started", "session": "s", "model": "m", "number": 0, "taken": 0, "missed": False}


@contextlib.asynccontextmanager
async def standing_in(answer: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that is told `start`, and then does what `answer` does."""

    async def handle(socket: ServerConnection) -> None:
        await socket.recv()
        await answer(socket)

    async with serve(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def until(talk: Talk, kind: type[Event]) -> Event:
    """The next event of this kind."""
    async with asyncio.timeout(30):
        async for event in talk.events():
            if isinstance(event, kind):
                return event
    raise AssertionError("the conversation is over")


def test_a_conversation_that_another_client_took_over_is_not_taken_back():
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server:
            first = await connect(server.http)
            second = await connect(server.http, session=first.session)
            with pytest.raises(RemoteError, match="another connection"):
                await until(first, Said)
            second.hear("what is a cat", final=True)
            await until(second, Said)
            await first.aclose()
            await second.aclose()

    run(talk())


def test_a_server_that_ends_in_the_middle_of_a_handshake_is_tried_again(tmp_path):
    async def talk() -> None:
        left = asyncio.Event()

        async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
            left.set()

        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            conversation = await connect(server.http)
        async with await asyncio.start_server(leave, "127.0.0.1", server.port):
            await left.wait()
        async with serving(scripted_model(ANSWERS), record=str(tmp_path), port=server.port), conversation:
            conversation.hear("what is a cat", final=True)
            await until(conversation, Committed)

    run(talk())


def test_a_store_that_fails_for_a_moment_does_not_end_a_conversation(tmp_path, monkeypatch):
    failed = asyncio.Event()
    real = FolderStore.has

    async def has(store: FolderStore, name: str) -> bool:
        if failed.is_set():
            return await real(store, name)
        failed.set()
        raise OSError("it is away")

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            conversation = await connect(server.http)
        monkeypatch.setattr(FolderStore, "has", has)
        async with serving(scripted_model(ANSWERS), record=str(tmp_path), port=server.port), conversation:
            conversation.hear("what is a cat", final=True)
            await until(conversation, Committed)
        assert failed.is_set()

    run(talk())


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("duologue.client._ANSWER_S", 0.2, raising=False)

    async def talk() -> None:
        async with standing_in(ServerConnection.wait_closed) as url:
            with pytest.raises(RemoteError, match="did not answer"):
                async with asyncio.timeout(10):
                    await connect(url)

    run(talk())


def test_who_does_not_wait_for_a_conversation_leaves_no_connection_behind():
    async def talk() -> None:
        left = asyncio.Event()

        async def answer(socket: ServerConnection) -> None:
            await socket.wait_closed()
            left.set()

        async with standing_in(answer) as url:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await connect(url)
            async with asyncio.timeout(10):
                await left.wait()

    run(talk())


@pytest.mark.parametrize("rubbish", ["rubbish", "[]"])
def test_what_a_server_sends_that_is_no_message_is_said_to_who_waits(rubbish):
    async def talk() -> None:
        async def answer(socket: ServerConnection) -> None:
            await socket.send(json.dumps({**STARTED, "history": [], "running": None}))
            await socket.send(rubbish)
            await socket.wait_closed()

        async with standing_in(answer) as url:
            conversation = await connect(url)
            with pytest.raises(RemoteError, match="the server sent"):
                await until(conversation, Said)
            await conversation.aclose()

    run(talk())


def test_closing_does_not_wait_for_a_server_that_does_not_read(monkeypatch):
    monkeypatch.setattr("duologue.client._CLOSE_S", 0.2, raising=False)

    async def never(_: Any) -> None:
        await asyncio.Event().wait()

    async def talk() -> None:
        async with serving() as server:
            conversation = await connect(server.http)
            assert conversation._socket is not None
            monkeypatch.setattr(conversation._socket, "send", never)
            async with asyncio.timeout(10):
                await conversation.aclose()

    run(talk())


class Gate:
    """A recorder that waits, as one whose store is slow."""

    def __init__(self, recorder: Any) -> None:
        self.opened = asyncio.Event()
        self._append = recorder._append
        recorder._append = self

    async def __call__(self, line: bytes) -> None:
        await self.opened.wait()
        await self._append(line)


def test_what_a_new_client_says_is_no_repetition_of_what_is_not_recorded_yet(tmp_path):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            name = (await peer.start(settings={"hearing": "shown"}))["session"]
            conversation = server.talks._open[name]
            gate = Gate(conversation._recorder)
            await peer.say("hear", text="tell me a", utterance="one", id=1)
            while conversation.handle.num_told < 1:
                await asyncio.sleep(0.01)
            connecting = asyncio.create_task(connect(server.http, session=name))
            await asyncio.sleep(0.2)
            gate.opened.set()
            async with await connecting as second:
                second.hear("what is a cat", utterance="two", final=True)
                promoted = await until(second, Promoted)
                assert isinstance(promoted, Promoted)
                assert promoted.text.endswith("what is a cat")

    run(talk())


def test_a_new_client_is_told_once_of_what_is_being_recorded(tmp_path):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            name = (await peer.start(settings={"hearing": "shown"}))["session"]
            conversation = server.talks._open[name]
            gate = Gate(conversation._recorder)
            await peer.say("hear", text="what is a cat", final=True)
            while len(conversation.session.history) < 2:
                await asyncio.sleep(0.01)
            connecting = asyncio.create_task(connect(server.http, session=name))
            await asyncio.sleep(0.2)
            gate.opened.set()
            async with await connecting as second:
                second.hear("what is a dog", utterance="two", final=True)
                while not isinstance(event := await until(second, Committed), Committed) or event.answer == 0:
                    pass
                assert second.history == conversation.session.history

    run(talk())


@pytest.mark.parametrize("least", [0, 30])
def test_a_new_client_knows_what_was_heard_of_an_answer_that_is_running(least):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server:
            first = await connect(server.http)
            first.hear("tell me a lot", final=True)
            session = server.talks._open[first.session].session
            async with asyncio.timeout(10):
                async for event in first.events():
                    if session.running is not None and session.running.num_heard >= least and isinstance(event, Said):
                        break
            async with await connect(server.http, session=first.session) as second:
                assert second.history == session.history
                await until(second, Committed)
                assert second.history == session.history
            await first.aclose()

    run(talk())


def test_a_history_that_is_being_replaced_comes_before_words_that_were_said_after_it():
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS, max_length=16_000)) as server:
            peer = await join(server)
            name = (await peer.start(settings={"hearing": "shown"}))["session"]
            session: Any = server.talks._open[name].session
            entered, opened, lay_out = threading.Event(), threading.Event(), session.lay_out

            def wait(*turns: Any) -> Any:
                entered.set()
                assert opened.wait(10)
                return lay_out(*turns)

            session.lay_out = wait
            history = [{"role": "user", "text": "hi"}, {"role": "assistant", "text": "so " * 500}] * 3
            edit, words = {"history": history, "id": 1}, {"text": "what is a cat", "final": True, "id": 2}
            await peer.say("edit", **edit)
            await asyncio.to_thread(entered.wait, 10)
            again = await join(server)  # the first connection is lost, and the client says both again
            await again.say("start", session=name, after=0)
            await again.say("edit", **edit)
            await again.say("hear", **words)
            await asyncio.sleep(0.2)
            opened.set()
            await again.until("committed")
            assert session.history[-2].text == "what is a cat"
            assert len(session.history) == len(history) + 2

    run(talk())
