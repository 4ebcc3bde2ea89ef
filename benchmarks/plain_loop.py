"""One session beside the plain decoding loop of the same library: tokens per second, in one run.

Claim: one session that speaks through `Engine` reaches 90 per cent of the tokens per second of llama.cpp's own loop,
and is no slower than `generate` in Transformers.

Why: a pass of one session is the pass that the plain loop makes; beside it there are the session, the cache's books and
a handover between two threads.

How: each loop in turn answers the same prompt greedily with the same number of tokens, for several rounds; a loop runs
in a thread that ends with it. Time counts from the first token to the last, without the prompt. Ratios compare loops of
the same round; the median is reported.

With llama.cpp: `llama_decode` and its greedy sampler, called from Python (*decode loop*); the same in a process that
imports nothing of Duologue, so that the library's defaults hold (*alone*); and `Llama.generate`. With PyTorch:
`generate` of a second copy of the model. Passes of another shape round differently, so the loops may diverge at a near
tie; the result says in how many rounds they did. The exit status is 1 if the answers begin differently.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_ENVIRONMENT = dict(os.environ)  # before Duologue changes it
if "--alone" not in sys.argv:
    import measuring
    import spoken

TARGETS = {"llamacpp": 0.9, "torch": 1.0}
_CONTEXT = 2048
_SAME = 20  # characters that must be equal

Run = tuple[list[int], list[float]]  # tokens, and when each was ready (seconds)


class DecodeLoop:
    """llama.cpp's own loop: a pass, then the sampler."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self._ll: Any = llama_cpp
        if "--alone" in sys.argv:
            llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = _CONTEXT
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        llama_cpp.llama_sampler_chain_add(self._sampler, llama_cpp.llama_sampler_init_greedy())

    def run(self, prompt: list[int], number: int) -> Run:
        """Answer `prompt` with `number` tokens."""
        ll = self._ll
        ll.llama_memory_clear(ll.llama_get_memory(self._context), True)
        fed = (ll.llama_token * len(prompt))(*prompt)
        tokens, times = [], []
        for _ in range(number):
            if ll.llama_decode(self._context, ll.llama_batch_get_one(fed, len(fed))) != 0:
                raise RuntimeError("llama_decode failed")
            token = ll.llama_sampler_sample(self._sampler, self._context, -1)
            times.append(time.perf_counter())
            tokens.append(token)
            fed = (ll.llama_token * 1)(token)
        return tokens, times


class LlamaGenerate:
    """`Llama.generate` of llama-cpp-python."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self._llama = llama_cpp.Llama(
            path, n_ctx=_CONTEXT, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
        )

    def run(self, prompt: list[int], number: int) -> Run:
        """Answer `prompt` with `number` tokens."""
        self._llama.reset()
        tokens, times = [], []
        for token in self._llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            times.append(time.perf_counter())
            tokens.append(token)
            if len(tokens) == number:
                break
        return tokens, times


class Alone:
    """The decode loop in a process of its own that does not load Duologue."""

    def __init__(self, path: str, threads: int) -> None:
        self._command = [sys.executable, __file__, "--alone", path, str(threads)]

    def run(self, prompt: list[int], number: int) -> Run:
        """Answer `prompt` with `number` tokens."""
        asked = json.dumps([prompt, number])
        done = subprocess.run(
            self._command, input=asked, env=_ENVIRONMENT, capture_output=True, text=True, check=True
        )  # fmt: skip
        tokens, times = json.loads(done.stdout.splitlines()[-1])
        return tokens, times


class Generate:
    """`generate` in Transformers, with another copy of the weights."""

    def __init__(self, name: str, weights: str) -> None:
        from duologue.backends.torch.loading import read_model
        from duologue.models.catalogue import find
        from duologue.models.opening import TORCH_WEIGHTS

        source = find(name)
        self._model, _ = read_model(source.location, dtype=TORCH_WEIGHTS[weights])
        self._model.eval().generation_config.eos_token_id = None  # answers do not end

    def run(self, prompt: list[int], number: int) -> Run:
        """Answer `prompt` with `number` tokens."""
        import torch

        times: list[float] = []

        class Streamer:
            def put(self, value: Any) -> None:
                times.append(time.perf_counter())

            def end(self) -> None: ...

        ids = torch.tensor([prompt])
        with torch.inference_mode():
            said = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=number, do_sample=False, streamer=Streamer()
            )
        return said[0, len(prompt) :].tolist(), times[1:]  # it is given the prompt first


class Speaking:
    """A session of ours on a `Engine`, its events read as they come."""

    def __init__(self, model: Any, turn: Any) -> None:
        self._model = model
        self._turn = turn
        self.text = ""

    def run(self, prompt: list[int], number: int) -> Run:
        """Answer the turn with `number` tokens."""
        return [], asyncio.run(self._run(number))

    async def _run(self, number: int) -> list[float]:
        from duologue import Engine, Session, SessionConfig
        from duologue.core.events import Committed
        from duologue.engine.trace import Pass

        times: list[float] = []
        session = Session(
            dataclasses.replace(self._model.template, stop_tokens=frozenset()),  # answers do not end
            self._model.probe,
            config=SessionConfig(max_length=_CONTEXT, max_answer=number, chunk=_CONTEXT),
            history=[self._turn],
        )

        def sink(record: Any) -> None:
            if isinstance(record, Pass) and record.output_tokens:
                times.append(time.perf_counter())

        async with Engine(self._model.backend) as engine:
            talk = engine.open(session, sink=sink)
            talk.respond()
            async for event in talk.events():
                if isinstance(event, Committed):
                    self.text = event.text
                    break
        return times[-number:]


def in_thread(run: Callable[[list[int], int], Run], prompt: list[int], number: int) -> Run:
    """Run in a thread of its own: the threads that a library starts end with it, and do not slow down the next loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run, prompt, number).result()


def rate(times: list[float]) -> float:
    """Tokens per second, from the first to the last."""
    return (len(times) - 1) / (times[-1] - times[0])


def _others(args: argparse.Namespace, model: Any, threads: int) -> dict[str, Any]:
    if model.backend.info.name == "torch":
        return {"generate": Generate(args.model, model.backend.info.weights)}
    from duologue.backends.llamacpp.gguf_convert import cached_gguf
    from duologue.models.catalogue import find

    weights = model.backend.info.weights.upper()
    path = str(cached_gguf(find(args.model).path, weights=weights, rows=model.adapter.rows))
    return {
        "decode loop": DecodeLoop(path, threads),
        "decode loop, alone": Alone(path, threads),
        "Llama.generate": LlamaGenerate(path, threads),
    }


def main() -> int:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    from duologue import Turn
    from duologue.evaluation.results import describe_model
    from duologue.types import Role

    model = measuring.load_model(args, context=_CONTEXT)
    threads = args.threads or measurement.cores
    chance = random.Random(args.seed)
    turn = Turn(Role.USER, " ".join([spoken.aside(chance) for _ in range(args.asides)] + [spoken.question(chance)]))
    prompt = [*model.template.render([turn]), *model.template.header]
    ours = Speaking(model, turn)
    others = _others(args, model, threads)
    rates: dict[str, list[float]] = {name: [] for name in ("Engine", *others)}
    different, is_other = 0, False
    for number in range(args.rounds + 1):  # the first warms up
        texts = {}
        found = {"Engine": rate(ours.run(prompt, args.tokens)[1])}
        for name, other in others.items():
            tokens, times = in_thread(other.run, prompt, args.tokens)
            found[name], texts[name] = rate(times), model.template.decode(tokens)
        different += any(text.strip() != ours.text.strip() for text in texts.values())
        is_other |= any(text.strip()[:_SAME] != ours.text.strip()[:_SAME] for text in texts.values())
        measuring.progress(f"{number}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
        for name, value in found.items() if number else ():
            rates[name].append(value)
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(rates["Engine"], rates[name], strict=True)), 3)
        for name in others
    }
    target = TARGETS[model.backend.info.name]
    result = {
        "model": describe_model(model), "threads": threads, "prompt_tokens": len(prompt),
        "tokens": args.tokens, "rounds": args.rounds, "rounds_with_other_text": different,
        "tokens_per_second": {name: _spread(values) for name, values in rates.items()},
        "ratio": ratios, "target": target, "meets_target": min(ratios.values()) >= target,
    }  # fmt: skip
    rows = [
        (name, *_spread(values).values(), "" if name == "Engine" else ratios[name]) for name, values in rates.items()
    ]
    measuring.finish(args, measurement, result, ("tokens a second", "median", "least", "most", "ours, of it"), rows)
    model.close()
    return int(is_other)


def _spread(values: list[float]) -> dict[str, float]:
    middle = statistics.median(values)
    return {"median": round(middle, 1), "min": round(min(values), 1), "max": round(max(values), 1)}


def _alone(path: str, threads: int) -> int:
    prompt, number = json.loads(sys.stdin.read())
    loop = DecodeLoop(path, threads)
    loop.run(prompt, 8)
    print(json.dumps(loop.run(prompt, number)))
    return 0


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--asides", type=int, default=20, help="sentences before the question")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(_alone(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["--alone"] else main())
