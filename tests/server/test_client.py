"""The client of `/v1/duplex`, where connections and servers come and go."""

import asyncio

import pytest

from duologue.client import Talk, connect
from duologue.core.events import Committed, Event, Said
from duologue.errors import RemoteError
from duologue.server.folder_store import FolderStore
from duplex_peer import ANSWERS, run
from serving import scripted_model, serving

STARTED = {"type": "started", "session": "s", "model": "m", "number": 0, "taken": 0, "missed": False}


async def until(talk: Talk, kind: type[Event]) -> Event:
    """The next event of this kind."""
    async with asyncio.timeout(10):
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
