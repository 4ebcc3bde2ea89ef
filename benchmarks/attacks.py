"""What one client can do to another: attacks on a server, beside an honest client in the same run.

Claimed: during every attack, 95 % of the honest client's decisions take at most 1.5 times as long as without it; the
server's memory grows by at most 64 MB, and a minute later it is back within 10 %. This should be so since texts are
measured before they are tokenised, long ones are tokenised in a thread, and what comes faster than it may waits in the
network.

Without the attack (calm), the same attacker sends the same to a process that swallows it, so that its own use of the
cores counts on both sides. Each attack has a server of its own. `--tree` measures the source of another version:

    python benchmarks/attacks.py --tree ../before/src --out before.json
    python benchmarks/attacks.py --short                     # seconds instead of minutes; proves nothing
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from measuring import ROOT, arguments, begin, finish, progress
from websockets.asyncio.client import connect

from duologue.evaluation.server_process import ServerProcess, server_process

MEGABYTE = 1_000_000
PERIOD_S = 0.25  # between the honest client's utterances
WEBSOCKET = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


# ------------------------------------------------------------------------------------------------------- the attacker


class Target:
    """The process that is attacked, until `end` (seconds of `time.monotonic`)."""

    def __init__(self, port: int, end: float) -> None:
        self.port = port
        self.end = end

    @property
    def is_time(self) -> bool:
        """Whether the attack goes on."""
        return time.monotonic() < self.end

    @contextlib.asynccontextmanager
    async def connection(self, data: bytes = b"") -> AsyncIterator[Streams]:
        """A connection on which `data` was sent."""
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            yield reader, writer
        finally:
            writer.transport.abort()

    @contextlib.asynccontextmanager
    async def websocket(
        self, path: str = "/v1/duplex"
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A WebSocket, whose frames are the attacker's to write."""
        async with self.connection(WEBSOCKET.format(path=path, port=self.port).encode()) as (reader, writer):
            async with asyncio.timeout(5):
                await reader.readuntil(b"\r\n\r\n")
            yield reader, writer

    async def post(self, body: dict[str, Any]) -> None:
        """A chat request; the answer is read."""
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: {len(data)}\r\n"
        async with self.connection(head.encode() + b"Connection: close\r\n\r\n" + data) as (reader, _):
            async with asyncio.timeout(10):
                await reader.read()


def frame(data: bytes, head: int = 0x81) -> bytes:
    """A masked frame; the mask is zero."""
    size = len(data)
    if size < 126:
        return bytes([head, 0x80 | size]) + bytes(4) + data
    return bytes([head, 0x80 | 127]) + struct.pack("!Q", size) + bytes(4) + data


def message(kind: str, **fields: Any) -> bytes:
    """A frame with a JSON message."""
    return frame(json.dumps({"type": kind, **fields}).encode())


async def repeat(target: Target, one: Callable[[], Awaitable[None]], *, period_s: float) -> None:
    """The same again and again, whatever becomes of it."""
    while target.is_time:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            await one()
        await asyncio.sleep(period_s)


def stream(frames: Callable[[int], bytes], *, period_s: float, path: str = "/v1/duplex", reads: bool = True) -> Any:
    """An attack by one WebSocket after another, on each of which frames are sent as long as it is open."""

    async def attack(target: Target) -> None:
        async def one() -> None:
            async with target.websocket(path) as (reader, writer):
                reading = asyncio.create_task(swallow(reader)) if reads else None
                try:
                    for number in range(1 << 30):
                        if not target.is_time or (reading is not None and reading.done()):
                            return
                        writer.write(frames(number))
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(1):
                                await writer.drain()
                        await asyncio.sleep(period_s)
                finally:
                    if reading is not None:
                        reading.cancel()

        await repeat(target, one, period_s=0.05)

    return attack


async def swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


def begins(*frames: bytes, path: str = "/v1/duplex", waits_s: float = 0.3, period_s: float = 0.2) -> Any:
    """An attack by many WebSockets, each of which is closed after some frames."""

    async def attack(target: Target) -> None:
        async def one() -> None:
            async with target.websocket(path) as (_, writer):
                for data in frames:
                    writer.write(data)
                async with asyncio.timeout(5):
                    await writer.drain()
                await asyncio.sleep(waits_s)

        await repeat(target, one, period_s=period_s)

    return attack


async def gone(target: Target) -> None:
    """Thousands of messages, then a reset."""

    async def one() -> None:
        async with target.websocket() as (_, writer):
            writer.write(message("start") + message("hear", text="mhm") * 3500)
            await asyncio.sleep(1)
            peer: socket.socket = writer.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    await repeat(target, one, period_s=0.2)


def silent(data: bytes, number: int = 300) -> Any:
    """An attack by connections on which nothing more is said."""

    async def attack(target: Target) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(number):
                with contextlib.suppress(OSError, TimeoutError):
                    await stack.enter_async_context(target.connection(data))
            await asyncio.sleep(max(0.0, target.end - time.monotonic()))

    return attack


def chat(*messages: dict[str, str]) -> Any:
    """An attack by chat requests."""

    async def attack(target: Target) -> None:
        await repeat(target, lambda: target.post({"messages": list(messages)}), period_s=0.1)

    return attack


LONG = "word " * (MEGABYTE // 5 - 50)
ATTACKS: dict[str, Any] = {
    "hear of 1 MB": stream(lambda i: message("hear", text=LONG, utterance=f"u{i}", final=True), period_s=0.02),
    "hear of 15 KB": stream(lambda i: message("hear", text=LONG[:15_000], utterance=f"u{i % 50}"), period_s=0.01),
    "conversations of 1 MB": begins(*[message("hear", text=LONG, utterance=f"u{i}") for i in range(20)]),
    "system prompt of 1 MB": begins(message("start", settings={"system": LONG})),
    "history of 34,000 turns": begins(message("start", history=[{"role": "user", "text": ""}] * 34_000)),
    "edit of 60 KB": stream(
        lambda i: message("edit", history=[{"role": "user", "text": LONG[: 60_000 + i % 9]}]), period_s=0.02
    ),
    "instructions of 1 MB": stream(
        lambda i: message("session.update", session={"type": "realtime", "instructions": f"{i} {LONG}"}),
        period_s=0.05,
        path="/v1/realtime",
    ),
    "chat of 1 MB": chat({"role": "user", "content": LONG}),
    "chat of one letter, 60 KB": chat({"role": "user", "content": "a" * 60_000}),
    "chat of 20,000 messages": chat(*[{"role": "user", "content": "hi"}] * 20_000),
    "many values": begins(message("start", history=[{}] * 300_000)),
    "pings, all read": stream(lambda i: message("ping", id=i) * 10, period_s=0.01),
    "3,500 messages and a reset": gone,
    "empty fragments": stream(lambda i: (b"" if i else frame(b"", 0x01)) + frame(b"", 0x00) * 3000, period_s=0.01),
    "pings, unread": stream(lambda i: frame(b"x" * 100, 0x89) * 200, period_s=0.01, reads=False),
    "300 silent connections": silent(b""),
    "300 slow heads": silent(HEAD),
    "300 silent WebSockets": silent(WEBSOCKET.format(path="/v1/duplex", port=1).replace(":1\r", "\r").encode()),
    "records of 4,000 turns": begins(message("start", session="long"), waits_s=1.0),
}


# ------------------------------------------------------------------------------------------------------ the processes


async def swallowing(listener: socket.socket) -> None:
    """Accept everything and answer what attackers wait for, until the process is ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(ACCEPTED if b"Upgrade" in head else b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")
            if b"Upgrade" not in head and b"Content-Length: " in head:
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0]))
            else:
                await swallow(reader)
        writer.close()

    async with await asyncio.start_server(serve, sock=listener, limit=1 << 20):
        await asyncio.Event().wait()


@contextlib.contextmanager
def process(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    started = subprocess.Popen(arguments, text=True, **options)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGKILL)
        started.wait()
        for stream_ in (started.stdout, started.stderr):
            if stream_ is not None:
                stream_.close()


@contextlib.contextmanager
def serving(args: argparse.Namespace, folder: Path) -> Iterator[ServerProcess]:
    """A server of the source that is measured."""
    flags = [args.model, "--backend", args.backend, "--adapter", args.adapter, "--record", str(folder)]
    with contextlib.ExitStack() as stack:
        with unittest.mock.patch.dict(os.environ, PYTHONPATH=str(args.tree)):
            server = stack.enter_context(server_process([*flags, "--max-sessions", "12"]))
        yield server


def memory_mb(server: ServerProcess) -> float:
    """Its resident memory; 0 if it has died."""
    return (server.memory() or 0) / 1e6


def processor_s(server: ServerProcess) -> float:
    """What it has worked, in seconds of one core; 0 if it has died."""
    try:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def long_record(folder: Path) -> None:
    """A record whose conversation has thousands of turns."""
    turns = [{"role": "assistant" if i % 2 else "user", "text": "some words " * 10 + str(i)} for i in range(4000)]
    header = {"record": 1, "session": "long", "model": "any", "settings": {"hearing": "shown"}, "history": turns}
    (folder / "long.jsonl").write_text(json.dumps(header) + "\n")


# ------------------------------------------------------------------------------------------------- the honest client


class Honest:
    """Says something every quarter of a second, and measures how long it takes until it is judged."""

    def __init__(self) -> None:
        self.latencies: list[float] = []  # seconds
        self.num_failures = 0  # connections that were lost, and words that were not judged

    async def talk(self, url: str) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self._converse(url)
            except Exception:  # whatever it is, the server did not serve it
                self.num_failures += 1
                await asyncio.sleep(0.5)

    async def _converse(self, url: str) -> None:
        words = ("mhm", "I see", "yes", "right", "well the", "so what I")
        async with connect(f"{url.replace('http', 'ws')}/v1/duplex", open_timeout=5, ping_interval=None) as peer:
            await peer.send(json.dumps({"type": "start", "settings": {"hearing": "shown", "max_answer": 8}}))
            for number in range(1 << 30):
                name, began = f"u{number}", time.perf_counter()
                text = f"{words[number % len(words)]} {number % 7}"
                await peer.send(json.dumps({"type": "hear", "text": text, "utterance": name, "final": True}))
                while True:
                    async with asyncio.timeout(10):
                        event = json.loads(await peer.recv())
                    if event["type"] == "decided" and event["utterance"] == name:
                        break
                self.latencies.append(time.perf_counter() - began)
                await asyncio.sleep(max(0.0, PERIOD_S - self.latencies[-1]))


def p95_ms(latencies: list[float]) -> float | None:
    """In milliseconds; None if there are too few."""
    return round(1000 * statistics.quantiles(latencies, n=20)[-1], 1) if len(latencies) > 4 else None


# -------------------------------------------------------------------------------------------------------- the measuring


async def attacked(name: str, port: int, server: ServerProcess, seconds: float) -> tuple[Honest, float]:
    """The honest client of `server` while `port` is attacked, and the most memory that the server had."""
    honest, most = Honest(), memory_mb(server)
    talking = asyncio.create_task(honest.talk(server.url))
    command = [sys.executable, __file__, "--attack", name, "--port", str(port), "--seconds", str(seconds)]
    with process(*command, stderr=subprocess.DEVNULL) as attacker:
        end = time.monotonic() + seconds + 2
        while time.monotonic() < end and attacker.poll() is None:
            await asyncio.sleep(0.1)
            most = max(most, memory_mb(server))
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)
    return honest, most


async def warm(server: ServerProcess) -> None:
    """The first words take long."""
    honest = Honest()
    talking = asyncio.create_task(honest.talk(server.url))
    while len(honest.latencies) < 5 and honest.num_failures < 10:
        await asyncio.sleep(0.1)
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)


async def idle(server: ServerProcess, seconds: float) -> None:
    """Wait until it works at most a twentieth of the time, for `seconds` at most."""
    until, used = time.monotonic() + seconds, -1.0
    while (now := processor_s(server)) - used > 0.05 and time.monotonic() < until:
        used = now
        await asyncio.sleep(1)


async def measure(args: argparse.Namespace, name: str, cores: asyncio.Lock) -> dict[str, Any]:
    """One attack. Its server rests while the next one has the cores."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        long_record(Path(folder))
        async with cores:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server = stack.enter_context(serving(args, Path(folder)))
            code = [sys.executable, __file__, "--swallow", str(listener.fileno())]
            with process(*code, pass_fds=[listener.fileno()]):
                await warm(server)
                calm, _ = await attacked(name, listener.getsockname()[1], server, args.seconds)
            before = memory_mb(server)
            honest, most = await attacked(name, int(server.url.rpartition(":")[2]), server, args.seconds)
            end = time.monotonic()
            await idle(server, args.rest)
        await asyncio.sleep(end + args.rest - time.monotonic())
        after = memory_mb(server)
    quiet, busy = p95_ms(calm.latencies), p95_ms(honest.latencies)
    return {
        "attack": name,
        "calm_p95_ms": quiet,
        "p95_ms": busy,
        "ratio": round(busy / quiet, 2) if quiet and busy else None,
        "honest_failures": honest.num_failures,
        "rss_before_mb": round(before, 1),
        "rss_growth_mb": round(most - before, 1),
        "rss_after_mb": round(after, 1),
        "survived": after > 0,
    }


async def measure_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All attacks, or those that are named, one after the other."""
    cores = asyncio.Lock()

    async def measured(name: str) -> dict[str, Any]:
        row = await measure(args, name, cores)
        progress(json.dumps(row, ensure_ascii=False))
        return row

    return await asyncio.gather(*map(measured, args.only or ATTACKS))


def reached(row: dict[str, Any]) -> bool:
    """Whether the claim holds for an attack."""
    is_served = row["ratio"] is not None and row["ratio"] <= 1.5 and not row["honest_failures"]
    is_small = row["rss_growth_mb"] <= 64 and row["rss_after_mb"] <= 1.1 * row["rss_before_mb"]
    return bool(is_served and is_small and row["survived"])


def main() -> None:
    """Measure all attacks, or those that are named."""
    parser = arguments(__doc__)
    parser.add_argument("--tree", type=Path, default=ROOT / "src", help="source folder that is served (default: ours)")
    parser.add_argument("--only", nargs="+", choices=ATTACKS, metavar="ATTACK", help="these attacks")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each attack (default 30)")
    parser.add_argument("--rest", type=float, default=60.0, help="seconds from its end to the last look (default 60)")
    parser.add_argument("--short", action="store_true", help="8 seconds each, and 2 of rest")
    for hidden in ("--attack", "--port", "--swallow"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.swallow:
        asyncio.run(swallowing(socket.socket(fileno=int(args.swallow))))
    elif args.attack:
        random.seed(args.seed)
        asyncio.run(ATTACKS[args.attack](Target(int(args.port), time.monotonic() + args.seconds)))
    else:
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure, and report."""
    if args.short:
        args.seconds, args.rest = 8.0, 2.0
    measurement = begin(args)
    rows = asyncio.run(measure_all(args))
    header = ["attack", "calm p95, ms", "p95, ms", "ratio", "failures", "growth, MB", "after / before", "holds"]
    table = [
        [
            row["attack"],
            row["calm_p95_ms"],
            row["p95_ms"],
            row["ratio"],
            row["honest_failures"],
            row["rss_growth_mb"],
            round(row["rss_after_mb"] / row["rss_before_mb"], 2) if row["rss_before_mb"] else None,
            "yes" if reached(row) else "no" if row["survived"] else "died",
        ]
        for row in rows
    ]
    facts = {"tree": args.tree.resolve().parent.name, "seconds": args.seconds, "rest_s": args.rest}
    finish(args, measurement, {**facts, "model": args.model, "attacks": rows}, header, table)


if __name__ == "__main__":
    main()
