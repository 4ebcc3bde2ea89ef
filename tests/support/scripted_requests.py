"""A scripted model behind requests, as vLLM serves them: the backend and the engine for vLLM without vLLM."""

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from duologue.backends.scripted import ScriptedBackend
from duologue.backends.vllm.backend import VllmBackend
from duologue.backends.vllm.loop_thread import LoopThread
from duologue.backends.vllm.plugin import ExportedAdapter
from duologue.core.backend import Backend, Draw, Extend
from duologue.types import Token


@dataclass
class Request:
    """One request, and what became of it."""

    tokens: tuple[Token, ...]
    params: Mapping[str, Any]
    priority: int
    num_drawn: int = 0
    ended: str = "running"  # then "done" or "aborted"


class ScriptedService:
    """Answers requests as the scripted `model` does, until it is told to `hold`."""

    block_size = 32

    def __init__(self, model: ScriptedBackend) -> None:
        self.loop = LoopThread("duologue-vllm")
        self.requests: list[Request] = []
        self._left = math.inf  # tokens that may be drawn
        self._may_go_on = asyncio.Event()
        self._model = model

    @property
    def of_answers(self) -> list[Request]:
        return [request for request in self.requests if request.priority == 0]

    @property
    def of_decisions(self) -> list[Request]:
        return [request for request in self.requests if request.priority < 0]

    def hold(self, after: int = 0) -> None:
        """Draw nothing more, except `after` tokens."""
        self._left = after
        self.loop.call(self._may_go_on.clear)

    def go_on(self) -> None:
        self._left = math.inf
        self.loop.call(self._may_go_on.set)

    async def generate(
        self, tokens: tuple[Token, ...], params: Mapping[str, Any], *, priority: int, streams: bool = False
    ) -> AsyncGenerator[Any, None]:
        request = Request(tokens, params, priority)
        self.requests.append(request)
        said = list(tokens)
        try:
            for _ in range(params["max_tokens"]):
                await asyncio.sleep(0)
                while self._left < 1:
                    await self._may_go_on.wait()
                self._left -= 1
                drawn, found = self._next(said)
                said.append(drawn)
                request.num_drawn += 1
                is_end = drawn == 257
                made = SimpleNamespace(token_ids=[drawn], logprobs=[found])
                yield SimpleNamespace(outputs=[made], num_cached_tokens=len(tokens) // 32 * 32)
                if is_end:
                    break
            request.ended = "done"
        finally:
            if request.ended == "running":
                request.ended = "aborted"

    def _next(self, said: list[Token]) -> tuple[Token, dict[Token, Any]]:
        info, backend = self._model.info, self._model
        outputs = tuple(range(info.vocab_size + 1, info.vocab_size + info.num_added))
        if said[-1] == info.vocab_size:  # the probe
            p = backend.step(Extend(0, (said[-1],), watch=(outputs,)), said).p[0]
            shares = {id: math.log(share or 1e-30) for id, share in zip(outputs, p, strict=False)}
            shares |= dict.fromkeys(outputs[len(shares) :], math.log(0.5))
            return outputs[0], {id: SimpleNamespace(logprob=log_p, rank=1) for id, log_p in shares.items()}
        (drawn,) = backend.step(Extend(0, (said[-1],), draw=Draw()), said).tokens
        return drawn, {drawn: SimpleNamespace(logprob=0.0, rank=1), 0: SimpleNamespace(logprob=-9.0, rank=2)}

    def close(self) -> None:
        self.loop.close()


def on_requests(model: Backend) -> VllmBackend:
    """The backend for vLLM, with `model` in vLLM's place. Its `service` is a `ScriptedService`."""
    assert isinstance(model, ScriptedBackend)
    info = replace(model.info, name="vllm", max_seqs=1 << 20)
    adapter = ExportedAdapter(info.vocab_size, info.vocab_size, 1, info.num_added - 1, 1.0, {})
    return VllmBackend(ScriptedService(model), adapter, info)
