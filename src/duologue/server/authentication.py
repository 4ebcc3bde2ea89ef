"""Who may connect: bearer tokens and web origins."""

import hmac
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from duologue.server.config import ServerConfig

_TOKEN_PROTOCOL = "openai-insecure-api-key."
"""A web page cannot set headers on a WebSocket; it names the token as a subprotocol, the way OpenAI's clients do."""


def subprotocols(connection: HTTPConnection) -> list[str]:
    """Those that a WebSocket asks for."""
    return [name.strip() for name in connection.headers.get("sec-websocket-protocol", "").split(",") if name.strip()]


def refusal(connection: HTTPConnection, config: ServerConfig) -> str | None:
    """Why `connection` may not be made; None if it may."""
    origin = connection.headers.get("origin")
    if origin is not None and not _is_own(origin, connection) and origin not in config.origins:
        return "this web origin is not allowed; the server's `origins` setting has those that are"
    if config.tokens and not any(_is_known(token, config) for token in _offered(connection)):
        return "a bearer token is needed: Authorization: Bearer …"
    return None


def _offered(connection: HTTPConnection) -> list[str]:
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    offered = [token.strip()] if scheme.lower() == "bearer" else []
    return offered + [
        name.removeprefix(_TOKEN_PROTOCOL) for name in subprotocols(connection) if name.startswith(_TOKEN_PROTOCOL)
    ]


def _is_known(token: str, config: ServerConfig) -> bool:
    # All are compared, each in constant time: how long it takes tells nothing about them.
    return sum(hmac.compare_digest(token.encode(), known.encode()) for known in config.tokens) > 0


def _is_own(origin: str, connection: HTTPConnection) -> bool:
    return urlsplit(origin).netloc == connection.headers.get("host")
