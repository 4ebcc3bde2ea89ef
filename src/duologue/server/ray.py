"""A fleet of servers on Ray Serve (docs/fleet.md): `serve run duologue.server.ray:build record=redis://store:6379/0`.

Each replica is a server with an engine of its own. WebSockets pass through the proxies of Ray Serve, which lead all
connections of a conversation to one replica, by consistent hashing of the route in their address. Records are shared,
so that any replica can go on with a conversation if that one dies, is full, or is drained.
"""

import asyncio
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette

from duologue.errors import MissingDependency, UsageError, require
from duologue.server import logs
from duologue.server.app import Server, create_app
from duologue.server.config import ServerConfig

_POLL_S = 0.2
_LAST_WORDS_S = 10.0  # beyond `drain`, within which a replica ends
_MOST_WAITING = 100  # connections that wait at a proxy for a replica with room


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """How many replicas there are, and what each gets."""

    min_replicas: int = 1
    max_replicas: int = 1
    sessions: int = 0  # open connections of a replica that scaling aims at; 0: three quarters of `max_sessions`
    cpus: float = 1.0
    gpus: float = 0.0


def build(args: Mapping[str, Any], make_app: Callable[[ServerConfig], Starlette] = create_app) -> Any:
    """The application that Ray Serve deploys.

    `args` are the fields of `FleetConfig`, the settings of a server, and `config`, a file with such settings.

    Raises:
        UsageError: an unknown setting, or one that a fleet cannot use.
        MissingDependency: Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingDependency('a fleet needs Ray Serve: pip install "duologue[ray]"') from error
    rest = dict(args)
    path = rest.pop("config", None)
    fleet = _fleet({item.name: rest.pop(item.name) for item in fields(FleetConfig) if item.name in rest})
    config = ServerConfig.read(flags=rest, path=None if path is None else Path(path))
    require(bool(config.record), "replicas of a fleet share records; set record=FOLDER or record=redis://HOST:PORT/DB")
    deployment = serve.deployment(
        name="duologue",
        # A full replica refuses, and the proxy goes on to the next one.
        max_ongoing_requests=config.max_sessions,
        max_queued_requests=_MOST_WAITING,
        autoscaling_config={
            "min_replicas": fleet.min_replicas,
            "max_replicas": fleet.max_replicas,
            "target_ongoing_requests": fleet.sessions or 0.75 * config.max_sessions,
        },
        graceful_shutdown_wait_loop_s=_POLL_S,
        graceful_shutdown_timeout_s=config.drain + _LAST_WORDS_S,
        health_check_period_s=2.0,
        ray_actor_options={"num_cpus": fleet.cpus, "num_gpus": fleet.gpus},
        request_router_config={
            "request_router_class": "duologue.server.ray.RouteRouter",
            "request_router_kwargs": {"num_fallback_replicas": fleet.max_replicas},
        },
    )
    return deployment(serve.ingress()(Replica)).bind(config, make_app)


class Replica:
    """One server of a fleet, as Ray Serve runs it."""

    def __init__(self, config: ServerConfig, make_app: Callable[[ServerConfig], Starlette]) -> None:
        logs.configure()
        self._app = make_app(config)
        self._draining: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._app

    async def check_health(self) -> None:
        """Called every two seconds. The first time, wait for the model; a replica takes no connections before that.

        Raises:
            Exception: why the model cannot be loaded.
        """
        server: Server = self._app.state.server
        while server.conversations is None and server.failure is None:
            await asyncio.sleep(_POLL_S)
        if server.failure is not None:
            raise server.failure
        if self._draining is None:
            self._draining = asyncio.create_task(_drain(server), name="duologue-drain")


async def _drain(server: Server) -> None:
    """Wait until the replica is stopped, which gets no new connections then, and drain it."""
    while not _is_stopping():
        await asyncio.sleep(_POLL_S)
    await server.drain()


def _is_stopping() -> bool:
    """Whether Ray Serve is stopping this replica. It tells user code only when all connections are closed."""
    from ray._private.worker import global_worker

    actor = global_worker.actors[global_worker.actor_id]
    return bool(actor._replica_impl._shutting_down)


def __getattr__(name: str) -> Any:
    # Ray Serve imports the router by its name; this module does not need Ray before.
    if name == "RouteRouter":
        return _router()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _router() -> type[Any]:
    """The router of the proxies. The one of Ray Serve hashes a header, which web pages cannot send on WebSockets."""
    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

    class RouteRouter(ConsistentHashRouter):  # type: ignore[misc]
        """Leads connections with the same `route` in their address to the same replica."""

        def _routing_key(self, pending_request: Any) -> str | None:
            request = pending_request and pickle.loads(pending_request.args[0])
            query = request.asgi_scope.get("query_string", b"") if request else b""
            routes = parse_qs(query.decode("latin-1")).get("route")
            key: str | None = routes[0] if routes else super()._routing_key(pending_request)
            return key

    return RouteRouter


def _fleet(given: Mapping[str, Any]) -> FleetConfig:
    kinds: dict[str, Any] = {item.name: item.type for item in fields(FleetConfig)}
    try:
        fleet = FleetConfig(**{name: kinds[name](value) for name, value in given.items()})
    except (TypeError, ValueError) as error:
        raise UsageError(f"the settings of a fleet are numbers: {error}") from error
    require(1 <= fleet.min_replicas <= fleet.max_replicas, "a fleet has 1 ≤ min_replicas ≤ max_replicas")
    return fleet
