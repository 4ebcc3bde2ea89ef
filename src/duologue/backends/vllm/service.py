"""What a backend needs of vLLM, and vLLM itself: one AsyncLLM, in a thread with an event loop of its own."""

import itertools
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol, final

from duologue.backends.vllm.loop_thread import LoopThread
from duologue.errors import EngineError
from duologue.types import Token

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, which a fork would not have
}
"""What vLLM reads from the environment, unless it is set there."""


class Service(Protocol):
    """Generates. What runs in its loop may be handed over from any thread."""

    loop: LoopThread
    block_size: int  # tokens of a block of the KV cache

    def generate(
        self, tokens: tuple[Token, ...], params: Mapping[str, Any], *, priority: int, streams: bool = False
    ) -> AsyncGenerator[Any, None]:
        """vLLM's outputs behind `tokens`, as they come or, unless it `streams`, at the end. Closing this aborts it.

        Args:
            params: arguments of `SamplingParams`.
            priority: a request with a lower number goes first.

        Raises:
            EngineError: vLLM failed.
        """

    def close(self) -> None:
        """End everything. Can be repeated."""


@final
class VllmService:
    """Generates with the model in a folder.

    Raises:
        EngineError: vLLM does not start; what it says is in the message.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        """`options` are arguments of vLLM's `AsyncEngineArgs`."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._numbers = itertools.count()
        self._llm: Any = None
        self.loop = LoopThread("duologue-vllm")
        try:
            self._llm = self.loop.submit(_open(folder, options)).result()
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            raise EngineError(f"vLLM does not start with {folder}: {_reason(error)}") from error
        config = self._llm.vllm_config.cache_config
        self.num_blocks, self.block_size = int(config.num_gpu_blocks), int(config.block_size)

    async def generate(
        self, tokens: tuple[Token, ...], params: Mapping[str, Any], *, priority: int, streams: bool = False
    ) -> AsyncGenerator[Any, None]:
        """See `Service.generate`."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY
        sampling, name = SamplingParams(output_kind=kind, **params), f"duologue-{next(self._numbers)}"
        prompt = tokens_input(list(tokens))
        try:
            async with aclosing(self._llm.generate(prompt, sampling, name, priority=priority)) as outputs:
                async for output in outputs:
                    yield output
        except Exception as error:
            raise EngineError(f"vLLM failed: {_reason(error)}") from error

    def close(self) -> None:
        """End vLLM and the thread. Can be repeated."""
        llm, self._llm = self._llm, None
        if llm is not None:
            self.loop.submit(_shut_down(llm)).result()
        self.loop.close()


async def _open(folder: Path, options: Mapping[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(folder), disable_log_stats=True, **options))


async def _shut_down(llm: Any) -> None:
    llm.shutdown()


def _reason(error: Exception) -> str:
    """The first line of what vLLM says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
