"""The server process: it listens, and on SIGTERM it lets running answers end before it exits."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from duologue.errors import UsageError
from duologue.server import logs
from duologue.server.app import create_app
from duologue.server.config import ServerConfig
from duologue.server.protocols import LEAST_FRAMES_PER_S, LimitedHttp, LimitedWebSocket
from duologue.server.wire import PING_S

log = logging.getLogger("duologue.server")
_LAST_WORDS_S = 0.2  # in which clients are told about the shutdown
_ENOUGH_S = 5  # within which connections close


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or Ctrl-C drains the server, the second ends it at once."""

    def __init__(self, app: Starlette, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_draining = False
        self._app = app
        self._task: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the address."""
        await super().startup(sockets)
        if self.started:
            url = self._url()
            log.info("listening", extra={"url": url})
            if sys.stdout is not None and sys.stdout.isatty():
                print(f"The page is at {url}/ (Ctrl-C ends the server)", flush=True)

    def _url(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def on_tick(self, counter: int) -> bool:
        """Return whether to exit; called ten times per second."""
        return await super().on_tick(counter) or self._app.state.server.failure is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.is_draining or not self.started:
            super().handle_exit(sig, frame)
            return
        self.is_draining = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._begin_to_drain)  # also wakes the loop, which a signal alone may not

    def _begin_to_drain(self) -> None:
        self._task = asyncio.create_task(self._drain(), name="duologue-drain")

    async def _drain(self) -> None:
        try:
            await self._app.state.server.drain()
            await asyncio.sleep(_LAST_WORDS_S)
        finally:
            self.should_exit = True


def options(config: ServerConfig) -> dict[str, Any]:
    """The arguments of `uvicorn.Config`."""
    return {
        "host": config.host,
        "port": config.port,
        "log_config": None,
        "access_log": False,
        "http": partial(LimitedHttp, waiting={}),
        "ws": partial(LimitedWebSocket, frames_per_second=max(LEAST_FRAMES_PER_S, 4 * config.messages_per_second)),
        "ws_max_size": config.max_message,
        "ws_ping_interval": PING_S,
        "ws_ping_timeout": PING_S,
        "ws_per_message_deflate": False,
        "timeout_graceful_shutdown": _ENOUGH_S,
        "lifespan": "on",
    }


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets on all addresses of `host`, which do not listen yet. Port 0 takes a free one.

    Raises:
        UsageError: `host` has no address, or the port is in use or not allowed.
    """
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            made = socket.socket(family, kind, protocol)
            sockets.append(made)
            if os.name == "posix":  # elsewhere, it would let two servers share a port
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((address[0], port, *address[2:]))
            port = made.getsockname()[1]
    except OSError as error:
        for made in sockets:
            made.close()
        why = "it is in use; stop what uses it, or choose another --port" if error.errno == errno.EADDRINUSE else error
        raise UsageError(f"cannot listen on {host}, port {port}: {why}") from error
    return sockets


def serve(config: ServerConfig, make_app: Callable[[ServerConfig], Starlette] = create_app) -> None:
    """Serve until a signal ends it. `app.state.server` of what `make_app` makes has `failure` and `drain` as `Server`.

    Raises:
        UsageError: the address cannot be listened on. The model has not been loaded then.
        What `duologue.models.model.load` raises.
    """
    logs.configure()
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(each) for each in bind(config.host, config.port)]
        app = make_app(config)
        DrainingServer(app, uvicorn.Config(app, **options(config))).run(sockets)
    if app.state.server.failure is not None:
        raise app.state.server.failure
