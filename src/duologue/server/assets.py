"""The server's web page: its files, and the headers with which they are served."""

import os
from collections.abc import Iterable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).with_name("page")

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Said here: what the machine would guess depends on how it is set up, and modules are refused as plain text."""


def headers(connect: Iterable[str] = ()) -> dict[str, str]:
    """Headers of a page's files. The page may connect to its own server, and to the origins `connect`."""
    policy = (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        " ".join(("connect-src 'self'", *connect)),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return {
        "content-security-policy": "; ".join(policy),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",  # cached, but revalidated by ETag, so that a new version is seen at once
    }


class PageFiles(StaticFiles):
    """The files of a page, with the headers that keep others out; see `headers`."""

    def __init__(self, folder: Path, connect: Iterable[str] = ()) -> None:
        super().__init__(directory=folder)
        self._headers = headers(connect)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        if isinstance(response, FileResponse):
            response.headers["content-type"] = _TYPES.get(Path(full_path).suffix, "application/octet-stream")
        response.headers.update(self._headers)
        return response


def routes() -> list[BaseRoute]:
    """The page at `/`, and its parts below `/page`. They need no token, since they contain no secrets."""
    files = PageFiles(FOLDER)

    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    return [Route("/", index), Mount("/page", files)]
