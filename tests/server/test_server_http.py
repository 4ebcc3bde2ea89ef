"""The server's HTTP side, with OpenAI's own client where there is one, and who is let in."""

import asyncio
import json
import logging
from typing import Any

import httpx
import openai
import pytest
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import InvalidStatus

from duologue.server import logs
from duplex_peer import LONG, join, run
from serving import Running, scripted_model, serving

TOKEN = "a-secret-of-the-tests"


def client(server: Running, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url=server.http + "/v1", max_retries=0)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_chat_completions_whole_and_streamed():
    async def talk() -> None:
        async with serving(scripted_model({"tell me a lot": LONG})) as server, client(server) as ai:
            whole = await ai.chat.completions.create(model="any", messages=[user("tell me a lot")])
            assert whole.choices[0].message.content == LONG
            assert whole.choices[0].finish_reason == "stop"
            assert whole.usage.completion_tokens == len(LONG)
            assert whole.usage.total_tokens == whole.usage.prompt_tokens + len(LONG)
            messages = [
                {"role": "system", "content": "You are terse."}, user("hi"), {"role": "assistant", "content": "hello"},
                {"role": "user", "content": [{"type": "text", "text": "tell me "}, {"type": "text", "text": "a lot"}]},
            ]  # fmt: skip
            stream = await ai.chat.completions.create(
                model="any", messages=messages, stream=True, max_tokens=20, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
            assert text == LONG[:20]
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
            assert chunks[-1].usage.completion_tokens == 20
            assert [model.id async for model in ai.models.list()] == ["scripted"]
            assert not len(server.talks)
            assert server.talks.model.backend.usage().num_seqs == 0

    run(talk())


BAD: list[dict[str, Any]] = [
    {"messages": []},
    {"messages": "hi"},
    {"messages": [user("")]},
    {"messages": [user("[NOISE]")]},
    {"messages": [user("hi"), {"role": "assistant", "content": "x"}]},
    {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    {"messages": [user("hi")], "n": 2},
    {"messages": [user("hi")], "tools": [{"type": "function"}]},
    {"messages": [user("hi")], "temperature": "hot"},
    {"messages": [user("hi")], "max_tokens": 0},
    {"messages": [user("hi")], "stream": "yes"},
    {"messages": [user("x" * 3000)]},
    {"messages": [user("hi"), {"role": "assistant", "content": "x" * 3000}, user("hi")]},
]


def test_chat_requests_that_cannot_be_are_said():
    async def talk() -> None:
        async with serving() as server, httpx.AsyncClient(base_url=server.http) as http:
            for body in BAD:
                answer = await http.post("/v1/chat/completions", json=body)
                assert answer.status_code == 400, body
                assert answer.json()["error"]["type"] == "invalid_request_error"
            assert (await http.post("/v1/chat/completions", content=b"{")).status_code == 400
            assert (await http.post("/v1/chat/completions", content=b"x" * 2_000_000)).status_code == 400
            assert not len(server.talks)

    run(talk())


def test_who_stops_waiting_frees_the_place():
    async def talk() -> None:
        answers = {"tell me a lot": "word " * 5000}
        async with serving(scripted_model(answers, max_length=60_000), max_answer=50_000) as server:
            async with httpx.AsyncClient(base_url=server.http) as http:
                body = {"messages": [user("tell me a lot")]}
                with pytest.raises(httpx.ReadTimeout):
                    await http.post("/v1/chat/completions", json=body, timeout=0.3)
                async with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
                    async for _ in answer.aiter_lines():
                        break
            while len(server.talks):
                await asyncio.sleep(0.05)

    run(talk())


def test_a_full_server_says_so():
    async def talk() -> None:
        async with serving(max_sessions=1) as server, client(server) as ai:
            peer = await join(server)
            await peer.start()
            with pytest.raises(openai.InternalServerError, match="slots are taken"):
                await ai.chat.completions.create(model="any", messages=[user("hi")])

    run(talk())


def test_health_readiness_and_metrics():
    async def talk() -> None:
        async with serving() as server, httpx.AsyncClient(base_url=server.http) as http:
            peer = await join(server)
            await peer.start(settings={"hearing": "shown"})
            await peer.say("hear", text="what is a cat", final=True)
            await peer.until("committed")
            assert (await http.get("/health")).json() == {"status": "ok"}
            assert (await http.get("/ready")).json() == {"ready": True}
            text = (await http.get("/metrics")).text
            assert "duologue_sessions 1.0" in text
            assert 'duologue_decision_seconds_count{state="process"} 1.0' in text
            assert 'duologue_connections{protocol="duplex"} 1.0' in text
            passes = next(line for line in text.splitlines() if line.startswith("duologue_passes_total"))
            assert float(passes.split()[1]) == server.talks.engine.totals.passes > 0
            assert "duologue_judged_total 1.0" in text
            assert "duologue_judged_apart_total 0.0" in text, "a script needs no pass of its own"
            assert float(next(x for x in text.splitlines() if x.startswith("duologue_kv_entries ")).split()[1]) > 0
            await server.server.drain()
            assert (await http.get("/ready")).status_code == 503

    run(talk())


def test_a_token_opens_every_door_but_health():
    async def talk() -> None:
        async with serving(tokens=("another-secret", TOKEN)) as server, httpx.AsyncClient(base_url=server.http) as http:
            for path in ("/v1/models", "/metrics"):
                assert (await http.get(path)).status_code == 401
                for wrong in (
                    "",
                    "Bearer",
                    "Bearer guess",
                    f"Basic {TOKEN}",
                    f"Bearer {TOKEN}x",
                    f"Bearer {TOKEN[:-1]}",
                ):
                    assert (await http.get(path, headers={"Authorization": wrong})).status_code == 401
                assert (await http.get(path, headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 200
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/ready")).status_code == 200
            with pytest.raises(InvalidStatus):
                await join(server)
            with pytest.raises(InvalidStatus):
                await join(server, subprotocols=["duologue", "openai-insecure-api-key.guess"])
            peer = await join(
                server, subprotocols=["duologue", f"openai-insecure-api-key.{TOKEN}"]
            )  # what a page can do
            assert peer.socket.subprotocol == "duologue"
            await peer.start()
            await join(server, additional_headers={"Authorization": f"Bearer {TOKEN}"})
            async with client(server, TOKEN) as ai:
                assert (await ai.models.list()).data

    run(talk())


def test_other_web_origins_are_kept_out():
    async def talk() -> None:
        async with serving(origins=("https://app.example",)) as server:
            url = server.http.replace("http", "ws") + "/v1/duplex"
            for forged in ("https://evil.example", "null", "http://127.0.0.1:1", f"http://evil.example/{server.http}"):
                with pytest.raises(InvalidStatus):
                    await open_socket(url, additional_headers={"Origin": forged})
            for own in (server.http, "https://app.example"):
                await (await open_socket(url, additional_headers={"Origin": own})).close()

    run(talk())


def test_the_log_has_no_text_unless_it_is_asked_for(caplog):
    async def talk(*, log_text: bool) -> None:
        async with serving(log_text=log_text) as server:
            peer = await join(server)
            await peer.start(settings={"hearing": "shown"})
            await peer.say("hear", text="what is a platypus", final=True)
            await peer.until("committed")

    caplog.set_level(logging.INFO)  # as `logs.configure` has it, and more of uvicorn
    for log_text in (False, True):
        caplog.clear()
        run(talk(log_text=log_text))
        lines = [logs.JsonFormatter().format(record) for record in caplog.records]
        assert lines
        assert all("message" in json.loads(line) for line in lines)
        assert any("platypus" in line for line in lines) is log_text
