"""What a remote speaker costs: the wait for its first word, the end of its requests, and many conversations at a time.

Claims: the first word of a remote answer is said at most 30 ms after a client that asks the endpoint directly has it. A
request is closed at the endpoint within 50 ms of the decision that cuts its answer. A server with the default listener
holds 20 conversations that begin with 512 tokens on two cores, and 95 of 100 decisions take less than 300 ms.

Why: the endpoint is asked as soon as the words are to be answered, and each part is passed on as it arrives. The
listener feeds what is said and heard, and draws nothing.

How: an endpoint that streams at a fixed rate answers in a process of its own (`fixed_rate`). First words and cuts are
measured in this process, and first words also through `duologue serve`; `respond` asks for an answer at once, so that
no wait for the end of a turn counts. The conversations are those of `duologue bench serve`; they begin once their
histories have been read, and are not long enough for a compaction. The exit status is 1 if a claim does not hold.

    python benchmarks/speaker.py --backend llamacpp --weights BF16
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from typing import Any

import httpx
import measuring
from fixed_rate import FixedRate, fixed_rate

from duologue.client import connect
from duologue.core.events import Decided, Event, Said, Suspended
from duologue.engine.engine import Engine
from duologue.engine.trace import Pass
from duologue.evaluation.load import LoadSetting, measure
from duologue.evaluation.quantiles import percentile, summary
from duologue.evaluation.results import describe_model
from duologue.evaluation.scale import MAX_P95_MS
from duologue.evaluation.server_process import server_process
from duologue.evaluation.simulated_user import history
from duologue.models.model import Model

QUESTION = "Tell me a long story about a fisherman and the sea."
INTERRUPTION = "Wait, what is the capital of France?"
WORDS_PER_SECOND = 20.0  # of the endpoint
HISTORY = 512  # tokens with which a conversation begins
WARM_UP_S_PER_TOKEN = 0.006  # in which histories are read before anybody speaks: twice what two cores need
MAX_OVERHEAD_MS, MAX_CUT_MS = 30.0, 50.0
_SPOKEN = 5  # parts of an answer before it is cut
_PATIENCE_S = 10.0


async def direct(client: httpx.AsyncClient, url: str) -> float:
    """Milliseconds until the first word, without Duologue."""
    body = {"model": "any", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64, "stream": True}
    began = time.perf_counter()
    async with client.stream("POST", f"{url}/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: ") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return (time.perf_counter() - began) * 1000
    raise AssertionError("the endpoint said nothing")


async def first_word(talk: Any) -> float:
    """Milliseconds from asking for an answer until its first word is said."""
    began = time.perf_counter()
    talk.hear(QUESTION, utterance="question", final=True)
    talk.respond()
    async with asyncio.timeout(_PATIENCE_S):
        async for event in talk.events():
            if isinstance(event, Said):
                return (time.perf_counter() - began) * 1000
    raise AssertionError("the conversation ended")


async def first_words(endpoint: FixedRate, talk: Callable[[], Any], trials: int) -> dict[str, list[float]]:
    """Direct answers and those in conversations in turn, each on a connection that is new."""
    found: dict[str, list[float]] = {"direct": [], "here": []}
    async with httpx.AsyncClient() as client:
        for _ in range(trials + 1):
            found["direct"].append(await direct(client, endpoint.url))
            conversation = await talk()
            try:
                found["here"].append(await first_word(conversation))
            finally:
                await conversation.aclose()
    return {how: times[1:] for how, times in found.items()}  # the first ones open the libraries


async def cut(engine: Engine, model: Model, endpoint: FixedRate, number: int) -> float | None:
    """Milliseconds from a decision that cuts an answer until its request is closed; None if it was not cut."""
    decided = 0.0

    def sink(record: Pass | Event) -> None:
        nonlocal decided
        if isinstance(record, Decided):
            decided = time.monotonic()

    question = f"{QUESTION} Begin with the number {number}."  # by which its request is known
    talk = engine.open(model.session(), sink=sink)
    try:
        async with asyncio.timeout(_PATIENCE_S), aclosing(_events(talk)) as events:
            talk.hear(question, utterance="question", final=True)
            talk.respond()
            said = 0
            async for event in events:
                said += isinstance(event, Said)
                if said == _SPOKEN and isinstance(event, Said):
                    talk.hear(INTERRUPTION, utterance="interruption", final=True)
                if isinstance(event, Suspended):
                    break
        closed = await asyncio.to_thread(endpoint.closed_at, question, _PATIENCE_S)
        return None if closed is None else (closed - decided) * 1000
    except TimeoutError:
        return None
    finally:
        await talk.aclose()


async def _events(talk: Any) -> AsyncIterator[Event]:
    async for event in talk.events():
        yield event


async def here(model: Model, endpoint: FixedRate, trials: int) -> tuple[dict[str, list[float]], list[float | None]]:
    """First words and cuts in this process."""
    async with model.engine() as engine:

        async def talk() -> Any:
            return engine.open(model.session())

        words = await first_words(endpoint, talk, trials)
        measuring.progress("first words: measured")
        cuts = [await cut(engine, model, endpoint, number) for number in range(trials)]
        measuring.progress("cuts: measured")
        return words, cuts


def served(args: argparse.Namespace, endpoint: FixedRate, setting: LoadSetting) -> tuple[dict[str, list[float]], Any]:
    """First words and many conversations through a server."""
    flags = ["--adapter", args.adapter, "--backend", args.backend, "--threads", str(args.threads or 0)]
    flags += ["--weights", args.weights or "", "--context", str(args.context), "--max-sessions", str(setting.clients)]
    with server_process([*flags, "--speaker", endpoint.url, "--speaker-model", "any"]) as server:

        async def talk() -> Any:
            return await connect(server.url, retry=False)

        words = asyncio.run(first_words(endpoint, talk, args.trials))
        load = asyncio.run(
            measure(
                server.url,
                setting,
                memory=server.memory,
                report=lambda result: measuring.progress(
                    f"{len(result.decisions)} decisions, p95 {percentile(result.decisions, 95):.0f} ms"
                ),
            )
        )
    return words, load


def overhead(words: dict[str, list[float]]) -> dict[str, float]:
    """Of the first word, in milliseconds."""
    return summary([ours - theirs for ours, theirs in zip(words["here"], words["direct"], strict=True)], 1)


def main() -> int:
    """Run it."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--trials", type=int, default=40, help="of first words, and of cuts (default 40)")
    parser.add_argument("--clients", type=int, default=20, help="conversations at the same time (default 20)")
    parser.add_argument("--minutes", type=float, default=2.0, help="of these conversations (default 2)")
    parser.add_argument("--context", type=int, default=2048, help="most tokens of a conversation (default 2048)")
    args = parser.parse_args()
    measurement = measuring.begin(args)
    with fixed_rate(WORDS_PER_SECOND) as endpoint:
        remote = {"speaker": endpoint.url, "speaker_model": "any", "speaker_continues": False, "speaker_early": 0}
        model = measuring.load_model(args, context=args.context, listener="auto", **remote)
        with closing(model):
            words, cuts = asyncio.run(here(model, endpoint, args.trials))
            listener = describe_model(model.decider)
            turns = tuple(history(model.decider.template, random.Random(args.seed), HISTORY))
        warm_up = WARM_UP_S_PER_TOKEN * HISTORY * args.clients
        setting = LoadSetting(args.clients, args.minutes * 60, seed=args.seed, history=turns, warm_up=warm_up)
        words_served, load = served(args, endpoint, setting)
    times = [one for one in cuts if one is not None]
    figures = {
        "model": listener,
        "words_per_second": WORDS_PER_SECOND,
        "trials": args.trials,
        "direct_first_word_ms": summary(words["direct"], 1),
        "overhead_ms": {"library": overhead(words), "server": overhead(words_served)},
        "cut_to_closed_ms": summary(times or [float("inf")], 1),
        "not_cut": len(cuts) - len(times),
        "history": HISTORY,
        **load.as_dict(),
    }
    holds = (
        figures["overhead_ms"]["library"]["p50"] <= MAX_OVERHEAD_MS
        and figures["cut_to_closed_ms"]["p95"] <= MAX_CUT_MS
        and not figures["not_cut"]
        and figures["decision_ms"]["p95"] <= MAX_P95_MS
        and not figures["lost"]
    )
    rows = [(name, figures[name]) for name in ("overhead_ms", "cut_to_closed_ms", "not_cut", "clients", "decision_ms")]
    measuring.finish(args, measurement, {**figures, "holds": holds}, ("", "found"), rows)
    return int(not holds)


if __name__ == "__main__":
    raise SystemExit(main())
