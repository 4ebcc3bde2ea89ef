"""`duologue serve` as a process, and its application inside another one."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from duologue.client import connect
from duologue.core.events import Committed, Promoted, Said
from duologue.errors import EngineError, RemoteError, UsageError
from duologue.evaluation.load import LoadSetting, measure, starts_after_s
from duologue.evaluation.server_process import server_process
from duologue.server.app import create_app
from duologue.server.config import ServerConfig
from duplex_peer import ANSWERS, run
from serving import scripted_model, serving


@pytest.mark.smollm2
def test_a_real_model_is_served():
    async def talk(url: str) -> str:
        async with await connect(url, settings={"hearing": 400.0}) as conversation:
            conversation.hear("what is the capital of France", final=True)
            conversation.respond()
            said = ""
            async for event in conversation.events():
                if isinstance(event, Said):
                    said = said[: event.start] + event.text
                if isinstance(event, Committed):
                    return said
        raise AssertionError("the answer did not end")

    # Torch, which is always there, and few tokens: it is slow.
    with server_process(
        ["--backend", "torch", "--max-sessions", "1", "--context", "512", "--max-answer", "12"]
    ) as server:
        assert server.memory() is None or server.memory() > 1e8
        assert asyncio.run(talk(server.url))


def test_a_server_that_cannot_start_says_why(capfd):
    with pytest.raises(EngineError, match="no model 'nosuchmodel'"), server_process(["nosuchmodel"]):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "duologue", "serve", "nosuchmodel", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), "before anything is loaded or logged"
    assert f"port {port}: it is in use" in done.stderr
    command = [sys.executable, "-m", "duologue", "serve", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there is no token" in done.stderr


DRAINED = """
import sys
sys.path[:0] = {paths!r}
from serving import scripted_model
from duplex_peer import ANSWERS
from duologue.server import app, run
from duologue.server.config import ServerConfig
app._load = lambda config: scripted_model(ANSWERS)
run.serve(ServerConfig(port={port}, words_per_second=10.0))
"""


@pytest.mark.parametrize(("number", "is_patient"), [(1, True), (2, False)])
def test_the_first_signal_drains_and_the_second_ends(number, is_patient):
    async def talk(process: "subprocess.Popen[str]", url: str) -> bool:
        for _ in range(100):
            with contextlib.suppress(RemoteError):
                conversation = await connect(url, settings={"hearing": 10.0}, retry=False)
                break
            await asyncio.sleep(0.1)
        async with conversation:
            conversation.hear("what is a cat", final=True)
            with contextlib.suppress(RemoteError):
                async for event in conversation.events():
                    if isinstance(event, Promoted):
                        for _ in range(number):
                            process.send_signal(signal.SIGTERM)
                            await asyncio.sleep(0.3)
                    if isinstance(event, Committed):
                        return True
        return False

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = DRAINED.format(paths=[path for path in sys.path if path], port=port)
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert asyncio.run(talk(process, f"http://127.0.0.1:{port}")) is is_patient
        _, log = process.communicate(timeout=30)
    rows = [json.loads(line) for line in log.splitlines()]
    assert {"listening", "ready", "opened", "closed"} <= {row["message"] for row in rows}
    assert "Traceback" not in log


def test_the_application_can_be_mounted():
    async def talk() -> None:
        inner = create_app(ServerConfig(), model=scripted_model())

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette):
            async with inner.router.lifespan_context(inner):
                yield

        outer = Starlette(routes=[Mount("/duplex", inner)], lifespan=lifespan)
        async with outer.router.lifespan_context(outer):
            transport = httpx.ASGITransport(outer)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                while (await http.get("/duplex/ready")).status_code != 200:
                    await asyncio.sleep(0.01)
                body = {"messages": [{"role": "user", "content": "hi"}]}
                answer = (await http.post("/duplex/v1/chat/completions", json=body)).json()
                assert "what there is to say of hi" in answer["choices"][0]["message"]["content"]

    run(talk())


@pytest.mark.parametrize("clients", [1, 12, 13, 26, 40])
def test_the_clients_of_a_load_say_nothing_in_chorus(clients):
    begins = [starts_after_s(number, clients) for number in range(clients)]
    within = sorted(begin % 2.0 for begin in begins)
    assert within == pytest.approx([2.0 * number / clients for number in range(clients)], abs=1e-6)
    assert all(0.0 <= begin < 24.0 for begin in begins)
    assert max(begins) >= 24.0 * (1 - 1 / clients) - 2.0


def test_load():
    async def talk() -> None:
        async with serving(scripted_model(ANSWERS)) as server:
            sizes = iter(range(10, 1000))
            outcome = await measure(server.http, LoadSetting(3, 10.0, warm_up=1.0), memory=lambda: next(sizes))
            row = outcome.as_dict()
            assert row["decisions"] > 3
            assert row["decision_ms"]["p95"] > 0
            assert (row["lost"], len(row["memory_mb"])) == (0, 20)
            assert row["memory_growth"] > 1
        async with serving(max_sessions=1) as small, await connect(small.http):
            with pytest.raises(RemoteError, match="slots are taken"):
                await measure(small.http, LoadSetting(1, 1.0))
        with pytest.raises(RemoteError, match="cannot be reached"):
            await measure(server.http, LoadSetting(1, 1.0))
        with pytest.raises(UsageError, match="not the address of a server"):
            await connect("ftp://127.0.0.1")

    run(talk())
