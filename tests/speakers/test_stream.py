"""What comes from an endpoint is read whatever way it is cut into pieces, and what is none of an answer is refused."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from duologue.core.backend import Sampling
from duologue.core.config import SessionConfig
from duologue.errors import RemoteError, UsageError
from duologue.speakers.completion import _before
from duologue.speakers.endpoint import Endpoint, Question
from duologue.speakers.stream import Part, StreamReader, message_of, read_whole
from duologue.types import Role, Turn
from endpoint import row

BODY = (
    ": comment\r\n\r\nevent: x\nid: 1\n"
    + row("Grüße, ")
    + 'data: {"choices": [], "usage": {}}\n\n'
    + row("日本語 🎉").replace("\\u", "\\u")
    + json.dumps({"x": 1})
    + "\n"
    + row("", "stop")
    + "data: [DONE]\n\n"
)


def read(data: bytes, size: int) -> list[Part]:
    reader = StreamReader()
    parts = [part for start in range(0, len(data), size) for part in reader.feed(data[start : start + size])]
    return parts if reader.is_over else [*parts, *reader.close()]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_is_read_however_it_is_cut(size: int):
    parts = read(BODY.encode(), size)
    assert "".join(part.text for part in parts) == "Grüße, 日本語 🎉"
    assert [part.reason for part in parts if part.reason] == ["stop"]


def test_raw_characters_are_read_too():
    raw = 'data: {"choices":[{"delta":{"content":"日本"},"finish_reason":"length"}]}\n\n'.encode()
    assert read(raw, 1) == [Part("日本"), Part("", "length")], "without [DONE], the reason ends it"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (row("Hello "), "broke off"),
        (row("Hello ")[:-20], "broke off"),
        ("", "broke off"),
        ("data: <html>\n\n", "other than JSON"),
        ("data: [1]\n\n", "other than a chat completion"),
        ('data: {"error": {"message": "out of\\nmemory"}}\n\n', "out of memory"),
        ('data: {"error": "no"}\n\n', "no"),
        ("data: " + "[" * 100_000 + "\n\n", "other than JSON"),
        ("data: " + "x" * (1 << 21), "a line of more than"),
    ],
)
def test_what_is_no_complete_answer_is_refused(data: str, words: str):
    with pytest.raises(RemoteError, match=words):
        read(data.encode(), 1 << 16)


def test_rows_about_something_else_say_nothing():
    odd = [
        {"choices": [{}]}, {"choices": [{"delta": None}]}, {"choices": [{"delta": {"content": 3}}]}, {"choices": "x"},
        {"choices": [{"delta": {"reasoning_content": "hm"}}]}, {},
    ]  # fmt: skip
    data = "".join(f"data: {json.dumps(one)}\n\n" for one in odd) + row("a", "stop")
    assert read(data.encode(), 100) == [Part("a"), Part("", "stop")]


def test_an_answer_in_one_piece():
    body = {"choices": [{"message": {"content": "Hello."}, "finish_reason": "length"}]}
    assert list(read_whole(json.dumps(body).encode())) == [Part("Hello."), Part("", "length")]
    for wrong in ({"choices": []}, {"choices": [{"message": {"content": None}}]}):
        with pytest.raises(RemoteError, match="no text"):
            list(read_whole(json.dumps(wrong).encode()))


@pytest.mark.parametrize(
    ("body", "said"),
    [(b'{"error": {"message": "a\\n b"}}', "a b"), (b'{"error": "c"}', "c"), (b"<html>", ""), (b'{"error": []}', "")],
)
def test_what_an_endpoint_says_about_an_error(body: bytes, said: str):
    assert message_of(body) == said


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1/chat/completions"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1/chat/completions"),
        ("https://x.example/api/v3", "https://x.example/api/v3/chat/completions"),
        ("https://x.example/v1/chat/completions", "https://x.example/v1/chat/completions"),
        ("https://x.example/deployments/d/?version=2", "https://x.example/deployments/d/chat/completions?version=2"),
    ],
)
def test_addresses(url: str, address: str):
    assert Endpoint(url, "m").address == address


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "127.0.0.1:8000"}, "not an address"),
        ({"url": "ftp://x"}, "not an address"),
        ({"url": "http://key@x"}, "does not belong into"),
        ({"model": " "}, "--speaker-model"),
        ({"key": "two words"}, "cannot be sent"),
        ({"key": "ключ"}, "cannot be sent"),
        ({"most_silence": 0.0}, "must be positive"),
    ],
)
def test_endpoints_that_cannot_be(options: dict[str, object], words: str):
    with pytest.raises(UsageError, match=words):
        Endpoint(**{"url": "http://x", "model": "m", **options})  # type: ignore[arg-type]


def test_a_key_is_not_shown():
    endpoint = Endpoint("http://x", "m", "secret-key")
    assert "secret" not in repr(endpoint)
    assert endpoint.hidden("the key secret-key is wrong") == "the key *** is wrong"


SAID = [Turn(Role.USER, "one"), Turn(Role.USER, "two"), Turn(Role.ASSISTANT, ""), Turn(Role.USER, "three")]


def test_the_request_has_the_conversation_as_it_was_heard():
    config = SessionConfig(max_answer=7, sampling=Sampling(temperature=0.5, top_p=0.9), seed=3)
    body = Question("be terse", SAID).body(Endpoint("http://x", "m"), config)
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "be terse"}, {"role": "user", "content": "one\ntwo\nthree"}],
        "stream": True,
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
    }


def test_an_answer_goes_on_as_a_prefix_or_in_words():
    prefixed = Question(None, SAID[:1], "It is").body(Endpoint("http://x", "m", continues=True), SessionConfig())
    assert prefixed["messages"][-1] == {"role": "assistant", "content": "It is"}
    assert (prefixed["continue_final_message"], prefixed["add_generation_prompt"]) == (True, False)
    asked = Question(None, SAID[:1], "It is").body(Endpoint("http://x", "m"), SessionConfig())
    assert [message["role"] for message in asked["messages"]] == ["user", "assistant", "user"]
    assert "continue_final_message" not in asked
    unasked = Question(None, []).body(Endpoint("http://x", "m"), SessionConfig())
    assert [message["role"] for message in unasked["messages"]] == ["user"]


@pytest.mark.parametrize("num_turns", range(5))
def test_a_cut_that_comes_together_with_data_is_not_lost(num_turns):
    async def cut() -> None:
        arrived = asyncio.get_running_loop().create_future()

        async def chunks() -> AsyncIterator[bytes]:
            yield await arrived

        reading = asyncio.create_task(_before(5.0, chunks()))
        await asyncio.sleep(0.01)
        arrived.set_result(b"data")
        for _ in range(num_turns):
            await asyncio.sleep(0)
        if reading.cancel():  # it was still reading
            with pytest.raises(asyncio.CancelledError):
                await reading

    asyncio.run(cut())
