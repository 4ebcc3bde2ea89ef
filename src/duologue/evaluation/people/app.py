"""The web application of a study: its page, and what the page asks for. A rater sees no name of a system."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from duologue.core.events import Decided, Dropped, Held, as_dict
from duologue.errors import BadData, UsageError
from duologue.evaluation.people.ballots import Ballot, Ballots
from duologue.evaluation.people.criteria import QUESTIONS
from duologue.evaluation.people.study import Form, Study
from duologue.server.app import RequestLimit
from duologue.server.assets import FOLDER, PageFiles
from duologue.server.authentication import refusal
from duologue.server.chat import problem, read_body
from duologue.server.config import ServerConfig
from duologue.server.fields import Field, Table, read

PAGE = Path(__file__).with_name("page")
MOST_BYTES = 1 << 14
"""Of a request."""

_REQUESTS = 100  # simultaneous ones
_UNSEEN = (Decided, Held, Dropped)  # what a system thinks is not shown
_BALLOT: Table = {
    "rater": Field(str, is_needed=True, most=100),
    "example": Field(str, is_needed=True, most=300),
    "votes": Field(dict, is_needed=True),
}


class StudyServer:
    """What the routes share. `failure` and `drain` are those of `duologue.server.app.Server`."""

    failure: Exception | None = None

    def __init__(self, study: Study, config: ServerConfig, chance: random.Random) -> None:
        self._study, self._config, self._chance = study, config, chance
        self._ballots = Ballots(study.ballots)

    async def drain(self) -> None:
        """Nothing is to be waited for: every vote has been written when it is acknowledged."""

    def guard(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Wrap `handle`: refuse requests that are not allowed, and explain errors."""

        async def call(request: Request) -> Response:
            if (why := refusal(request, self._config)) is not None:
                return problem(401, "authentication_error", why, headers={"WWW-Authenticate": "Bearer"})
            try:
                return await handle(request)
            except ClientDisconnect:
                return Response(status_code=400)
            except BadData as error:
                return problem(500, "server_error", str(error))
            except UsageError as error:
                return problem(400, "invalid_request_error", str(error))

        return call

    async def study(self, _: Request) -> Response:
        """What raters do, and what they are asked."""
        return JSONResponse({"form": self._study.form, "criteria": QUESTIONS})

    async def join(self, _: Request) -> Response:
        """A new rater."""
        rater = await asyncio.to_thread(self._ballots.join, self._study.examples, self._study.pair, chance=self._chance)
        return JSONResponse({"rater": rater})

    async def next(self, request: Request) -> Response:
        """The first ballot of a rater that is not complete, with its conversations; 404 if there is no such rater."""
        try:
            ballots = await asyncio.to_thread(self._ballots.of, request.query_params.get("rater", ""))
        except BadData:
            raise
        except UsageError as error:
            return problem(404, "invalid_request_error", str(error))
        ballot = next((one for one in ballots if not one.is_complete), None)
        return JSONResponse(
            {
                "done": sum(one.is_complete for one in ballots),
                "of": len(ballots),
                "ballot": None if ballot is None else await asyncio.to_thread(self._shown, ballot),
            },
            headers={"Cache-Control": "no-store"},
        )

    async def cast(self, request: Request) -> Response:
        """Some or all votes of a ballot."""
        try:
            row = await read_body(request, MOST_BYTES)
        except BadData as error:
            return problem(400, "invalid_request_error", str(error))
        found = read(_BALLOT, row)
        ballot = await asyncio.to_thread(self._ballots.cast, found["rater"], found["example"], found["votes"])
        return JSONResponse({"votes": ballot.votes, "complete": ballot.is_complete})

    def _shown(self, ballot: Ballot) -> dict[str, Any]:
        sides = {"a": self._side(ballot.a, ballot.example), "b": self._side(ballot.b, ballot.example)}
        return {"example": ballot.example, "votes": ballot.votes, **sides}

    def _side(self, system: str, example: str) -> dict[str, Any]:
        """What the page needs for a conversation: the events of a recorded one, or where one can be had."""
        if self._study.form is Form.TALK:
            return {name: self._study.systems[system][name] for name in ("url", "kind")}
        events = self._study.record(system, example)
        return {"history": [], "events": [as_dict(event) for event in events if not isinstance(event, _UNSEEN)]}


def create_app(study: Study, config: ServerConfig, *, chance: random.Random | None = None) -> Starlette:
    """The application of a complete study; `chance` draws orders and sides.

    Raises:
        BadData: the ballots cannot be opened.
    """
    server = StudyServer(study, config, chance or random.SystemRandom())
    own = PageFiles(PAGE, tuple(_origins(study)))

    async def index(request: Request) -> Response:
        return await own.get_response("index.html", request.scope)

    routes = [
        Route("/api/study", server.guard(server.study)),
        Route("/api/join", server.guard(server.join), methods=["POST"]),
        Route("/api/next", server.guard(server.next)),
        Route("/api/ballot", server.guard(server.cast), methods=["POST"]),
        Route("/", index),
        Mount("/people", own),
        Mount("/page", PageFiles(FOLDER)),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(RequestLimit, most=_REQUESTS)])
    app.state.server = server
    return app


def _origins(study: Study) -> Iterator[str]:
    """Those of the servers that people talk to."""
    if study.form is Form.TALK:
        for facts in study.systems.values():
            parts = urlsplit(facts["url"])
            yield f"{parts.scheme}://{parts.netloc}"
            yield f"{parts.scheme.replace('http', 'ws')}://{parts.netloc}"
