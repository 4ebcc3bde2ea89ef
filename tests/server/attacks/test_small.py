"""Small things that clients could do to others, to the log or to themselves."""

import asyncio
import json
import logging

import httpx
import pytest

import realtime_peer
from duologue.server import logs
from duplex_peer import ANSWERS, join, run
from honest import honest
from serving import scripted_model, serving


@pytest.mark.parametrize("digits", [20, 4000, 5000])
def test_numbers_of_many_digits_are_refused_and_the_connection_goes_on(digits: int) -> None:
    async def talk() -> None:
        number = "9" * digits
        async with serving(scripted_model(ANSWERS), words_per_second=1000.0) as server, honest(server):
            peer = await realtime_peer.join(server, "?duplex=1")
            await peer.ask("what is a cat")
            item = (await peer.until("response.done"))["response"]["output"][0]["id"]
            for fields in (
                f'"type": "conversation.item.truncate", "item_id": "{item}", "audio_end_ms": {number}',
                f'"type": "playback.ack", "played_ms": {number}',
                f'"type": "session.update", "session": {{"max_output_tokens": {number}}}',
            ):
                await peer.socket.send("{" + fields + "}")
                assert (await peer.error())["type"] == "invalid_request_error"
            await peer.ask("what is a dog")
            await peer.until("response.done")
            await peer.socket.close()
            duplex = await join(server)
            await duplex.start()
            for fields in (f'"type": "heard", "position": {number}', f'"type": "settings", "eagerness": {number}'):
                await duplex.socket.send("{" + fields + "}")
                assert (await duplex.until("error"))["code"] in ("bad_message", "bad_request")

    run(talk())


def test_what_is_said_cannot_forge_entries_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    said = 'mhm\n\r\x1b[2J\x85\u2028\u2029\x9b {"level": "error"} \ud800'

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), log_text=True) as server:
            peer = await join(server)
            name = (await peer.start())["session"]
            await peer.say("hear", text=said, final=True)
            await peer.until("received")
            names.append(name)

    names: list[str] = []
    caplog.set_level(logging.INFO)
    run(talk())
    lines = [logs.JsonFormatter().format(record) for record in caplog.records]
    assert all(line.encode() and len(line.splitlines()) == 1 and line.isprintable() for line in lines)
    row = next(row for row in map(json.loads, lines) if row["message"] == "text")
    assert row["session"] == names[0][:6]
    assert row["event"]["text"].startswith("mhm\n\r\x1b[2J\x85\u2028\u2029\x9b")
    assert row["at"].startswith("20"), "when it was written, not the seconds of the session"


def test_the_gauge_of_the_cache_is_right_when_nothing_runs() -> None:
    async def value(server_url: str, name: str) -> float:
        async with httpx.AsyncClient(base_url=server_url) as http:
            text = (await http.get("/metrics")).text
        return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])

    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server:
            peer = await join(server)
            await peer.start(settings={"hearing": "shown"})
            await peer.say("hear", text="what is a cat", final=True)
            await peer.until("committed")
            assert await value(server.http, "duologue_kv_entries") > 0
            await peer.say("end")
            await peer.closed()
            while server.talks.model.backend.usage().kv_entries:
                await asyncio.sleep(0.01)
            assert await value(server.http, "duologue_kv_entries") == 0
            assert await value(server.http, "duologue_sessions") == 0

    run(talk())
