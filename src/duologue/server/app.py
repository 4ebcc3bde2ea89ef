"""The ASGI application: which address leads where, around one engine that lives as long as it does."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from duologue.core.events import Event, Received, Said, as_dict
from duologue.core.trace import Pass, Sink
from duologue.engine.engine import Engine
from duologue.models.model import Model, load
from duologue.server import assets, chat
from duologue.server.authentication import refusal, subprotocols
from duologue.server.config import ServerConfig
from duologue.server.conversations import Conversations
from duologue.server.duplex.connection import Duplex
from duologue.server.metrics import Metrics
from duologue.server.realtime.connection import Realtime
from duologue.server.voice import Voices
from duologue.voice.engines.defaults import Engines, load_engines

log = logging.getLogger("duologue.server")


class Server:
    """What the routes share. `conversations` is None until the model is loaded."""

    def __init__(self, config: ServerConfig, model: Model | None, engines: Engines | None = None) -> None:
        self.config = config
        self._engines = engines
        self.metrics = Metrics()
        self.started = int(time.time())
        self.conversations: Conversations | None = None
        self.failure: Exception | None = None  # why there will be none
        self._model = model
        self._ended = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Run the engine. It is told to be there at once, and ready when the model is loaded."""
        running = asyncio.create_task(self._run(), name="duologue-server")
        try:
            yield
        finally:
            self._ended.set()
            await running

    async def _run(self) -> None:
        try:
            model = self._model if self._model is not None else await asyncio.to_thread(_load, self.config)
        except Exception as error:
            self.failure = error
            log.error("the model cannot be loaded", extra={"error": str(error)})
            return
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    voices = await stack.enter_async_context(_voices(self.config, self._engines))
                except Exception as error:
                    self.failure = error
                    log.error("the voice cannot be loaded", extra={"error": str(error)})
                    return
                engine = await stack.enter_async_context(Engine(model.backend))
                talks = Conversations(model, engine, self.config, sink=self._sink(), voices=voices)
                self.metrics.watch(engine.totals, lambda: len(talks), lambda: talks.num_refused)
                sweeping = asyncio.create_task(talks.sweep(), name="duologue-sweep")
                self.conversations = talks
                log.info("ready", extra={"model": model.name, "backend": model.backend.info.name})
                await self._ended.wait()
                self.conversations = None
                sweeping.cancel()
                for talk in talks:
                    talk.close("shutdown")
        finally:
            if self._model is None:
                model.close()

    @property
    def is_ready(self) -> bool:
        """Whether new conversations are taken."""
        return self.conversations is not None and not self.conversations.is_draining

    async def drain(self) -> None:
        """Take no new conversations; returns when those that there are have ended."""
        if self.conversations is not None:
            await self.conversations.drain()

    async def health(self, _: Request) -> Response:
        """The process lives."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """New conversations are taken."""
        return JSONResponse({"ready": self.is_ready}, 200 if self.is_ready else 503)

    async def tell_metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def models(self, request: Request) -> Response:
        """What there is to choose from."""
        return chat.models(self._talks, self.started)

    async def complete(self, request: Request) -> Response:
        """A chat request."""
        return await chat.complete(request, self._talks)

    async def duplex(self, socket: WebSocket) -> None:
        """A duplex connection."""
        await Duplex(socket, self._talks, self.config).run()

    async def realtime(self, socket: WebSocket) -> None:
        """A connection of a Realtime client."""
        await Realtime(socket, self._talks, self.config).run()

    def guarded(self, route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """`route` for those who may use it, once there is a model."""

        async def call(request: Request) -> Response:
            self.metrics.requests.labels(request.url.path).inc()
            if (why := refusal(request, self.config)) is not None:
                self.metrics.denied.inc()
                return chat.problem(401, "authentication_error", why, headers={"WWW-Authenticate": "Bearer"})
            if self.conversations is None:
                return chat.problem(503, "server_error", "the model is being loaded", headers={"Retry-After": "2"})
            return await route(request)

        return call

    def guarded_socket(
        self, name: str, route: Callable[[WebSocket], Awaitable[None]], *, protocols: tuple[str, ...] = ()
    ) -> Callable[[WebSocket], Awaitable[None]]:
        """The same for WebSockets. Of the subprotocols that are asked for, the first of `protocols` is agreed to."""

        async def call(socket: WebSocket) -> None:
            self.metrics.requests.labels(name).inc()
            why = refusal(socket, self.config)
            if why is not None or self.conversations is None:
                self.metrics.denied.inc(why is not None)
                await socket.send_denial_response(
                    chat.problem(403, "authentication_error", why)
                    if why
                    else chat.problem(503, "server_error", "loading")
                )
                return
            agreed = next((name for name in subprotocols(socket) if name in protocols), None)
            await socket.accept(subprotocol=agreed)
            with self.metrics.connections.labels(name).track_inprogress():
                try:
                    await route(socket)
                except Exception:
                    log.exception("a mistake of ours", extra={"route": name})
                    with contextlib.suppress(RuntimeError):
                        await socket.close(1011, "a mistake of the server's")

        return call

    @property
    def _talks(self) -> Conversations:
        assert self.conversations is not None, "routes are guarded"
        return self.conversations

    def _sink(self) -> Sink:
        if not self.config.log_text:
            return self.metrics

        def sink(record: Pass | Event) -> None:
            self.metrics(record)
            if isinstance(record, Received | Said):
                log.info("text", extra=as_dict(record))

        return sink


def create_app(
    config: ServerConfig | None = None, *, model: Model | None = None, engines: Engines | None = None
) -> Starlette:
    """The application, to be run by an ASGI server or mounted in another application.

    `model` is used if it is given, and stays the caller's, and so are the `engines` of the voice; otherwise those that
    `config` names are loaded when the application starts, while `/ready` says 503. `app.state.server` is its `Server`.
    Its lifespan must run: whatever mounts this application has to run `app.router.lifespan_context(app)` in its own.
    """
    server = Server(config or ServerConfig(), model, engines)
    routes: list[BaseRoute] = [
        Route("/health", server.health),
        Route("/ready", server.ready),
        Route("/metrics", server.guarded(server.tell_metrics)),
        Route("/v1/models", server.guarded(server.models)),
        Route("/v1/chat/completions", server.guarded(server.complete), methods=["POST"]),
        WebSocketRoute("/v1/duplex", server.guarded_socket("duplex", server.duplex, protocols=("duologue",))),
        WebSocketRoute("/v1/realtime", server.guarded_socket("realtime", server.realtime, protocols=("realtime",))),
        *assets.routes(),
    ]
    app = Starlette(routes=routes, lifespan=server.lifespan)
    app.state.server = server
    return app


@contextlib.asynccontextmanager
async def _voices(config: ServerConfig, engines: Engines | None) -> AsyncIterator[Voices | None]:
    """What conversations by voice share, while it lasts; None if there are none."""
    if engines is not None:
        yield Voices(engines, config.max_voices)
    elif not config.voice:
        yield None
    else:
        loaded = await load_engines(recogniser=config.recogniser or None, voice=config.voice)
        try:
            yield Voices(loaded, config.max_voices)
        finally:
            await loaded.aclose()


def _load(config: ServerConfig) -> Model:
    return load(
        config.model,
        backend=config.backend,
        adapter=config.adapter,
        weights=config.weights or None,
        revision=config.revision or None,
        context_length=config.context,
        threads=config.threads or None,
        device=config.device,
        sessions=config.max_sessions,
    )
