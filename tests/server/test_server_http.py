"""The server's HTTP side, with OpenAI's own client where there is one, and who is let in."""

import asyncio
import json
import logging
from dataclasses import asdict
from typing import Any

import httpx
import openai
import pytest
from starlette.routing import Route
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import InvalidStatus

from duologue.models.model import load
from duologue.server import chat, logs
from duologue.speakers.endpoint import Endpoint
from duologue.speakers.remote import RemoteSpeaker
from duplex_peer import LONG, join, run
from endpoint import says, standing_in
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
    {"messages": [user("hi")], "n": 99},
    {"messages": [user("hi")], "stop": ""},
    {"messages": [user("hi")], "stop": ["a", "b", "c", "d", "e"]},
    {"messages": [user("hi")], "top_logprobs": 3},
    {"messages": [user("hi")], "logprobs": True, "top_logprobs": 21},
    {"messages": [user("hi")], "tool_choice": "required"},
    {"messages": [user("hi")], "response_format": {"type": "xml"}},
    {"messages": [user("hi")], "response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
    {"messages": [user("hi")], "response_format": {"type": "json_object"}},  # this model does not run on llama.cpp
    {
        "messages": [user("hi")],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"items": {"type": "string", "minLength": 1_000_000_000}}},
        },
    },
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


def test_defaults_that_clients_send_are_accepted():
    async def talk() -> None:
        async with serving(scripted_model({"hi": "Hello."})) as server, httpx.AsyncClient(base_url=server.http) as http:
            body = {
                "messages": [user("hi")], "n": 1, "response_format": {"type": "text"}, "tool_choice": "none",
                "stop": None,
                "tools": [], "logprobs": False, "top_logprobs": None, "modalities": ["text"], "frequency_penalty": 0,
                "parallel_tool_calls": True, "function_call": "none", "user": "somebody",
            }  # fmt: skip
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == "Hello."

    run(talk())


@pytest.mark.parametrize(
    ("stops", "expected"),
    [("word7", "Well, word0 word1 word2 word3 word4 word5 word6 "), ([" word3", "word5"], "Well, word0 word1 word2"),
     (["nowhere", "word599"], LONG), (["Well"], ""), (LONG[-3:], LONG[:-3])],
)  # fmt: skip
def test_an_answer_ends_before_a_stop_sequence(stops, expected):
    async def talk() -> None:
        async with serving(scripted_model({"tell me a lot": LONG})) as server, client(server) as ai:
            asked: Any = {"model": "any", "messages": [user("tell me a lot")], "stop": stops}
            whole = await ai.chat.completions.create(**asked)
            assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (expected, "stop")
            chunks = [chunk async for chunk in await ai.chat.completions.create(**asked, stream=True)]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
            assert chunks[-1].choices[0].finish_reason == "stop"
            while len(server.talks):
                await asyncio.sleep(0.01)

    run(talk())


def test_several_answers_with_log_probabilities():
    async def talk() -> None:
        async with serving(scripted_model({"tell me a lot": LONG})) as server, client(server) as ai:
            asked: Any = {"model": "any", "messages": [user("tell me a lot")], "n": 3, "logprobs": True}
            whole = await ai.chat.completions.create(**asked, top_logprobs=1, stop="word2")
            assert [choice.index for choice in whole.choices] == [0, 1, 2]
            for choice in whole.choices:
                assert choice.logprobs is not None
                told = choice.logprobs.content or []
                assert "".join(token.token for token in told) == choice.message.content == "Well, word0 word1 "
                assert all(bytes(token.bytes or []).decode() == token.token for token in told)
                assert {token.logprob for token in told} == {0.0}
                assert [token.top_logprobs[0].token for token in told] == [token.token for token in told]
            assert whole.usage is not None
            assert whole.usage.completion_tokens >= 3 * len("Well, word0 word1 ")
            stream = await ai.chat.completions.create(**asked, max_tokens=9, stream=True)
            texts = dict.fromkeys(range(3), "")
            tokens = dict.fromkeys(range(3), "")
            async for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
                    tokens[choice.index] += "".join(
                        t.token for t in (choice.logprobs and choice.logprobs.content) or []
                    )
            assert set(texts.values()) == set(tokens.values()) == {LONG[:9]}
            assert not len(server.talks)

    run(talk())


def test_too_many_answers_for_the_server_are_refused_and_leave_nothing():
    async def talk() -> None:
        async with (
            serving(scripted_model({"hi": "Hello."}), max_sessions=2) as server,
            httpx.AsyncClient(base_url=server.http) as http,
        ):
            answer = await http.post("/v1/chat/completions", json={"messages": [user("hi")], "n": 3})
            assert answer.status_code == 503
            assert not len(server.talks)
            answer = await http.post("/v1/chat/completions", json={"messages": [user("hi")], "n": 2})
            assert [choice["message"]["content"] for choice in answer.json()["choices"]] == ["Hello.", "Hello."]

    run(talk())


def test_the_endpoints_are_described():
    async def talk() -> None:
        async with serving(tokens=(TOKEN,)) as server, httpx.AsyncClient(base_url=server.http) as http:
            found = (await http.get("/openapi.json")).json()
            assert found["openapi"].startswith("3.1")
            assert set(found["paths"]) == {
                route.path for route in server.app.routes if isinstance(route, Route) and route.path not in HIDDEN
            }
            body = found["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"][
                "schema"
            ]
            assert {*chat.BODY} < set(body["properties"])
            assert all("description" in field for field in body["properties"].values())
            page = await http.get("/docs")
            assert page.headers["content-type"].startswith("text/html")
            assert "<script" not in page.text
            assert all(f"<td>{name}</td>" in page.text for name in body["properties"])
            assert (await http.get("/page/docs.css")).status_code == 200

    run(talk())


HIDDEN = {"/", "/docs", "/openapi.json"}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "size": {"enum": ["small", "large"]},
        "rivers": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "size", "rivers"],
}


@pytest.mark.smollm2
@pytest.mark.llamacpp
def test_an_answer_of_a_real_model_follows_a_json_schema():
    pytest.importorskip("llama_cpp")
    model = load(backend="llamacpp", context_length=512, sessions=3, threads=1)
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}

    async def talk() -> None:
        async with serving(model, max_sessions=3, max_answer=200) as server, client(server) as ai:
            asked: Any = {"model": "any", "messages": [user("Describe the city of Paris.")], "response_format": wanted}
            for more in ({}, {"temperature": 1.0, "seed": 3, "n": 2}):
                for choice in (await ai.chat.completions.create(**asked, **more)).choices:
                    found = json.loads(choice.message.content or "")
                    assert set(found) == {"city", "size", "rivers"}
                    assert found["size"] in ("small", "large")
                    assert 1 <= len(found["rivers"]) <= 2
                    assert choice.finish_reason == "stop"
            answer = await ai.chat.completions.create(**{**asked, "response_format": {"type": "json_object"}})
            assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
            whole = await ai.chat.completions.create(
                model="any",
                messages=[user("What is the capital of France?")],
                logprobs=True,
                top_logprobs=2,
                max_tokens=8,
            )
            for token in whole.choices[0].logprobs.content:
                first, second = token.top_logprobs
                assert token.logprob == first.logprob >= second.logprob, "greedy"
                assert token.logprob <= 0
            with pytest.raises(openai.BadRequestError, match="cannot be turned into a grammar"):
                await ai.chat.completions.create(
                    **{
                        **asked,
                        "response_format": {**wanted, "json_schema": {"schema": {"$ref": "https://x.example/y"}}},
                    }
                )

    try:
        run(talk())
    finally:
        model.close()


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


def test_metrics_count_what_a_remote_speaker_has_done():
    async def talk() -> None:
        async with standing_in(says("It is ", "a cat.")) as stand_in:
            speaker = RemoteSpeaker(Endpoint(stand_in.url, "a-model"))
            model = scripted_model().spoken_by(speaker, max_length=2048)
            async with serving(model) as server, httpx.AsyncClient(base_url=server.http) as http:
                peer = await join(server)
                await peer.start(settings={"hearing": "shown"})
                await peer.say("hear", text="what is it", final=True)
                await peer.until("committed")
                lines = (await http.get("/metrics")).text.splitlines()
                found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("duologue_speaker"))
                totals = asdict(speaker.totals)
                assert {name: float(found[f"duologue_speaker_{name}_total"]) for name in totals} == totals
                assert (totals["requests"], totals["tokens"] >= 2) == (1, True)

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


def test_a_server_that_drains_answers_chat_requests_to_the_end():
    async def talk() -> None:
        async with (
            serving(scripted_model({"tell me a lot": LONG})) as server,
            httpx.AsyncClient(base_url=server.http) as http,
        ):
            body = {"messages": [user("tell me a lot")]}
            asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            while not len(server.talks):
                await asyncio.sleep(0)
            await server.server.drain()
            answer = await asking
            assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, LONG)

    run(talk())
