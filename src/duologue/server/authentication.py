"""Authentication: bearer tokens, web origins, and the host names by which the server may be addressed."""

import hashlib
import hmac
from urllib.parse import SplitResult, urlsplit

from starlette.requests import HTTPConnection

from duologue.server.config import LOOPBACK, ServerConfig

_TOKEN_PROTOCOL = "openai-insecure-api-key."
"""A web page cannot set headers on a WebSocket; it names the token as a subprotocol, the way OpenAI's clients do."""
_SCHEMES = {"ws": "http", "wss": "https"}


def subprotocols(connection: HTTPConnection) -> list[str]:
    """The subprotocols that a WebSocket requests."""
    return [name.strip() for name in connection.headers.get("sec-websocket-protocol", "").split(",") if name.strip()]


def refusal(connection: HTTPConnection, config: ServerConfig) -> str | None:
    """Why `connection` is refused; None if it is allowed."""
    if not config.tokens and not _is_known_name(connection.headers.get("host", ""), config):
        # A foreign name that leads here was made to do so by its owner, whose page would then be of the same origin.
        return "this server is not known by that name; the `hosts` setting lists its names"
    origin = connection.headers.get("origin")
    if origin is not None and origin not in config.origins and not _is_own(origin, connection):
        return "this web origin is not allowed; the `origins` setting lists those that are"
    if config.tokens and not any(_is_known(token, config) for token in _offered(connection)):
        return "a bearer token is needed: Authorization: Bearer …"
    return None


def client_of(connection: HTTPConnection, config: ServerConfig) -> str:
    """Who the client of an allowed connection is: a digest of its token, or its address if the server has no tokens."""
    known = next((token for token in _offered(connection) if config.tokens and _is_known(token, config)), None)
    if known is not None:
        return hashlib.sha256(known.encode()).hexdigest()
    return connection.client.host if connection.client is not None else ""


def _offered(connection: HTTPConnection) -> list[str]:
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    offered = [token.strip()] if scheme.lower() == "bearer" else []
    return offered + [
        name.removeprefix(_TOKEN_PROTOCOL) for name in subprotocols(connection) if name.startswith(_TOKEN_PROTOCOL)
    ]


def _is_known(token: str, config: ServerConfig) -> bool:
    # All are compared, each in constant time, so that timing reveals nothing about them.
    return sum(hmac.compare_digest(token.encode(), known.encode()) for known in config.tokens) > 0


def _is_known_name(host: str, config: ServerConfig) -> bool:
    parts = _split(f"//{host}")
    return parts is not None and parts.hostname in {name.lower() for name in (*LOOPBACK, config.host, *config.hosts)}


def _is_own(origin: str, connection: HTTPConnection) -> bool:
    """Whether the connection comes from a page that this server delivered."""
    parts, scheme = _split(origin), connection.url.scheme
    return (
        parts is not None
        and parts.netloc == connection.headers.get("host")
        and parts.scheme == _SCHEMES.get(scheme, scheme)
    )


def _split(address: str) -> SplitResult | None:
    try:
        return urlsplit(address)
    except ValueError:  # such as `http://[`
        return None
