"""Conversations on a fleet of two replicas under Ray Serve, one of which is killed in the middle.

Claim: every conversation goes on, what was heard of answers stays in its history, nothing is said twice, and a client
that loses its connection finds its replica again. The same holds when all replicas are replaced by new ones.

Why: a record is written before its event is sent, and it has one writer at a time. The next replica begins with it.

How: clients ask three questions each, at most eight at once, with asides ("mhm") and lost connections. A scripted model
answers: what is tested is the fleet. When half of them are done, the replica with most conversations gets SIGKILL. Then
more conversations talk while the application is deployed again. Needs `pip install "duologue[ray]"`.

    python benchmarks/fleet.py --out benchmarks/results/fleet-folder.json
    python benchmarks/fleet.py --store redis --out benchmarks/results/fleet-redis.json     # needs redis-server
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring

from duologue.client import Missed, Talk, connect
from duologue.core.events import Committed, Edited, Event, Heard, Said
from duologue.errors import RemoteError
from duologue.server.config import ServerConfig
from duologue.server.ray import build
from duologue.server.stores import open_store
from duologue.types import Role, Turn

QUESTIONS = 3
MORE_QUESTIONS = 10  # of conversations that talk while all replicas are replaced
CONTEXT = 1 << 14  # a token of the scripted model is a byte
MOST_S = 90  # that an answer may take, with the end of a replica
SUPPORT = measuring.ROOT / "tests" / "support"


def make_app(config: ServerConfig) -> Any:
    """The server of a replica. The name of its model tells the client which process it is."""
    sys.path.append(str(SUPPORT))
    from duologue.server.app import create_app
    from serving import scripted_model

    return create_app(config, model=replace(scripted_model(max_length=CONTEXT), name=f"scripted {os.getpid()}"))


class Client:
    """One conversation, and what must be true of it."""

    def __init__(self, number: int, url: str, chance: random.Random) -> None:
        self.number = number
        self.talk: Talk | None = None  # while it runs
        self.replicas: list[int] = []  # in the order in which they had it
        self.back_s: float | None = None  # from the end of its replica to its next event
        self.num_cuts = self.num_returns = 0  # lost connections, and those after which it found its replica
        self.num_refusals = 0  # before the conversation began
        self.session = ""
        self._url = url
        self._chance = chance
        self._ended_at: float | None = None
        self._cut: tuple[Any, int] | None = None  # the lost connection, and its replica
        self._heard: Counter[str] = Counter()  # characters, as the server confirmed them, by question
        self._answers: dict[tuple[int, int], str] = {}  # questions of the answers of which something was heard

    def lose(self) -> None:
        """Its replica is being ended."""
        self._ended_at, self._cut = time.perf_counter(), None

    async def run(self, questions: int = QUESTIONS, *, at_most: asyncio.Semaphore) -> None:
        """Hold the conversation, and check it from the outside."""
        async with at_most, await self._connected() as self.talk:
            self.session, events = self.talk.session, self.talk.events()
            try:
                for number in range(questions):
                    await self._ask(self.talk, events, f"tell me about number {self.number} point {number}", number)
                self._check(self.talk.history, questions)
            finally:
                self.history, self.talk = self.talk.history, None

    async def _connected(self) -> Talk:
        """A new conversation. The proxy may lead it to a dead replica, and answer with an error."""
        async with asyncio.timeout(MOST_S):
            while True:
                try:
                    return await connect(self._url)
                except RemoteError:
                    self.num_refusals += 1
                    await asyncio.sleep(0.1)

    async def _ask(self, talk: Talk, events: AsyncIterator[Event], question: str, number: int) -> None:
        aside, cut = self._chance.random() < 0.3, self._chance.random() < 0.2
        talk.hear(question, utterance=f"q{number}", final=True)
        async with asyncio.timeout(MOST_S):
            async for event in events:
                self._note(talk, event, question)
                if isinstance(event, Committed) or (isinstance(event, Edited | Missed) and is_answered(talk, question)):
                    return
                if not isinstance(event, Said) or event.start < 20:
                    continue
                if aside:
                    aside = False
                    talk.hear("mhm", utterance=f"a{number}", final=True)
                elif cut and talk._socket is not None:
                    cut = False
                    self.num_cuts += 1
                    self._cut = (talk._socket, replica_of(talk))
                    talk._socket.transport.abort()
        raise AssertionError("the conversation ended")

    def _note(self, talk: Talk, event: Event, question: str) -> None:
        if not self.replicas or self.replicas[-1] != replica_of(talk):
            self.replicas.append(replica_of(talk))
            if self._ended_at is not None and len(self.replicas) > 1:
                self.back_s, self._ended_at = time.perf_counter() - self._ended_at, None
        if self._cut is not None and talk._socket is not self._cut[0]:
            self.num_returns += replica_of(talk) == self._cut[1]
            self._cut = None
        if isinstance(event, Heard):
            self._heard[question] = max(self._heard[question], event.position)
            self._answers[len(self.replicas), event.answer] = question
        if isinstance(event, Committed):
            self._heard[question] = len(event.text)

    def _check(self, history: list[Turn], questions: int) -> None:
        # an aside that was on its way when the replica ended is heard by the next one together with a question
        history = [Turn(turn.role, turn.text.replace("mhm ", "")) for turn in history]
        asked = [turn.text for turn in history if turn.role is Role.USER]
        assert asked == [f"tell me about number {self.number} point {n}" for n in range(questions)], asked
        assert len(history) == 2 * questions, history
        for question, answer in zip(asked, history[1::2], strict=True):
            expected = f"This is what there is to say of {question}, and it is quite a lot of words."
            assert expected.startswith(answer.text), (answer, expected)
            confirmed = self._heard[question]  # 0: the client was told of none of it before its replica ended
            assert answer.text, "an answer of which nothing was heard is given again"
            assert len(answer.text) >= confirmed, f"{confirmed} were heard, not only {answer.text!r}"
        assert max(Counter(self._answers.values()).values()) == 1, "nothing is said twice"


def is_answered(talk: Talk, question: str) -> bool:
    """Whether something was heard of the answer to `question`, whose replica is gone."""
    *_, asked, answer = (None, None, *talk.history)
    return asked is not None and asked.text.endswith(question) and answer is not None and answer.role is Role.ASSISTANT


def replica_of(talk: Talk) -> int:
    """The process that has the conversation."""
    return int(talk.model.split()[-1])


async def end_one(clients: list[Client]) -> list[Client]:
    """Kill the replica with most conversations; these."""
    async with asyncio.timeout(MOST_S):
        while True:
            live = [client for client in clients if client.talk is not None and client.replicas]
            counts = Counter(client.replicas[-1] for client in live)
            if counts and counts.most_common(1)[0][1] >= 3:
                break
            await asyncio.sleep(0.01)
    victim = counts.most_common(1)[0][0]
    lost = [client for client in live if client.replicas[-1] == victim]
    for client in lost:
        client.lose()
    os.kill(victim, signal.SIGKILL)
    return lost


async def measure(args: argparse.Namespace, url: str, deploy: Callable[[], None], record: str) -> dict[str, Any]:
    """All conversations, with the end of a replica, and with the end of all."""
    chance, at_most = random.Random(args.seed), asyncio.Semaphore(args.at_once)
    clients = [Client(number, url, chance) for number in range(args.conversations)]
    began = time.perf_counter()
    running = [asyncio.create_task(client.run(at_most=at_most)) for client in clients]
    while sum(task.done() for task in running) < (args.conversations - args.at_once) // 2:
        await asyncio.sleep(0.05)
    lost = await end_one(clients)
    await asyncio.gather(*running)
    killed = {**summary(clients, lost), "seconds": round(time.perf_counter() - began, 1)}
    moving = [Client(args.conversations + number, url, chance) for number in range(args.at_once)]
    running = [asyncio.create_task(client.run(MORE_QUESTIONS, at_most=at_most)) for client in moving]
    while not all(client.replicas for client in moving):
        await asyncio.sleep(0.05)
    await asyncio.to_thread(deploy)
    await asyncio.gather(*running)
    store = open_store(ServerConfig(record=record))
    assert store is not None
    for client in (*clients, *moving):
        state, recorder = await store.resume(client.session)
        recorder.close()
        assert state.history == client.history, "the client and the record know the same"
    await store.aclose()
    return {"killed": killed, "deployed_again": summary(moving, moving)}


def summary(clients: list[Client], lost: list[Client]) -> dict[str, Any]:
    """What happened to `clients`, of which some lost their replica."""
    back = sorted(client.back_s for client in lost if client.back_s is not None)
    return {
        "conversations": len(clients),
        "completed": sum(client.session != "" for client in clients),
        "replicas": len({replica for client in clients for replica in client.replicas}),
        "lost_their_replica": len(lost),
        "went_on_at_another": sum(len(client.replicas) > 1 for client in lost),
        "back_s": {"median": round(back[len(back) // 2], 2), "max": round(back[-1], 2)} if back else None,
        "refused_before_they_began": sum(client.num_refusals for client in clients),
        "connections_cut": sum(client.num_cuts for client in clients),
        "found_their_replica_again": sum(client.num_returns for client in clients),
    }


@contextlib.contextmanager
def store_of(kind: str) -> Iterator[str]:
    """Where the records are kept."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "folder":
            yield folder
            return
        path = f"{folder}/redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", path, "--appendonly", "yes", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while not Path(path).exists():
                time.sleep(0.05)
            try:
                yield f"unix://{path}"
            finally:
                process.terminate()


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def wait_for(url: str) -> None:
    """Wait until the proxy answers there."""
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url):
            return
        time.sleep(0.2)


def main() -> int:
    """Run it."""
    parser = measuring.arguments(__doc__, with_model=False)
    parser.add_argument("--conversations", type=int, default=200, help="in all (default 200)")
    parser.add_argument("--at-once", type=int, default=8, help="at most (default 8)")
    parser.add_argument("--store", choices=("folder", "redis"), default="folder", help="of the records")
    args = parser.parse_args()
    measurement = measuring.begin(args)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    for name in ("READY_CHECK", "HEALTH_CHECK"):
        os.environ.setdefault(f"RAY_SERVE_PROXY_{name}_TIMEOUT_S", "120")
    import ray
    from ray import serve

    with store_of(args.store) as record:
        ray.init("local", num_cpus=6, include_dashboard=False, log_to_driver=False)
        try:
            port = free_port()
            with contextlib.suppress(TimeoutError):  # a busy machine needs more than a minute
                serve.start(http_options={"host": "127.0.0.1", "port": port})
            settings = {"record": record, "context": CONTEXT, "max_sessions": 12, "min_replicas": 2, "max_replicas": 2}

            def deploy() -> None:
                serve.run(build(settings, make_app), route_prefix="/")

            deploy()
            wait_for(f"http://127.0.0.1:{port}/ready")
            found = asyncio.run(measure(args, f"http://127.0.0.1:{port}", deploy, record))
        finally:
            serve.shutdown()
            ray.shutdown()
    figures = {"store": args.store, "at_once": args.at_once, **found}
    rows = [(name, *(found[part][name] for part in found)) for name in found["deployed_again"]]
    measuring.finish(args, measurement, figures, ("", "killed", "deployed again"), rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
