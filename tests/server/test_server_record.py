"""Records: what a killed server leaves, and how a new one goes on."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from duologue.cli.main import main
from duologue.client import Missed, connect
from duologue.core.events import Committed, Decided, Event, Heard, Said
from duologue.errors import BadData, RemoteError, UsageError
from duologue.server.record import RecordReader, is_record, read_record
from duologue.types import Role
from duplex_peer import ANSWERS, LONG, join, run
from serving import scripted_model, serve_until_killed, serving
from soak import size

NUM_KILLS = size(2, 1000)


def test_a_record_is_what_happened(tmp_path, capsys):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            name = (await peer.start(settings={"hearing": "reported"}, history=[{"role": "user", "text": "hi"}]))[
                "session"
            ]
            await peer.say("hear", text="tell me a lot", final=True)
            await peer.until("said", lambda m: m["start"] > 20)
            await peer.say("heard", position=20)
            await peer.until("heard")
            await peer.say("hear", text="stop", final=True, utterance="two")
            await peer.until("suspended")
            conversation = server.talks._open[name]
            recorded = read_record(tmp_path / f"{name}.jsonl")
            assert list(recorded.ledger.history) == conversation.handle.session.history
            seen = [{k: v for k, v in m.items() if k not in ("number", "taken")} for m in peer.seen if "number" in m]
            lines = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            assert [json.loads(line) for line in lines[1:]][: len(seen) - 1] == seen[1:]

    run(talk())
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert is_record(path)
    assert main(["replay", str(path)]) == 0
    told = capsys.readouterr().out
    assert "tell me a lot" in told
    assert "cut; " in told
    assert main(["replay", str(path), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [turn["text"] for turn in outcome["history"]][:2] == ["hi", "tell me a lot"]
    assert LONG.startswith(outcome["heard"])


def test_a_server_that_starts_again_takes_a_conversation_up(tmp_path):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            name = (await peer.start(settings={"hearing": "reported", "eagerness": 0.5}))["session"]
            await peer.say("hear", text="tell me a lot", final=True, utterance="one")
            await peer.until("said", lambda m: m["start"] > 20)
            await peer.say("heard", position=20)
            last = (await peer.until("heard"))["number"]
            await peer.say("hear", text="and the", utterance="two")
            await peer.until("held")
        path = tmp_path / f"{name}.jsonl"
        with path.open("ab") as file:
            file.write(b'{"at": 99, "type": "sai')  # a kill in the middle of a line
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            started = await peer.start(session=name, after=last)
            assert started["resumed"]
            assert started["settings"]["eagerness"] == 0.5
            assert started["history"][0] == {"role": "user", "text": "tell me a lot"}
            assert LONG.startswith(started["history"][1]["text"])
            assert started["input"] == "and the"  # it waits for the rest
            await peer.say("hear", text="and the cat", utterance="two", final=True)
            await peer.until("promoted")
            conversation = server.talks._open[name]
            assert list(read_record(path).ledger.history) == conversation.handle.session.history
            other = await join(server)
            await other.say("start", session="unknown")
            assert (await other.until("error"))["code"] == "bad_request"

    run(talk())


def test_a_question_whose_answer_was_not_heard_is_answered_again(tmp_path):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            name = (await peer.start(settings={"hearing": "reported"}))["session"]
            await peer.say("hear", text="tell me a lot", final=True, utterance="one", id=1)
            await peer.until("said", lambda m: m["start"] > 20)
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            started = await peer.start(session=name)
            assert started["history"] == []
            assert started["taken"] == 1
            await peer.until("said", lambda m: m["start"] > 20)
            await peer.say("heard", position=20, id=2)
            await peer.until("heard")
            session = server.talks._open[name].handle.session
            assert [turn.text for turn in session.history] == ["tell me a lot", LONG[: session.running.num_heard]]

    run(talk())


def test_a_server_that_drains_lets_silent_conversations_move_at_once(tmp_path):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path), words_per_second=10.0) as server:
            speaking, silent = await join(server), await join(server)
            await silent.start()
            name = (await speaking.start())["session"]
            await speaking.say("hear", text="tell me a lot", final=True)
            await speaking.until("said")
            draining = asyncio.create_task(server.server.drain())
            assert await silent.closed() == 1012
            assert server.talks._open[name].is_speaking
            await speaking.until("committed")
            await draining

    run(talk())


@pytest.mark.parametrize("is_late", [False, True])
def test_a_client_is_told_of_nothing_that_a_shutdown_kept_out_of_the_record(tmp_path, is_late):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            name = (await peer.start())["session"]
            await peer.say("hear", text="what is", utterance="one", id=1)
            await peer.until("received")
            conversation = server.talks._open[name]
            conversation.begin_message(2)
            if is_late:  # it arrives while the last events are being sent
                conversation.close("shutdown")
            with contextlib.suppress(UsageError):
                conversation.handle.hear("tell me a lot", utterance="two", final=True)
            conversation.end_message(2)
            conversation.close("shutdown")  # before the task that records has run
            assert await peer.closed() == 1012
            told = [message for message in peer.seen if "number" in message]
        with (tmp_path / f"{name}.jsonl").open("rb") as lines:
            record = RecordReader(lines, "the record")
            events = list(record)
        assert told[-1]["number"] == len(events)
        assert conversation.taken == record.taken == 1  # the client sends the second message again

    run(talk())


def test_a_conversation_that_had_filled_its_context_is_taken_up_with_what_fits(tmp_path):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            name = (await peer.start(settings={"hearing": "shown"}))["session"]
            for number in range(3):
                await peer.say("hear", text="what is a cat", final=True, utterance=f"{number}")
                await peer.until("committed")
        path = tmp_path / f"{name}.jsonl"
        said = read_record(path).ledger.history
        assert len(said) == 6
        async with serving(scripted_model(ANSWERS, max_length=256), record=str(tmp_path)) as server:
            peer = await join(server)
            await peer.start(session=name)
            session = server.talks._open[name].handle.session
            assert 0 < len(session.history) < 6
            assert session.history == said[-len(session.history) :]
            await peer.say("hear", text="what is a cat", final=True, utterance="more")
            await peer.until("committed")
            while list(read_record(path).ledger.history) != session.history:  # turns may be left out after it
                await peer.next()

    run(talk())


def test_a_disk_that_is_full_ends_the_record_and_not_the_conversation(tmp_path, caplog):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            name = (await peer.start(settings={"hearing": "shown"}))["session"]
            os.close(server.talks._open[name]._recorder._fd)
            await peer.say("hear", text="what is a cat", final=True)
            await peer.until("committed")

    real, failures = os.close, []

    def close(fd: int) -> None:
        try:
            real(fd)
        except OSError as error:  # the test closed it before
            failures.append(error)

    os.close, before = close, os.close
    try:
        run(talk())
    finally:
        os.close = before
    assert failures
    assert any("record cannot be written" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a record"),
        ('{"record": 2}\n', "is not a record of version 1"),
        ('{"record": 1}\n', "line 1"),
        ('{"record": 1, "session": "s", "settings": {}, "history": []}\n{"type": "heard"}\n', "line 2"),
        ('{"record": 1, "session": "s", "settings": {}, "history": []}\nrubbish\n', "line 2"),
        ('{"record": 1, "session": "s", "settings": {}, "history": []}\n[]\n', "line 2"),
    ],
)
def test_a_damaged_record_is_said(tmp_path, text, complaint):
    path = tmp_path / "talk.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadData, match=complaint):
        read_record(path)


def start_server(folder: Path) -> tuple[BaseProcess, str]:
    """Forked from a process that has imported everything, so that many can be started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["duologue.server.app", "duologue.testing", "uvicorn", "websockets"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=serve_until_killed, args=(theirs, str(folder)), daemon=True)
    process.start()
    theirs.close()
    with ours:
        return process, f"http://127.0.0.1:{ours.recv()}"


def test_a_server_may_be_killed_at_any_moment(tmp_path):
    """What the client saw is in the record, up to the last event but one; the next server goes on from there."""

    async def talk(url: str, name: str | None, moment: int) -> tuple[str, list[Event]]:
        seen: list[Event] = []
        conversation = await connect(url, session=name, settings={"hearing": 400.0}, retry=False)
        conversation.hear("tell me a lot", utterance="a", final=True)
        count = 0
        async for event in conversation.events():
            seen.append(event)
            count += 1
            if isinstance(event, Said) and count % 20 == 0:
                conversation.hear("mhm" if count % 40 else "what is a cat", utterance=f"u{count}", final=True)
            if count == moment:
                process.kill()
        return conversation.session, seen

    chance, name, whole = random.Random(0), None, 0
    for number in range(NUM_KILLS):
        if number % 25 == 0:
            name, whole = None, 0
        process, url = start_server(tmp_path)
        name, seen = asyncio.run(talk(url, name, chance.randrange(1, 120)))
        process.join()
        process.close()
        recorded = read_record(tmp_path / f"{name}.jsonl").events
        got = [event for event in seen if not isinstance(event, Missed)]
        assert list(recorded[whole : whole + len(got) - 1]) == got[: len(got) - 1]
        whole = len(recorded)
    assert any(isinstance(event, Decided) for event in recorded)
    assert any(isinstance(event, Heard) for event in recorded)


def test_a_client_finds_its_conversation_again_when_the_server_comes_back(tmp_path):
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path), words_per_second=100.0) as server:
            port = server.port
            conversation = await connect(server.http, settings={"hearing": 100.0})
            conversation.hear("tell me a lot", final=True)
            async for event in conversation.events():
                if isinstance(event, Heard) and event.position > 30:
                    break
        conversation.hear("what is a cat", final=True, utterance="late")  # while there is no server
        async with serving(scripted_model(ANSWERS), record=str(tmp_path), port=port) as server, conversation:
            async for event in conversation.events():
                if isinstance(event, Committed):
                    break
            assert conversation.history == server.talks._open[conversation.session].handle.session.history
            assert [turn.text for turn in conversation.history if turn.role is Role.USER] == [
                "tell me a lot",
                "what is a cat",
            ]

    run(talk())


def test_a_server_that_does_not_come_back_is_said(monkeypatch):
    monkeypatch.setattr("duologue.client._PATIENCE_S", 0.5)

    async def talk() -> None:
        async with serving() as server:
            conversation = await connect(server.http)
        with pytest.raises(RemoteError, match="cannot be reached"):
            async for _ in conversation.events():
                pass
        with pytest.raises(RemoteError, match="cannot be reached"):
            await connect(server.http)

    run(talk())
