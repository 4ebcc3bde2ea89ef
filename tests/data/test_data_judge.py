"""The judge against a real HTTP server on this machine that answers with chat completions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chat_server import ChatServer, completion, serving
from duologue.data.chat_client import NUM_TRIES
from duologue.data.device_directed import PROMPT, Addressee, Judge
from duologue.errors import BadData, RemoteError, UsageError


def by_a_word(text: str) -> tuple[int, str]:
    return 200, completion("ASSISTANT" if "timer" in text else "People.")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(by_a_word) as found:
        yield found


def judge(server: ChatServer, folder: Path, waits: list[float] | None = None, **settings: Any) -> Judge:
    waits = [] if waits is None else waits
    return Judge(server.url, "reader", cache=folder / "verdicts.jsonl", sleep=waits.append, **settings)


def test_it_asks_in_the_shape_of_chat_completions(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("READER_KEY", "abc")
    assert judge(server, tmp_path, api_key_env="READER_KEY").addressee("set a timer") is Addressee.ASSISTANT
    [request] = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["key"] == "Bearer abc"
    assert request["model"] == "reader"
    assert request["messages"] == [{"role": "system", "content": PROMPT}, {"role": "user", "content": "set a timer"}]


@pytest.mark.parametrize(
    ("answer", "addressee"),
    [
        ("ASSISTANT", Addressee.ASSISTANT),
        (" **people**.\n", Addressee.PEOPLE),
        ("<think>The assistant could know that.</think>\nPEOPLE", Addressee.PEOPLE),
        ("either ASSISTANT or PEOPLE", Addressee.UNCLEAR),
        ("I cannot say", Addressee.UNCLEAR),
        ("", Addressee.UNCLEAR),
        (None, Addressee.UNCLEAR),
    ],
)
def test_answers_are_read_for_one_word(
    server: ChatServer, tmp_path: Path, answer: str | None, addressee: Addressee
) -> None:
    server.reply = lambda _: (200, completion(answer))
    assert judge(server, tmp_path).addressee("so we left") is addressee


def test_each_text_is_asked_once(server: ChatServer, tmp_path: Path) -> None:
    texts = ["a timer", "so we left", "a timer"]
    for _ in range(2):  # the second judge reads what the first has found
        reader = judge(server, tmp_path)
        assert [reader.addressee(text) for text in texts] == ["assistant", "people", "assistant"]
    assert server.asked == texts[:2]


def test_a_killed_run_goes_on_where_it_was(server: ChatServer, tmp_path: Path) -> None:
    first = judge(server, tmp_path)
    for text in ("a timer", "a lamp", "a boat"):
        first.addressee(text)
    cache = tmp_path / "verdicts.jsonl"
    cache.write_bytes(cache.read_bytes()[:-7])  # killed within the last line
    second = judge(server, tmp_path)
    assert [second.addressee(text) for text in ("a timer", "a lamp", "a boat")] == ["assistant", "people", "people"]
    assert server.asked == ["a timer", "a lamp", "a boat", "a boat"]
    assert [json.loads(line)["text"] for line in cache.read_text().splitlines()] == ["a timer", "a lamp", "a boat"]


def test_another_model_gives_its_own_verdicts(server: ChatServer, tmp_path: Path) -> None:
    judge(server, tmp_path).addressee("a timer")
    server.reply = lambda _: (200, completion("PEOPLE"))
    other = Judge(server.url, "other", cache=tmp_path / "verdicts.jsonl")
    assert other.addressee("a timer") is Addressee.PEOPLE
    assert judge(server, tmp_path).addressee("a timer") is Addressee.ASSISTANT


def test_a_busy_server_is_tried_again(server: ChatServer, tmp_path: Path) -> None:
    replies = iter([(429, "slow down"), (503, "loading"), (200, completion("PEOPLE"))])
    server.reply = lambda _: next(replies)
    waits: list[float] = []
    assert judge(server, tmp_path, waits).addressee("so we left") is Addressee.PEOPLE
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize(
    ("reply", "message", "num_requests"),
    [
        ((404, '{"error": "no model reader"}'), r"refuses model 'reader': HTTP 404 .*no model reader", 1),
        ((500, "broken"), rf"did not answer in {NUM_TRIES} tries \(HTTP 500 .*verdicts\.jsonl", NUM_TRIES),
        ((200, "<html>"), "did not answer with a chat completion: b'<html>'", 1),
        ((200, '{"choices": []}'), "did not answer with a chat completion", 1),
    ],
)
def test_what_went_wrong_is_said(
    server: ChatServer, tmp_path: Path, reply: tuple[int, str], message: str, num_requests: int
) -> None:
    server.reply = lambda _: reply
    with pytest.raises(RemoteError, match=message):
        judge(server, tmp_path).addressee("so we left")
    assert len(server.requests) == num_requests
    assert not (tmp_path / "verdicts.jsonl").exists()


def test_an_error_keeps_what_was_found(server: ChatServer, tmp_path: Path) -> None:
    server.reply = lambda text: by_a_word(text) if text != "a boat" else (401, "no key")
    reader = judge(server, tmp_path)
    reader.addressee("a timer")
    with pytest.raises(RemoteError, match="401"):
        reader.addressee("a boat")
    assert [json.loads(line)["text"] for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()] == ["a timer"]


def test_a_server_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    gone = ChatServer(by_a_word)
    gone.http.server_close()
    waits: list[float] = []
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1.*check that the server runs"):
        judge(gone, tmp_path, waits).addressee("so we left")
    assert waits == [1.0, 2.0, 4.0]


def test_what_cannot_work_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("READER_KEY", raising=False)
    cache = tmp_path / "verdicts.jsonl"
    with pytest.raises(UsageError, match="http://"):
        Judge("file:///etc/hosts", "reader", cache=cache)
    with pytest.raises(UsageError, match="READER_KEY"):
        Judge("http://localhost/v1", "reader", cache=cache, api_key_env="READER_KEY")


@pytest.mark.parametrize(
    "content",
    ['{"text": "something else"}\n', '{"text": "a", "verdict": "maybe", "model": "m"}\n', "no line at all", "[]\n"],
)
def test_a_cache_that_is_none_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    cache = tmp_path / "verdicts.jsonl"
    cache.write_text(content)
    with pytest.raises(BadData, match=r"verdicts\.jsonl.*another file"):
        Judge("http://localhost/v1", "reader", cache=cache)
    assert cache.read_text() == content
