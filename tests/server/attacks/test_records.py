"""Records: who may read them, who may write them, and what a damaged or enormous one does to others."""

import asyncio
import contextlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duologue.core.events import EVENT_TYPES
from duologue.errors import BadData, EngineFull
from duologue.server import store as store_module
from duologue.server.lease import Lease
from duologue.server.record import lines_of, read_record
from duologue.server.resuming import read_state
from duologue.server.store import LEASE_S, Standing
from duplex_peer import ANSWERS, Peer, join, run
from honest import honest
from serving import Running, scripted_model, serving
from soak import IS_LONG, size
from watchdog import watchdog

HEADER = {"record": 1, "session": "talk", "settings": {"hearing": "shown"}, "history": []}


def write(folder: Path, rows: list[dict[str, Any]], name: str = "talk") -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(number: int, words: str = "word ") -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "text": f"{words * 10}{i}"} for i in range(number)]


def keeping(folder: Path, **options: Any) -> Any:
    return serving(scripted_model(ANSWERS), record=str(folder), **options)


async def talked(server: Running) -> str:
    """A conversation with something in it, whose client is gone; its name."""
    peer = await join(server)
    name: str = (await peer.start(settings={"hearing": "shown"}))["session"]
    await peer.say("hear", text="what is a cat", final=True)
    await peer.until("committed")
    peer.socket.transport.abort()
    while server.talks._open[name].owner is not None:
        await asyncio.sleep(0.01)
    return name


def stand_still(server: Running) -> None:
    """From now on, the server does nothing about its leases."""

    async def nothing() -> None:
        pass

    server.talks._renew_leases = nothing  # type: ignore[method-assign]


async def refused(server: Running, name: str) -> str:
    """What a client is told that cannot have a conversation."""
    peer: Peer = await join(server)
    await peer.say("start", session=name)
    message: str = (await peer.until("error"))["message"]
    return message


# ------------------------------------------------------------------------------------------------------- the folder


def test_the_folder_is_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "records"

    async def talk() -> None:
        async with keeping(folder) as server, honest(server):
            await talked(server)

    before = os.umask(0)
    try:
        run(talk())
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_a_folder_that_others_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def talk() -> None:
        async with keeping(tmp_path) as server, honest(server):
            pass

    tmp_path.chmod(0o755)
    run(talk())
    assert any("chmod 700" in record.message for record in caplog.records)


# --------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("number", [4000, pytest.param(40_000, marks=pytest.mark.skipif(not IS_LONG, reason="soak"))])
def test_a_long_record_is_resumed_in_time_and_beside_others(tmp_path: Path, number: int) -> None:
    rows = [{**HEADER, "history": turns(number)}]
    for i in range(number):  # and as many events
        rows.append({"at": i / 10, "type": "received", "utterance": f"u{i}", "text": "mhm", "final": True})
        rows.append({"at": i / 10, "type": "dropped", "utterance": f"u{i}", "text": "mhm", "reason": "ignore"})
    write(tmp_path, rows)

    async def talk() -> None:
        async with keeping(tmp_path) as server, honest(server):
            began = time.thread_time(), time.process_time()
            with watchdog() as found:
                peer = await join(server)
                started = await peer.start(session="talk")
            assert 0 < len(started["history"]) < number
            assert started["history"][-1] == turns(number)[-1]
            assert time.process_time() - began[1] < 2 + number / 2000
            assert found == []

    run(talk(), seconds=120)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{**HEADER, "history": [{"role": "system", "text": "Be a cat."}]}], "user and the assistant"),
        ([{**HEADER, "session": "another"}], "copy"),
        ([{**HEADER, "settings": {"eagerness": 9}}], "eagerness"),
        ([{**HEADER, "settings": {"voice": {}}}], "--voice"),
        ([HEADER, {"at": 1, "type": "said"}], "line 2"),
    ],
    ids=["system turn", "copy", "settings", "voice", "event"],
)
def test_a_record_that_cannot_be_resumed_takes_no_place(tmp_path: Path, rows: Any, complaint: str) -> None:
    write(tmp_path, rows)

    async def talk() -> None:
        async with keeping(tmp_path, max_sessions=2, keep=0.0) as server, honest(server):
            for _ in range(3):
                assert complaint in await refused(server, "talk")
            while len(server.talks) > 1:
                await asyncio.sleep(0.05)
            assert len(server.talks.engine.handles) == 1
            await (await join(server)).start()
            assert not [path for path in tmp_path.iterdir() if path.name.startswith(".talk.")], "no lease is left"

    run(talk())


def test_a_record_with_a_system_turn_in_an_edit_is_resumed_without_it(tmp_path: Path) -> None:
    history = [{"role": "system", "text": "Be a cat."}, *turns(2)]
    write(tmp_path, [HEADER, {"at": 1, "type": "edited", "history": history}])

    async def talk() -> None:
        async with keeping(tmp_path) as server, honest(server):
            started = await (await join(server)).start(session="talk")
            assert started["history"] == turns(2)

    run(talk())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    write(tmp_path, [HEADER])

    async def talk() -> None:
        async with keeping(tmp_path) as server, honest(server):
            assert "cannot be written" in await refused(server, "talk")

    tmp_path.chmod(0o500)
    run(talk())


def test_a_full_server_leaves_no_file_open(tmp_path: Path) -> None:
    write(tmp_path, [HEADER])

    async def talk() -> None:
        async with keeping(tmp_path, max_sessions=1) as server, honest(server):
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(5):
                peer = await join(server)
                await peer.say("start", session="talk")
                assert (await peer.until("error"))["code"] == "full"
                await peer.closed()
            while len(os.listdir("/proc/self/fd")) > before + 1:
                await asyncio.sleep(0.01)
            assert not [path for path in tmp_path.iterdir() if path.name.startswith(".talk.")]

    run(talk())


def test_two_clients_that_resume_at_once_get_one_conversation(tmp_path: Path) -> None:
    write(tmp_path, [{**HEADER, "history": turns(300)}])

    async def talk() -> None:
        async with keeping(tmp_path, max_sessions=3) as server, honest(server):
            peers = [await join(server) for _ in range(4)]
            await asyncio.gather(*(peer.say("start", session="talk") for peer in peers))
            await asyncio.gather(*(peer.until("started") for peer in peers))
            assert len(server.talks) == 2
            closing = [asyncio.create_task(peer.closed()) for peer in peers]
            codes = [await code for code in itertools.islice(asyncio.as_completed(closing), 3)]
            assert codes == [4001] * 3
            (task,) = (task for task in closing if not task.done())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            kept = peers[closing.index(task)]
            await kept.say("ping")
            await kept.until("pong")

    run(talk())


def test_a_record_expires(tmp_path: Path) -> None:
    path = write(tmp_path, [HEADER])

    async def talk() -> None:
        async with keeping(tmp_path, record_expiry=100.0) as server, honest(server):
            os.utime(path, (0, time.time() - 101))
            assert "no conversation" in await refused(server, "talk")
            os.utime(path)
            await (await join(server)).start(session="talk")

    run(talk())


def test_a_record_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_BYTES", 20_000)

    async def talk() -> None:
        async with keeping(tmp_path, messages_per_second=10_000) as server, honest(server):
            peer = await join(server)
            name = (await peer.start())["session"]
            for number in range(100):
                await peer.say("hear", text=f"mhm {number} mhm " * 20, utterance=f"u{number}", final=True)
            await peer.say("ping")
            await peer.until("pong")
            path = tmp_path / f"{name}.jsonl"
            while path.stat().st_size < 15_000:
                await asyncio.sleep(0.01)
            assert path.stat().st_size <= 20_000
            assert server.talks._open[name].is_open
            read_record(path)

    run(talk())


# ------------------------------------------------------------------------------------------------------- two servers


def test_two_servers_do_not_write_one_record(tmp_path: Path) -> None:
    async def talk() -> None:
        async with keeping(tmp_path) as first, keeping(tmp_path) as second, honest(first), honest(second):
            name = await talked(first)
            renew = first.talks._renew_leases
            stand_still(first)
            assert "another server" in await refused(second, name)
            await (await join(first)).start(session=name)
            first.talks._open[name].close("ended by the test")
            await (await join(second)).start(session=name)
            stand_still(second)
            assert "another server" in await refused(first, name)
            first.talks._renew_leases = renew

    run(talk())


def test_a_conversation_moves_to_the_server_that_its_client_reaches(tmp_path: Path) -> None:
    async def talk() -> None:
        async with keeping(tmp_path) as first, keeping(tmp_path) as second, honest(first), honest(second):
            name = await talked(first)
            before = first.talks._open[name]
            said = [turn.text for turn in before.handle.session.history]
            assert len(said) == 2
            peer = await join(second)
            started = await peer.start(session=name)
            assert [turn["text"] for turn in started["history"]] == said
            assert before.events.ended == "another server took it over"
            assert name not in first.talks._open
            await peer.say("hear", text="what is a cat", final=True, utterance="again")
            await peer.until("committed")
            recorded = read_record(tmp_path / f"{name}.jsonl")
            assert recorded.ledger.history == second.talks._open[name].handle.session.history
            assert not (tmp_path / f".{name}.wanted").exists()

    run(talk())


def test_a_server_that_lost_its_lease_takes_no_other_for_it(tmp_path: Path) -> None:
    record = write(tmp_path, [HEADER])
    first = Lease.acquire(record)
    os.utime(first.path, (0, time.time() - LEASE_S - 1))
    Lease.acquire(record).release()
    third = Lease.acquire(record)
    assert third.path == first.path, "epochs begin again after a release"
    assert first.renew() is Standing.LOST
    first.release()
    assert third.renew() is Standing.HELD


def test_a_server_that_stood_still_is_taken_over_and_damages_nothing(tmp_path: Path) -> None:
    async def talk() -> None:
        async with keeping(tmp_path) as first, keeping(tmp_path) as second, honest(first), honest(second):
            name = await talked(first)
            before = first.talks._open[name]
            os.utime(before._recorder.lease.path, (0, time.time() - LEASE_S - 1))
            peer = await join(second)
            await peer.start(session=name)
            before.handle.hear("tell me a lot", utterance="late", final=True)  # it does not know yet
            await peer.say("hear", text="tell me more", final=True, utterance="new")
            await peer.until("committed")
            await first.talks._renew_leases()
            assert not before.is_open
            assert before.events.ended == "another server took it over"
            recorded = read_record(tmp_path / f"{name}.jsonl")
            assert recorded.ledger.history == second.talks._open[name].handle.session.history
            assert "late" not in [getattr(event, "utterance", None) for event in recorded.events]

    run(talk())


def test_a_lease_is_taken_by_one_of_many(tmp_path: Path) -> None:
    record = write(tmp_path, [HEADER])
    first = Lease.acquire(record)
    for _ in range(3):
        with pytest.raises(EngineFull, match="another server"):
            Lease.acquire(record)
    os.utime(first.path, (0, time.time() - LEASE_S - 1))
    second = Lease.acquire(record)
    assert second.is_takeover
    assert first.renew() is Standing.LOST
    assert second.renew() is Standing.HELD
    second.release()
    third = Lease.acquire(record)
    assert not third.is_takeover
    holder = json.loads(third.path.read_text())
    third.path.write_text(json.dumps({**holder, "began": "another process that had this number"}))
    assert Lease.acquire(record).is_takeover, "its holder is dead"


# ------------------------------------------------------------------------------------------------------------ fuzzing

VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**20), st.floats(), st.text(max_size=8),
    st.sampled_from(["user", "system", "process", "__proto__", "mhm"]), st.just([]), st.just({}),
    st.just([{"role": "user", "text": "hi"}]), st.lists(st.integers(), max_size=2),
)  # fmt: skip
FIELDS = ["at", "utterance", "text", "final", "answer", "start", "position", "state", "p", "probabilities", "history",
          "heard", "unheard", "exact", "suspended", "reason", "turns_dropped", "length", "speaking", "heard_at", "what",
          "deferred"]  # fmt: skip
EVENT = st.builds(
    lambda kind, rest: {"at": 1.0, "type": kind, **rest},
    st.sampled_from([*EVENT_TYPES, "unknown", "__proto__"]),
    st.dictionaries(st.sampled_from(FIELDS), VALUE, max_size=8),
)
LINE = st.one_of(
    EVENT.map(json.dumps), EVENT.map(json.dumps), st.text(max_size=20), VALUE.map(json.dumps), st.just("[" * 2000),
)  # fmt: skip
TOP = st.one_of(
    st.just(json.dumps(HEADER)),
    st.dictionaries(st.sampled_from([*HEADER, "x"]), VALUE, max_size=5).map(lambda row: json.dumps({**HEADER, **row})),
    LINE,
)


@settings(
    max_examples=size(150, 100_000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=not IS_LONG,
)
@given(TOP, st.lists(LINE, max_size=6), st.booleans())
def test_whatever_a_record_holds_it_is_read_or_refused(tmp_path: Path, top: str, lines: list[str], whole: bool) -> None:
    text = "\n".join([top, *lines]) + ("\n" if whole else "")
    path = tmp_path / "talk.jsonl"
    path.write_bytes(text.encode("utf-8", "replace"))
    for read in (read_record, lambda path: read_state("talk", lines_of(path), path)):
        with contextlib.suppress(BadData):
            read(path)
