"""Stores of records: one writer at a time, and none that stood still. Redis is tested where it is installed."""

import asyncio
import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from duologue.core.events import Event, Heard
from duologue.errors import MissingDependency
from duologue.server import store as store_module
from duologue.server.config import ServerConfig
from duologue.server.folder_store import FolderRecorder
from duologue.server.store import LEASE_S, Recorder, RecordHeld, RecordLost, RecordStore, Standing
from duologue.server.stores import open_store
from duplex_peer import ANSWERS, join, run
from serving import Running, scripted_model, serving

NAME = "a-conversation"


def redis_url(folder: Path) -> Iterator[str]:
    """The address of a Redis server of the test's own."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    pytest.importorskip("redis")
    path = folder / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(params=["folder", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where records are kept."""
    if request.param == "folder":
        (tmp_path / "records").mkdir(mode=0o700)
        yield str(tmp_path / "records")
    else:
        yield from redis_url(tmp_path)


@contextlib.asynccontextmanager
async def opened(place: str, number: int) -> AsyncIterator[list[RecordStore]]:
    """As many servers would open the store."""
    stores = [open_store(ServerConfig(record=place)) for _ in range(number)]
    try:
        yield [store for store in stores if store is not None]
    finally:
        for store in stores:
            assert store is not None
            await store.aclose()


async def begin(store: RecordStore) -> Recorder:
    return await store.create(NAME, model="scripted", settings={"hearing": "shown"}, history=[])


async def expire(store: Any, recorder: Any) -> None:
    """The lease expires, as if the server had stood still."""
    if hasattr(recorder, "lease"):
        os.utime(recorder.lease.path, (0, time.time() - LEASE_S - 1))
    else:
        await store._redis.delete(f"duologue:{{{recorder._name}}}:lease")


def heard(at: int) -> Event:
    return Heard(float(at), 0, at)


async def times(store: RecordStore) -> tuple[float, int]:
    """When the last event of the record was, and how many there are."""
    state, recorder = await store.resume(NAME)
    recorder.close()
    return state.now, state.num_events


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "HANDOVER_S", 0.2)


def test_a_record_is_written_by_one_of_many(place: str, impatient: None) -> None:
    async def talk() -> None:
        async with opened(place, 6) as (first, *others):
            (await begin(first)).close()
            found = await asyncio.gather(*(store.resume(NAME) for store in others), return_exceptions=True)
            assert sorted(type(each) is tuple for each in found) == [False] * 4 + [True]
            assert all(isinstance(each, RecordHeld) for each in found if type(each) is not tuple)

    run(talk())


def test_a_writer_that_stood_still_can_never_write_again(place: str) -> None:
    async def talk() -> None:
        async with opened(place, 2) as (first, second):
            old = await begin(first)
            await old(heard(1), taken=7)
            await expire(first, old)
            state, new = await second.resume(NAME)
            assert (state.now, state.num_events, state.taken) == (1.0, 1, 7)
            for between in range(2):  # while the new one writes, and after it has given way
                with contextlib.suppress(RecordLost):
                    await old(heard(100 + between))
                assert await old.renew() is Standing.LOST
                old.close()
                if between == 0:
                    assert await new.renew() is Standing.HELD
                    await new(heard(2))
                    new.close()
            assert await times(second) == (2.0, 2)

    run(talk())


def test_the_holder_of_a_record_is_asked_for_it(place: str) -> None:
    async def talk() -> None:
        async with opened(place, 2) as (first, second):
            holder = await begin(first)
            await holder(heard(1))
            assert await holder.renew() is Standing.HELD
            asking = asyncio.create_task(second.resume(NAME))
            while await holder.renew() is not Standing.WANTED:
                assert not asking.done()
                await asyncio.sleep(0.01)
            await holder(heard(2))
            holder.close()
            state, recorder = await asking
            assert state.now == 2.0
            assert await recorder.renew() is Standing.HELD, "the wish is fulfilled"
            recorder.close()

    run(talk())


def test_a_holder_that_does_not_answer_keeps_its_record(place: str, impatient: None) -> None:
    async def talk() -> None:
        async with opened(place, 2) as (first, second):
            holder = await begin(first)
            with pytest.raises(RecordHeld, match="another server"):
                await second.resume(NAME)
            assert await holder.renew() is Standing.HELD, "nobody waits for it any more"
            holder.close()

    run(talk())


def test_a_record_that_could_not_be_finished_is_given_to_nobody(place: str, impatient: None) -> None:
    async def talk() -> None:
        async with opened(place, 2) as (first, second):
            holder = await begin(first)
            holder.stop()
            await holder(heard(1))
            asking = asyncio.create_task(second.resume(NAME))
            while not asking.done():
                assert await holder.renew() is Standing.HELD
                await asyncio.sleep(0.01)
            with pytest.raises(RecordHeld):
                await asking
            holder.close()
            assert await times(second) == (0.0, 0)

    run(talk())


def test_redis_writes_a_line_once_even_if_the_answer_is_lost(tmp_path: Path) -> None:
    async def talk(url: str) -> None:
        async with opened(url, 1) as (store,):
            recorder: Any = await begin(store)
            await recorder(heard(1))
            recorder._num_lines -= 1
            await recorder(heard(1))
            recorder.close()
            assert await times(store) == (1.0, 1)

    for url in redis_url(tmp_path):
        run(talk(url))


@pytest.mark.parametrize("kills", [False, True], ids=["moves", "stood still"])
def test_a_conversation_goes_on_at_another_server(place: str, kills: bool) -> None:
    async def talk() -> None:
        model = scripted_model
        async with serving(model(ANSWERS), record=place) as first, serving(model(ANSWERS), record=place) as second:
            peer = await join(first)
            name = (await peer.start(settings={"hearing": "reported"}))["session"]
            await peer.say("hear", text="tell me a lot", final=True, id=1)
            await peer.until("said", lambda m: m["start"] > 20)
            await peer.say("heard", position=20, id=2)
            last = await peer.until("heard", lambda m: m.get("taken") == 2)
            before = first.talks._open[name]
            recorder = before._recorder
            peer = await join(second)
            if kills:

                async def nothing() -> None: ...

                first.talks._renew_leases = nothing  # type: ignore[method-assign]
            starting = asyncio.create_task(peer.start(session=name, after=last["number"]))
            while kills and not starting.done():  # a renewal may have been under way
                with contextlib.suppress(FileNotFoundError):
                    await expire(first.talks._store, recorder)
                await asyncio.sleep(0.01)
            started = await starting
            assert started["taken"] == 2, "what was repeated would be ignored"
            assert started["history"] == [
                {"role": "user", "text": "tell me a lot"},
                {"role": "assistant", "text": ANSWERS["tell me a lot"][: last["position"]]},
            ]
            await peer.say("hear", text="tell me a lot", final=True, id=1)
            await peer.say("hear", text="what is a cat", final=True, utterance="two", id=3)
            assert (await peer.until("promoted"))["text"] == "what is a cat"
            before.close("the test is over")

    run(talk())


def test_a_store_that_fails_ends_the_record_and_not_the_conversation(tmp_path: Path) -> None:
    async def talk(url: str, end: Iterator[str]) -> None:
        async with serving(scripted_model(ANSWERS), record=url) as server:
            peer = await join(server)
            await peer.start(settings={"hearing": "shown"})
            with contextlib.suppress(StopIteration):
                next(end)  # Redis ends
            await peer.say("hear", text="what is a cat", final=True)
            await peer.until("committed")

    urls = redis_url(tmp_path)
    run(talk(next(urls), urls))


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[None]:
    """The storage fails in what `name` of `owner` does."""

    def fail(*_: Any, **more: Any) -> Any:
        raise OSError(errno.EIO, "the storage failed")

    with monkeypatch.context() as change:
        change.setattr(owner, name, fail)
        yield


def test_a_takeover_that_failed_leaves_nothing_for_who_stood_still_to_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk() -> None:
        async with opened(str(tmp_path), 2) as (first, second):
            old = await begin(first)
            await old(heard(1))
            await expire(first, old)
            with failing(monkeypatch, shutil, "copyfileobj"), pytest.raises(OSError, match="failed"):
                await second.resume(NAME)
            _, new = await second.resume(NAME)
            await old(heard(100))
            assert await old.renew() is Standing.LOST
            await new(heard(2))
            old.close()
            new.close()
            assert await times(second) == (2.0, 2)

    run(talk())


def test_a_storage_that_fails_for_a_moment_does_not_end_the_renewal_of_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk() -> None:
        async with opened(str(tmp_path), 1) as (store,):
            recorder = await begin(store)
            with failing(monkeypatch, Path, "exists"):
                assert await recorder.renew() is Standing.HELD
            recorder.close()

    run(talk())


def test_a_record_that_cannot_be_begun_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    async def fail(recorder: Any, line: bytes) -> None:
        made.append(recorder)
        raise OSError(errno.ENOSPC, "the disk is full")

    async def talk() -> None:
        async with opened(str(tmp_path), 1) as (store,):
            monkeypatch.setattr(FolderRecorder, "_append", fail)
            with pytest.raises(OSError, match="full"):
                await begin(store)
            assert made[0]._fd is None
            assert not made[0].lease.path.exists()

    run(talk())


def test_a_file_that_cannot_be_closed_does_not_keep_its_conversation_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            name = (await peer.start())["session"]
            conversation = server.talks._open[name]
            number, close = conversation._recorder._fd, os.close

            def fail(fd: int) -> None:
                close(fd)
                if fd == number:
                    raise OSError(errno.EIO, "what was written before did not arrive")

            with monkeypatch.context() as change:
                change.setattr(os, "close", fail)
                conversation.close("shutdown")
            assert name not in server.talks._open
            assert await peer.closed() == 1012

    run(talk())


def test_a_conversation_that_is_silent_for_long_keeps_its_record_in_redis(tmp_path: Path) -> None:
    async def talk(url: str) -> None:
        async with opened(url, 1) as (store,):
            recorder: Any = await begin(store)
            lines = f"duologue:{{{NAME}}}:lines"
            redis: Any = store._redis  # type: ignore[attr-defined]
            await redis.expire(lines, 5)
            assert await recorder.renew() is Standing.HELD
            assert await redis.ttl(lines) > 5
            recorder.close()

    for url in redis_url(tmp_path):
        run(talk(url))


def test_redis_does_not_confirm_what_it_does_not_write(tmp_path: Path) -> None:
    async def talk(url: str) -> None:
        async with opened(url, 1) as (store,):
            recorder: Any = await begin(store)
            await store._redis.delete(f"duologue:{{{NAME}}}:lines")  # type: ignore[attr-defined]
            with pytest.raises(OSError, match="gone"):
                await recorder(heard(1))
            recorder.close()

    for url in redis_url(tmp_path):
        run(talk(url))


@contextlib.contextmanager
def slow_to_create(monkeypatch: pytest.MonkeyPatch, server: Running) -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """A store in which the creation of records takes a while: it was begun, and it may end."""
    begun, opened = asyncio.Event(), asyncio.Event()
    create = server.talks._store.create  # type: ignore[union-attr]

    async def wait(*args: Any, **more: Any) -> Recorder:
        begun.set()
        await opened.wait()
        return await create(*args, **more)

    with monkeypatch.context() as change:
        change.setattr(server.talks._store, "create", wait)
        yield begun, opened


def test_a_conversation_that_was_being_opened_when_the_server_drained_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            with slow_to_create(monkeypatch, server) as (begun, opened):
                peer = await join(server)
                await peer.say("start")
                await begun.wait()
                await server.server.drain()
                opened.set()
                assert (await peer.until("error"))["code"] == "full"
            assert not len(server.talks)
            assert not list(tmp_path.glob(".*.lease"))

    run(talk())


def test_a_client_does_not_open_more_at_once_than_it_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path), max_per_client=1) as server:
            with slow_to_create(monkeypatch, server) as (begun, opened):
                first, second = await join(server), await join(server)
                await first.say("start")
                await begun.wait()
                await second.say("start")
                await asyncio.sleep(0.1)
                opened.set()
                assert (await second.until("error"))["code"] == "full"
                await first.until("started")

    run(talk())


def test_a_conversation_that_ends_while_it_is_found_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS), record=str(tmp_path)) as server:
            peer = await join(server)
            name = (await peer.start())["session"]
            find = server.talks.find

            async def end(*args: Any) -> Any:
                found = await find(*args)
                assert found is not None
                found.close("given up for others")
                return found

            peer = await join(server)
            with monkeypatch.context() as change:
                change.setattr(server.talks, "find", end)
                await peer.say("start", session=name)
                assert (await peer.until("error"))["code"] == "full", "a client tries again then"
            peer = await join(server)
            assert (await peer.start(session=name))["resumed"]

    run(talk())


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(MissingDependency, match=r"duologue\[redis\]"):
        open_store(ServerConfig(record="redis://127.0.0.1"))
