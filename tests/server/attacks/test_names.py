"""DNS rebinding: a foreign name that leads to this server does not make its owner's page one of the server's own."""

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from duplex_peer import join, run
from serving import Running, serving

TOKEN = "a-secret-of-the-tests"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


async def status(server: Running, host: str, **headers: str) -> set[int]:
    """The answers that somebody gets who addresses the server by that name."""
    async with httpx.AsyncClient(base_url=server.http, headers={"Host": host, **headers}) as http:
        found = {(await http.get(path)).status_code for path in ("/v1/models", "/metrics")}
        found.add((await http.post("/v1/chat/completions", json=BODY)).status_code)
    for path in ("duplex", "realtime"):
        try:
            socket = await connect(
                f"ws://{host}/v1/{path}", host="127.0.0.1", port=server.port, additional_headers=headers
            )
            await socket.close()
            found.add(200)
        except InvalidStatus as error:
            found.add(error.response.status_code)
    return found


@pytest.mark.parametrize("name", ["evil.test", "127.0.0.1.evil.test", "localhost.evil.test", "[::1", "", "127.0.0.2"])
def test_a_foreign_name_is_refused_without_tokens(name: str) -> None:
    async def talk() -> None:
        async with serving() as server:
            host = f"{name}:{server.port}"
            async with httpx.AsyncClient(base_url=server.http, headers={"Host": host}) as http:
                for origin in (f"http://{host}", None):
                    headers = {} if origin is None else {"Origin": origin}
                    for path in ("/v1/models", "/metrics"):
                        assert (await http.get(path, headers=headers)).status_code in (400, 401)
            async with httpx.AsyncClient() as http:
                assert (await http.get(server.http + "/v1/models")).status_code == 200, "the honest client"
            await (await join(server)).start()

    run(talk())


def test_a_foreign_page_cannot_connect() -> None:
    async def talk() -> None:
        async with serving() as server:
            host = f"evil.test:{server.port}"
            assert await status(server, host, Origin=f"http://{host}") == {401, 403}
            local = f"localhost:{server.port}"
            assert await status(server, local, Origin=f"http://{local}") == {200}

    run(talk())


def test_the_scheme_of_an_origin_counts() -> None:
    async def talk() -> None:
        async with serving() as server:
            local = f"localhost:{server.port}"
            assert await status(server, local, Origin=f"https://{local}") == {401, 403}

    run(talk())


@pytest.mark.parametrize(
    "origin", ["http://[", "http://[::1", "//", "http://\x80", "null", "http://127.0.0.1:99999999"]
)
def test_an_origin_that_cannot_be_read_is_refused(origin: str) -> None:
    async def talk() -> None:
        async with serving() as server, httpx.AsyncClient(base_url=server.http) as http:
            headers = {"Origin": origin.encode("latin-1")}
            assert (await http.get("/v1/models", headers=headers)).status_code == 401
            assert (await http.get("/v1/models")).status_code == 200

    run(talk())


def test_names_can_be_configured_and_tokens_allow_all() -> None:
    async def talk() -> None:
        async with serving(hosts=("talk.example",)) as server:
            assert await status(server, f"talk.example:{server.port}") == {200}
        async with serving(tokens=(TOKEN,)) as server:
            assert await status(server, f"talk.example:{server.port}", Authorization=f"Bearer {TOKEN}") == {200}

    run(talk())


def test_allowed_origins_can_use_chat() -> None:
    async def talk() -> None:
        origins = ("https://app.example",)
        async with (
            serving(origins=origins, tokens=(TOKEN,)) as server,
            httpx.AsyncClient(base_url=server.http) as http,
        ):
            asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
            preflight = await http.options("/v1/chat/completions", headers={**asked, "Origin": "https://app.example"})
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == "https://app.example"
            headers = {"Origin": "https://app.example", "Authorization": f"Bearer {TOKEN}"}
            answer = await http.post("/v1/chat/completions", headers=headers, json=BODY)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            evil = await http.options("/v1/chat/completions", headers={**asked, "Origin": "https://evil.example"})
            assert "access-control-allow-origin" not in evil.headers

    run(talk())
