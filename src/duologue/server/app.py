"""The ASGI application: its routes, and one engine that lives as long as the application."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from duologue.models.model import NO_LISTENER, Model, load, named_listener, read_template
from duologue.server import assets, chat, openapi
from duologue.server.authentication import refusal, subprotocols
from duologue.server.config import ServerConfig
from duologue.server.conversations import Conversations
from duologue.server.duplex.connection import Duplex
from duologue.server.metrics import Metrics
from duologue.server.realtime.connection import Realtime
from duologue.server.stores import open_store
from duologue.server.voice import Voices
from duologue.server.wire import CloseCode
from duologue.voice.engines.defaults import Engines, load_engines

_REQUESTS = 100  # simultaneous HTTP requests, in addition to some for each conversation
log = logging.getLogger("duologue.server")


class Server:
    """The state that the routes share. `conversations` is None until the model is loaded."""

    def __init__(self, config: ServerConfig, model: Model | None, engines: Engines | None = None) -> None:
        self.config = config
        self._engines = engines
        self.metrics = Metrics()
        self.started = int(time.time())
        self.conversations: Conversations | None = None
        self.failure: Exception | None = None  # why `conversations` stays None
        self._connections: dict[Duplex | Realtime, None] = {}  # oldest first
        self._model = model
        self._ended = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Run the engine. The application is alive at once, and ready when the model is loaded."""
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
                    store = open_store(self.config)
                    voices = await stack.enter_async_context(_voices(self.config, self._engines, model))
                except Exception as error:
                    self.failure = error
                    log.error("the voice or the store cannot be opened", extra={"error": str(error)})
                    return
                engine = await stack.enter_async_context(model.engine())
                conversations = Conversations(model, engine, self.config, sink=self.metrics, voices=voices, store=store)
                self.metrics.watch(engine, lambda: len(conversations), lambda: conversations.num_refused)
                if model.speaker is not None:
                    self.metrics.watch_speaker(model.speaker.totals)
                sweeping = asyncio.create_task(conversations.sweep(), name="duologue-sweep")
                self.conversations = conversations
                log.info("ready", extra={"model": model.name, "backend": model.backend.info.name})
                await self._ended.wait()
                self.conversations = None
                sweeping.cancel()
                await conversations.aclose()
        finally:
            if self._model is None:
                model.close()

    @property
    def is_ready(self) -> bool:
        """Whether new conversations are admitted."""
        return self.conversations is not None and not self.conversations.is_draining

    async def drain(self) -> None:
        """Stop admitting conversations; return when the current ones have ended."""
        if self.conversations is not None:
            await self.conversations.drain()

    def request(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Wrap `handle`: refuse requests that are not allowed, or that arrive before the model is loaded."""

        async def call(request: Request) -> Response:
            self.metrics.requests.labels(request.url.path).inc()
            if (why := refusal(request, self.config)) is not None:
                self.metrics.denied.inc()
                return chat.problem(401, "authentication_error", why, headers={"WWW-Authenticate": "Bearer"})
            if self.conversations is None:
                return chat.problem(503, "server_error", "the model is being loaded", headers={"Retry-After": "2"})
            return await handle(request)

        return call

    def socket(self, name: str, make: type[Duplex] | type[Realtime], subprotocol: str) -> WebSocketRoute:
        """The route of a WebSocket protocol. `subprotocol` is accepted if the client requests it."""

        async def call(socket: WebSocket) -> None:
            self.metrics.requests.labels(name).inc()
            conversations = self.conversations
            if (why := refusal(socket, self.config)) is not None:
                self.metrics.denied.inc()
                await socket.send_denial_response(chat.problem(403, "authentication_error", why))
            elif conversations is None or not await self._has_room():
                why = "the model is being loaded" if conversations is None else "all connections are taken"
                headers = {"Retry-After": "2"}
                await socket.send_denial_response(chat.problem(503, "server_error", why, headers=headers))
            else:
                await socket.accept(subprotocol=subprotocol if subprotocol in subprotocols(socket) else None)
                with self.metrics.connections.labels(name).track_inprogress():
                    await self._connect(socket, make(socket, conversations, self.config))

        return WebSocketRoute(f"/v1/{name}", call)

    async def _has_room(self) -> bool:
        """Whether another WebSocket may be opened. If there are too many, one without a conversation is closed."""
        if len(self._connections) < self.config.max_connections:
            return True
        silent = next((connection for connection in self._connections if not connection.has_begun), None)
        if silent is None:
            return False
        self._connections.pop(silent)
        await silent.make_way()
        return True

    async def _connect(self, socket: WebSocket, connection: Duplex | Realtime) -> None:
        self._connections[connection] = None
        try:
            await connection.run()
        except Exception:
            log.exception("internal error", extra={"path": socket.url.path})
            with contextlib.suppress(RuntimeError):
                await socket.close(CloseCode.INTERNAL, "internal error")
        finally:
            self._connections.pop(connection, None)

    async def models(self, _: Request) -> Response:
        """The models that there are."""
        return chat.models(self._ready_conversations, self.started)

    async def complete(self, request: Request) -> Response:
        """Answer a chat request."""
        return await chat.complete(request, self._ready_conversations)

    async def tell_metrics(self, _: Request) -> Response:
        """The metrics, for Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def health(self, _: Request) -> Response:
        """Whether the process is alive."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Whether new conversations are admitted."""
        return JSONResponse({"ready": self.is_ready}, 200 if self.is_ready else 503)

    @property
    def _ready_conversations(self) -> Conversations:
        assert self.conversations is not None, "routes are guarded"
        return self.conversations


def create_app(
    config: ServerConfig | None = None, *, model: Model | None = None, engines: Engines | None = None
) -> Starlette:
    """The application, to be run by an ASGI server or mounted in another application.

    Without tokens, requests must address the server by a loopback name, or by one that `hosts` lists.

    If `model` or the voice `engines` are given, they are used and still belong to the caller. Otherwise, those that
    `config` names are loaded when the application starts, and `/ready` returns 503 until then. `app.state.server` is
    the `Server`. An application that mounts this one must run `app.router.lifespan_context(app)` in its own lifespan.
    """
    server = Server(config or ServerConfig(), model, engines)
    routes: list[BaseRoute] = [
        Route("/health", server.health),
        Route("/ready", server.ready),
        Route("/metrics", server.request(server.tell_metrics)),
        Route("/v1/models", server.request(server.models)),
        Route("/v1/chat/completions", server.request(server.complete), methods=["POST"]),
        server.socket("duplex", Duplex, "duologue"),
        server.socket("realtime", Realtime, "realtime"),
        *openapi.routes(),
        *assets.routes(),
    ]
    origins = list(server.config.origins)
    middleware = [
        Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"]),
        Middleware(RequestLimit, most=_REQUESTS + 4 * server.config.max_sessions),
    ]
    app = Starlette(routes=routes, lifespan=server.lifespan, middleware=middleware)
    app.state.server = server
    return app


class RequestLimit:
    """Refuses HTTP requests while too many are being answered, except those for health and readiness."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._num = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"].endswith(("/health", "/ready")):
            await self._app(scope, receive, send)
            return
        if self._num >= self._most:
            headers = {"Retry-After": "1", "Connection": "close"}
            await chat.problem(503, "server_error", "too many requests at once", headers=headers)(scope, receive, send)
            return
        self._num += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num -= 1


@contextlib.asynccontextmanager
async def _voices(config: ServerConfig, engines: Engines | None, model: Model) -> AsyncIterator[Voices | None]:
    """The voices of the server, or None if it has none; closed at the end of the context."""
    if engines is not None:
        yield Voices(engines, config.max_voices, model)
    elif not config.voice:
        yield None
    else:
        loaded = await load_engines(
            recogniser=config.recogniser or None, revision=config.recogniser_revision or None, voice=config.voice
        )
        try:
            yield Voices(loaded, config.max_voices, model)
        finally:
            await loaded.aclose()


def _load(config: ServerConfig) -> Model:
    speaker = config.remote_speaker()
    model = load(
        config.model if speaker is None else named_listener(config.listener),
        backend=config.backend,
        adapter=config.adapter,
        listener=config.listener if speaker is None else NO_LISTENER,
        allow_worse=config.allow_worse,
        weights=config.weights or None,
        chat_template=read_template(config.chat_template),
        revision=config.revision or None,
        context_length=config.context,
        threads=config.threads or None,
        device=config.device,
        sessions=config.max_sessions,
        speaks=speaker is None,
    )
    return model if speaker is None else model.spoken_by(speaker, max_length=config.context)
