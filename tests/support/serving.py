"""A server on loopback around a scripted model, for tests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
from starlette.applications import Starlette

from duologue.models.adapters import Adapter, prompted
from duologue.models.model import Model
from duologue.server.app import Server, create_app
from duologue.server.config import ServerConfig
from duologue.server.conversations import Conversations
from duologue.server.run import options
from duologue.text.template import Template
from duologue.voice.engines.defaults import Engines
from scripted import PROBE, Talk
from scripted_requests import on_requests

serves_requests = False  # as vLLM does; see `scripted_requests`


def scripted_model(answers: dict[str, str] | None = None, *, max_length: int = 2048, **more: Any) -> Model:
    """Characters are tokens, and words decide what is thought of them; see `scripted`."""
    talk = Talk(answers, **more)
    talk.engine.close()
    if serves_requests and not talk.listens:
        talk.backend = on_requests(talk.backend)
    adapter: Adapter = prompted()
    listener = None
    if talk.listens:
        format = Template.from_tokenizer(talk.other)
        listener = Model("scripted listener", talk.listener, format, adapter, PROBE, max_length)
    return Model("scripted", talk.backend, talk.template, adapter, PROBE, max_length, listener)


@dataclass
class Running:
    """A server that listens."""

    app: Starlette
    port: int
    listener: uvicorn.Server

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Cut all connections, as a network may do."""
        for connection in tuple(self.listener.server_state.connections):
            connection.transport.abort()

    @property
    def server(self) -> Server:
        return self.app.state.server

    @property
    def talks(self) -> Conversations:
        assert self.server.conversations is not None
        return self.server.conversations


@contextlib.asynccontextmanager
async def serving(
    model: Model | None = None, *, engines: Engines | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """A server in this event loop."""
    config = ServerConfig(**{"port": 0, "max_answer": 600, **settings})
    app = create_app(config, model=model or scripted_model(), engines=engines)
    async with running(app, config, lambda: app.state.server.is_ready) as server:
        yield server


@contextlib.asynccontextmanager
async def running(
    app: Starlette, config: ServerConfig, is_ready: Callable[[], bool] = lambda: True
) -> AsyncIterator[Running]:
    """`app` on loopback, in this event loop."""
    server = uvicorn.Server(uvicorn.Config(app, **options(config)))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve())
    while not server.started or not is_ready():
        await asyncio.sleep(0.01)
        if task.done():
            task.result()
    try:
        yield Running(app, server.servers[0].sockets[0].getsockname()[1], server)
    finally:
        server.should_exit = True
        await task


def serve_until_killed(port: Connection, folder: str) -> None:
    """A server with records in `folder`, in a process of its own; tells its port."""
    from duplex_peer import ANSWERS

    async def serve() -> None:
        async with serving(scripted_model(ANSWERS), record=folder, words_per_second=400.0) as server:
            port.send(server.port)
            await asyncio.Event().wait()

    asyncio.run(serve())
